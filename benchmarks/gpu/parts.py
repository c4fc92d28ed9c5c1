"""The parts of `make gpu`: each measures one thing and returns its figures.

``write`` is called with the result so far after each row, so that an error loses nothing.
"""

import contextlib
import dataclasses
import gc
import logging
import time
from pathlib import Path

import torch

from ...model_loading.comfyui.kernels import comfy_attention, comfy_norms
from ...model_loading.comfyui.vae import load_vae
from ...model_loading.files.detect import V15_SAMPLE
from ...model_loading.networks.config import TEXT_TOKENS, TransformerConfig
from ...model_loading.networks.transformer import CogVideoXTransformer
from ...model_loading.standalone import Pipeline
from .. import traced
from ..in_comfyui import native_call, native_decoder
from . import models
from .comfyui import run_node
from .models import GB, Scale, kernels, seconds, synchronize, timed, uploaded

log = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZE = {"width": 128, "height": 96, "length": 9}
STEPS, CFG, SEED = 10, 2.0, 1
PROMPT = "a red circle moves right on a night background"


def free_gpu() -> None:
    """Take every model off the GPU."""
    import comfy.model_management

    gc.collect()
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def calls(scale: Scale, folder: Path, write) -> dict:
    """One call of the 5B and the 2B, beside diffusers' class and ComfyUI's: seconds and peak bytes."""
    found: dict = {}
    small, large = scale.sizes

    def row(name: str, size: str, batch: int, run, repeats: int = 2, **more: float) -> None:
        with torch.inference_mode():
            result = found[f"{name}, {size}, batch {batch}"] = {**timed(run, scale.device, repeats), **more}
        log.info("%s, %s, batch %d: %s", name, size, batch, result)
        write(found)

    def rows(name: str, call: models.Call, *cases: tuple[str, int]) -> None:
        """Calls of ours, each of a size and a batch, beside the memory that ComfyUI was told."""
        for size, batch in cases:
            declared = call.patcher.model.memory_required([batch, 16, *scale.sizes[size]])
            row(name, size, batch, call.runner(scale.sizes[size], batch), declared=declared)
        free_gpu()

    path = models.write_transformer(scale, "5B", folder)
    rows("5B", models.Call(scale, path), (small, 2), (small, 1), (large, 1))
    rows("5B in fp8", models.Call(scale, path, weight_dtype="fp8_e4m3fn"), (small, 2))
    with fp8_products():
        rows("5B in fp8, --fast fp8_matrix_mult", models.Call(scale, path, weight_dtype="fp8_e4m3fn"), (small, 2))
    peers(scale, "5B", row)
    rows("5B without dynamic VRAM", models.Call(scale, path, disable_dynamic=True), (small, 2))
    path = models.write_transformer(scale, "2B", folder)
    rows("2B", models.Call(scale, path), (small, 2), (large, 1))
    return found


@contextlib.contextmanager
def fp8_products():
    """ComfyUI with its option ``--fast fp8_matrix_mult``."""
    from comfy.cli_args import PerformanceFeature, args

    args.fast.add(PerformanceFeature.Fp8MatrixMultiplication)
    try:
        yield
    finally:
        args.fast.discard(PerformanceFeature.Fp8MatrixMultiplication)


def peers(scale: Scale, name: str, row) -> None:
    config, (small, large) = scale.configs[name], scale.sizes
    row("diffusers", small, 2, traced.diffusers_call(config, scale.sizes[small], 2, scale.device))
    row("diffusers", large, 1, traced.diffusers_call(config, scale.sizes[large], 1, scale.device), repeats=1)
    free_gpu()
    row("ComfyUI's own class", small, 2, native_call(config, scale.sizes[small], 2, scale.device))
    free_gpu()


def whole_vae(scale: Scale, folder: Path, write) -> dict:
    """The VAE, whole and in tiles, beside the others.

    Seconds include the copy of the pixels to the CPU; "declared" is the memory that ComfyUI is told of.
    """
    found: dict = {}
    vae = load_vae(models.write_vae(scale, folder))
    t, h, w = scale.first
    frames = 4 * t - 3
    latent = torch.randn(1, 16, t, h, w)
    pixels = torch.rand(frames, 8 * h, 8 * w, 3)
    tile = traced.TILE if h > traced.TILE else h // 2
    runs = {
        "decode": lambda: vae.decode(latent),
        "decode in tiles": lambda: vae.decode_tiled(latent, tile_x=tile, tile_y=tile, overlap=tile // 4),
        "encode": lambda: vae.encode(pixels),
        "encode in tiles": lambda: vae.encode_tiled(pixels, tile_x=8 * tile, tile_y=8 * tile, overlap=2 * tile),
    }
    for name, run in runs.items():
        with torch.inference_mode():
            found[name] = timed(run, scale.device)
        write(found)
    dtype = vae.vae_dtype
    found["dtype"] = str(dtype)
    found["decode"]["declared"] = vae.memory_used_decode(latent.shape, dtype)
    found["encode"]["declared"] = vae.memory_used_encode((1, 3, frames, 8 * h, 8 * w), dtype)
    found["decode in tiles"]["declared"] = vae.memory_used_decode((1, 16, t, tile, tile), dtype)
    z = latent.to(scale.device, torch.bfloat16)
    for name, make in {"diffusers": traced.diffusers_decoder, "ComfyUI's own class": native_decoder}.items():
        decode = make(scale.vae, scale.device)
        with torch.inference_mode():
            found[f"decode, {name}"] = timed(lambda decode=decode: decode(z).cpu(), scale.device, repeats=1)
        del decode
        write(found)
    return found


def small(scale: Scale, path: Path, write) -> dict:
    """Seconds and uploaded bytes of a call of the 5B with less free VRAM than it needs, so that ComfyUI offloads.

    For each budget with dynamic VRAM and without. One large tensor takes the rest of the VRAM.
    """
    found: dict = {}
    for dynamic in (True, False):
        for budget in sorted(scale.budgets, reverse=True):
            name = f"{budget / GB:.0f} GB, {'dynamic VRAM' if dynamic else 'the older patcher'}"
            try:
                found[name] = small_budget(scale, path, budget, dynamic)
            except torch.OutOfMemoryError as error:
                found[name] = {"error": str(error)[:300]}
            log.info("%s: %s", name, found[name])
            write(found)
    return found


def small_budget(scale: Scale, path: Path, budget: float, dynamic: bool) -> dict:
    free_gpu()
    ballast = free = None
    if scale.device.type != "cpu":
        torch.cuda.empty_cache()  # what the allocator keeps would be taken before free memory is
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(0, int(free - budget)), dtype=torch.uint8, device=scale.device)
        free, _ = torch.cuda.mem_get_info()
    call = models.Call(scale, path, **({} if dynamic else {"disable_dynamic": True}))
    with torch.inference_mode():
        run = call.runner(scale.first, 1)
        run()
        taken = seconds(run, scale.device, repeats=1, warm_up=0)
        events = models.trace(run, scale.device)
    result = {"free": free, "seconds": taken, "uploaded": uploaded(events)}
    if not dynamic:
        result["loaded"] = call.patcher.loaded_size()
    del call, run, ballast
    free_gpu()
    return result


def profile(scale: Scale, path: Path, folder: Path) -> dict:
    """The kernels of one guided call of the 5B, and of decoding a video."""
    call = models.Call(scale, path)
    decoder = load_vae(models.write_vae(scale, folder))
    latent = torch.randn(1, 16, *scale.first)
    found = {}
    with torch.inference_mode():
        for name, run in {"call": call.runner(scale.first, 2), "decode": lambda: decoder.decode(latent)}.items():
            run()
            found[name] = kernels(models.trace(run, scale.device))
    return found


class Run:
    """Start and end image to video with a MODEL, random text and random reference latents."""

    def __init__(self, scale: Scale, model):
        self.scale, self.model = scale, model
        generator = torch.Generator().manual_seed(0)
        width = model.model.config.text_embed_dim
        prompts = [[[torch.randn(1, TEXT_TOKENS, width, generator=generator), {}]] for _ in range(2)]
        t, h, w = scale.first
        mask = torch.ones(t, h, w)
        mask[0] = mask[-1] = 0
        reference = {"samples": torch.randn(1, 16, t, h, w, generator=generator)}
        self.positive, self.negative, self.latent = run_node(
            "CogVideoXFunInpaintConditioning",
            positive=prompts[0], negative=prompts[1], masked_latent=reference, mask=mask,
        )  # fmt: skip

    def seconds(self, steps: int) -> float:
        """Seconds of the Sampler node: placing the model, the loop, and the copy of the result to the CPU."""
        begun = time.perf_counter()
        run_node(
            "CogVideoXFunSampler",
            model=self.model, positive=self.positive, negative=self.negative, latent=self.latent, seed=1, steps=steps,
        )  # fmt: skip
        synchronize(self.scale.device)
        return time.perf_counter() - begun


def loop(scale: Scale, path: Path, kinds: tuple[str, ...], write) -> dict:
    """Seconds of whole runs of the 5B; ``kinds`` are of `run.KINDS`."""
    found: dict = {"steps": scale.steps}
    for kind in kinds:
        label = f"{kind}, --fast fp8_matrix_mult" if "fp8" in kind else kind
        with fp8_products() if "fp8" in kind else contextlib.nullcontext():
            call = models.Call(scale, path, weight_dtype="fp8_e4m3fn" if "fp8" in kind else "default")
            model = call.patcher
            if "compiled" in kind:
                model = models.compiled(model)
            run = Run(scale, model)
            first = run.seconds(1)
            found[label] = {"a run of one step before": first, "seconds": run.seconds(scale.steps)}
        log.info("%s: %s", kind, found[label])
        write(found)
        del call, model, run
        free_gpu()
    return found


def families() -> dict[str, TransformerConfig]:
    small = TransformerConfig(
        num_attention_heads=2, num_layers=2, in_channels=33, time_embed_dim=32, text_embed_dim=32
    )
    rotary = dataclasses.replace(small, use_rotary_positional_embeddings=True)
    v15 = dataclasses.replace(rotary, patch_size_t=2, **V15_SAMPLE)
    return {"2B": small, "2B control": dataclasses.replace(small, in_channels=32), "5B": rotary, "V1.5": v15}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double().cpu() - expected.double()).norm() / expected.double().norm()).item()


def numbers(scale: Scale) -> dict:
    """Small models on the GPU against the CPU in float32."""
    return {"calls": errors_of_calls(scale.device), "nano": nano(scale)}


def errors_of_calls(device: torch.device) -> dict:
    """For each family and dtype, |ours on the GPU - ours on the CPU| / |ours on the CPU|."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name, config in families().items():
        with torch.device("meta"):
            empty = CogVideoXTransformer(config)
        state = traced.random_state(empty)
        x = torch.randn(2, 16, 4, 12, 20, generator=generator)
        extra = torch.randn(2, config.in_channels - 16, 4, 12, 20, generator=generator)
        text = torch.randn(2, 226, config.text_embed_dim, generator=generator)
        timestep = torch.tensor([500, 20])
        outputs = {}
        for where, dtype in [("cpu", torch.float32), *((device, dtype) for dtype in DTYPES.values())]:
            kernels = {} if where == "cpu" else {"attention": comfy_attention, **comfy_norms(device, dtype)}
            model = CogVideoXTransformer(config, dtype=dtype, device=where, **kernels).requires_grad_(False)
            model.load_state_dict(state)
            inputs = x.to(where, dtype), timestep.to(where), text.to(where, dtype)
            outputs[str(where), dtype] = model(*inputs, concat_latents=extra.to(where, dtype)).cpu()
        expected = outputs["cpu", torch.float32]
        found[name] = {key: relative(outputs[str(device), dtype], expected) for key, dtype in DTYPES.items()}
    return found


def psnr(found: torch.Tensor, expected: torch.Tensor) -> float:
    return -10 * torch.log10((found.double() - expected.double()).square().mean() + 1e-20).item()


def nano(scale: Scale) -> dict:
    """PSNR in dB of the nano model's video, made by the nodes on the GPU, to the same video made on the CPU in float32
    without ComfyUI, for each weight_dtype."""
    steps = min(STEPS, scale.steps)
    pipeline = Pipeline.from_folder(models.NANO)
    noise = pipeline.noise(SIZE["width"], SIZE["height"], SIZE["length"], SEED)
    texts = pipeline.text_encoder(PROMPT), pipeline.text_encoder("")
    expected = pipeline.decode(pipeline.sample(noise, *texts, steps=steps, cfg=CFG))
    found = {}
    for weight_dtype in ("fp32", "bf16", "fp16", "fp8_e4m3fn"):
        model, clip, vae = run_node("CogVideoXFunModelLoader", model="nano", weight_dtype=weight_dtype)
        (positive,), (negative,) = (run_node("CLIPTextEncode", clip=clip, text=text) for text in (PROMPT, ""))
        latent = run_node("CogVideoXFunEmptyLatent", **SIZE, batch_size=1)[0]
        (sampled,) = run_node(
            "CogVideoXFunSampler",
            model=model, positive=positive, negative=negative, latent=latent, seed=SEED, steps=steps, cfg=CFG,
        )  # fmt: skip
        (pixels,) = run_node("VAEDecode", vae=vae, samples=sampled)
        found[weight_dtype] = psnr(pixels.float().cpu().reshape(expected.shape), expected)
    return found

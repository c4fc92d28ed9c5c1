"""Measurements that need a ComfyUI: its own CogVideoX as a peer, and the cost of our sampler over its loop.

``python benchmarks/run.py comfyui PATH``, run with the Python of the ComfyUI at PATH, prints `measure` as JSON for
`measured_apart`.
"""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from ..model_loading.networks.config import TransformerConfig
from ..model_loading.networks.transformer import CogVideoXTransformer
from ..model_loading.networks.vae import VAEConfig
from ..tools.comfyui_server import find_host
from ..tools.pack import ROOT
from .timed import RUN, THREADS, TIMED, Pairs, interleaved, threads, timed_inputs
from .traced import CONFIGS, META, SIZES, bf16_on, call_inputs, random_state, shared_options, trace

NANO = ROOT / "models" / "nano"
STEPS = 50


def measured_apart() -> dict | None:
    """`measure` in the ComfyUI that the tests use, or None if there is none."""
    host = find_host()
    if host is None:
        return None
    command = [str(host.python), str(RUN), "comfyui", str(host.path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if answer.returncode:
        raise RuntimeError(f"measuring in {host.path} failed:\n{answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def measure(path: Path) -> dict:
    """Bytes and times of ComfyUI's own model, if it has one, and the time of our loop over ComfyUI's.

    Args:
        path: of the ComfyUI, which is put first on ``sys.path``; call this in a process of its own.
    """
    sys.path.insert(0, str(path))
    from comfy.cli_args import args

    args.cpu = args.use_pytorch_cross_attention = True
    found = {}
    if importlib.util.find_spec("comfy.ldm.cogvideo"):
        found["native"] = measure_native()
    found["loop"] = time_loops().ratio
    return found


def native_transformer(config: TransformerConfig) -> torch.nn.Module:
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

    # PyTorch's own layers: with dynamic VRAM those of ComfyUI have no weights until a file is loaded
    return CogVideoXTransformer3DModel(**shared_options(config), operations=torch.nn).requires_grad_(False)


def native_call(
    config: TransformerConfig, latent: tuple[int, int, int], batch: int = 2, device="meta"
) -> Callable[[], torch.Tensor]:
    """One call of ComfyUI's own transformer, both prompts at once."""
    with torch.device("meta"):
        model = native_transformer(config)
    model = bf16_on(device, model)
    x, timestep, text = call_inputs(config, latent, batch, device)
    return lambda: model(x, timestep, text)


def native_decoder(config: VAEConfig, device="meta") -> Callable:
    """Decoding with ComfyUI's own VAE."""
    from comfy.ldm.cogvideo.vae import AutoencoderKLCogVideoX

    with torch.device(device):
        vae = AutoencoderKLCogVideoX(
            block_out_channels=config.block_out_channels, layers_per_block=config.layers_per_block
        )
    return vae.to(torch.bfloat16).requires_grad_(False).decode


def measure_native() -> dict:
    found = {size: trace(native_call(CONFIGS["5B"], latent)) for size, latent in SIZES.items()}
    z = torch.empty(1, 16, *SIZES["480x720x49"], **META)
    decode = native_decoder(VAEConfig())
    return {**found, "decode": trace(lambda: decode(z)), "call": time_native(), "numbers": numbers()}


def time_native(rounds: int = 9) -> dict[int, float]:
    """Ours over ComfyUI's own in the call of `timed.time_transformer`, by threads. The two compute other numbers."""
    ours, native = CogVideoXTransformer(TIMED).requires_grad_(False), native_transformer(TIMED)
    for model in (ours, native):
        model.load_state_dict(random_state(model))
    x, timestep, text = timed_inputs()
    ratios = {}
    for count in THREADS:
        with threads(count):
            pairs, *_ = interleaved(
                lambda: ours(x[:, :16], timestep, text, concat_latents=x[:, 16:]),
                lambda: native(x, timestep, text),
                rounds,
            )
        ratios[count] = pairs.ratio
    return ratios


def numbers() -> dict:
    """Whether ComfyUI's own model opens a CogVideoX-Fun checkpoint, and the error of its positions and its schedule.

    The error is against ours, which tests compare with VideoX-Fun's: they differ by at most 1e-5.
    """
    import comfy.model_base
    import comfy.sd
    import comfy.supported_models

    from ..model_loading.files.checkpoint import open_checkpoint

    try:
        comfy.sd.load_diffusion_model(str(NANO / "transformer" / "diffusion_pytorch_model.safetensors"))
        found = {"opens": ""}
    except RuntimeError as error:
        found = {"opens": str(error).splitlines()[0].replace(str(NANO.parent), "models")}
    with torch.device("meta"):
        ours, native = CogVideoXTransformer(CONFIGS["5B"]), native_transformer(CONFIGS["5B"])
    for size, (t, h, w) in {"480x720": (13, 30, 45), "512x512": (13, 32, 32)}.items():
        expected = ours.compute_positions((t, h, w), ours.position_options)
        cos, sin = native._get_rotary_emb(h, w, t, "cpu")
        rope = torch.complex(cos[:, ::2], sin[:, ::2])
        found[f"rope {size}"] = float((rope - expected).abs().pow(2).mean().sqrt())
    config = comfy.supported_models.CogVideoX_T2V({"num_attention_heads": 30})
    sigmas = comfy.model_base.model_sampling(config, comfy.model_base.ModelType.V_PREDICTION_DDPM).sigmas[:-1]
    expected = open_checkpoint(NANO).schedule.sigmas()[:-1]  # the last is infinite by the schedule
    found["sigmas"] = float((sigmas / expected - 1).abs().max())
    return found


def time_loops(rounds: int = 15) -> Pairs:
    """Seconds of `cogvideox_ddim` and of ComfyUI's Euler over 50 steps with guidance, on latents of 480x720x49.

    The transformers of this process do nothing afterwards.
    """
    import comfy.model_patcher
    import comfy.sample
    import comfy.samplers

    from ..model_loading.comfyui.load import CogVideoXFun, CogVideoXFunConfig
    from ..model_loading.comfyui.samplers import CogVideoXDDIM, run_sigmas
    from ..model_loading.files.checkpoint import open_checkpoint
    from ..model_loading.networks.transformer import CogVideoXTransformer

    checkpoint = open_checkpoint(NANO)
    model = CogVideoXFun(CogVideoXFunConfig(checkpoint))
    CogVideoXTransformer.forward = lambda self, x, timestep, context, **_: x
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
    latent = torch.zeros(1, 16, *SIZES["480x720x49"])
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    conditioning = [[torch.zeros(1, 16, checkpoint.config.text_embed_dim), {}]]
    sigmas = run_sigmas(patcher, STEPS)

    def run(sampler) -> torch.Tensor:
        return comfy.sample.sample_custom(
            patcher, noise, 6.0, sampler, sigmas, conditioning, conditioning, latent, disable_pbar=True, seed=0
        )

    ddim = CogVideoXDDIM(checkpoint.schedule, STEPS)
    pairs, *_ = interleaved(lambda: run(ddim), lambda: run(comfy.samplers.sampler_object("euler")), rounds)
    return pairs

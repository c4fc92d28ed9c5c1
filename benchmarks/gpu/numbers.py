"""Small models on the GPU against the CPU in float32: one call of each family, and a whole run of the nano model."""

import dataclasses

import torch

from ...model_loading.comfyui.kernels import comfy_attention, comfy_norms
from ...model_loading.networks.config import TransformerConfig
from ...model_loading.networks.transformer import CogVideoXTransformer
from ...model_loading.standalone import Pipeline
from . import models
from .host import run_node
from .measure import Scale, random_state

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SIZE = {"width": 128, "height": 96, "length": 9}
STEPS, CFG, SEED = 10, 2.0, 1
PROMPT = "a red circle moves right on a night background"


def families() -> dict[str, TransformerConfig]:
    small = TransformerConfig(
        num_attention_heads=2, num_layers=2, in_channels=33, time_embed_dim=32, text_embed_dim=32
    )
    rotary = dataclasses.replace(small, use_rotary_positional_embeddings=True)
    v15 = dataclasses.replace(
        rotary, patch_size_t=2, patch_bias=False, sample_width=300, sample_height=300, sample_frames=85
    )
    return {"2B": small, "2B control": dataclasses.replace(small, in_channels=32), "5B": rotary, "V1.5": v15}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.double().cpu() - expected.double()).norm() / expected.double().norm()).item()


def measure(scale: Scale) -> dict:
    return {"calls": calls(scale.device), "nano": nano(scale)}


def calls(device: torch.device) -> dict:
    """For each family and dtype, |ours on the GPU - ours on the CPU| / |ours on the CPU|."""
    generator, found = torch.Generator().manual_seed(0), {}
    for name, config in families().items():
        with torch.device("meta"):
            empty = CogVideoXTransformer(config)
        state = random_state(empty, torch.device("cpu"), torch.float32)
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
    pipeline = Pipeline.from_folder(models.NANO)
    noise = pipeline.noise(SIZE["width"], SIZE["height"], SIZE["length"], SEED)
    texts = pipeline.text_encoder(PROMPT), pipeline.text_encoder("")
    expected = pipeline.decode(pipeline.sample(noise, *texts, steps=STEPS, cfg=CFG))
    found = {}
    for weight_dtype in ("fp32", "bf16", "fp16", "fp8_e4m3fn"):
        model, clip, vae = run_node("CogVideoXFunModelLoader", model="nano", weight_dtype=weight_dtype)
        (positive,), (negative,) = (run_node("CLIPTextEncode", clip=clip, text=text) for text in (PROMPT, ""))
        latent = run_node("CogVideoXFunEmptyLatent", **SIZE, batch_size=1)[0]
        (sampled,) = run_node(
            "CogVideoXFunSampler",
            model=model, positive=positive, negative=negative, latent=latent, seed=SEED, steps=STEPS, cfg=CFG,
        )  # fmt: skip
        (pixels,) = run_node("VAEDecode", vae=vae, samples=sampled)
        found[weight_dtype] = psnr(pixels.float().cpu().reshape(expected.shape), expected)
    return found

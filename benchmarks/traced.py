"""Peak bytes of the real 2B and 5B configurations, on meta tensors: exact, and without a GPU or a checkpoint.

GB are 1e9 bytes. Weights do not count, and attention counts by its output only.
"""

import dataclasses
from collections.abc import Callable

import torch

from ..model_loading.networks.config import TEXT_TOKENS, TransformerConfig
from ..model_loading.networks.transformer import CogVideoXTransformer
from ..model_loading.networks.vae import CogVideoXVAE, VAEConfig
from .live_bytes import LiveBytes, trace
from .peers import diffusers_transformer, diffusers_vae

META = {"device": "meta", "dtype": torch.bfloat16}
CONFIGS = {
    "2B": TransformerConfig(num_attention_heads=30, num_layers=30, in_channels=33),
    "5B": TransformerConfig(
        num_attention_heads=48, num_layers=42, in_channels=33, use_rotary_positional_embeddings=True
    ),
}
SIZES = {"480x720x49": (13, 60, 90), "1024x1024x49": (13, 128, 128)}  # T h w of the latent
TILE = 32  # latents: 256 pixels


def tokens_of(latent: tuple[int, int, int]) -> int:
    t, h, w = latent
    return t * h * w // 4 + TEXT_TOKENS


def call_inputs(config: TransformerConfig, latent: tuple[int, int, int], batch: int):
    """(noise, conditioning latents, timestep, text) of one call, B C T h w."""
    noise = torch.empty(batch, 16, *latent, **META)
    extra = torch.empty(batch, config.in_channels - 16, *latent, **META)
    return noise, extra, torch.empty(batch, device="meta"), torch.empty(batch, TEXT_TOKENS, 4096, **META)


def config_of(name: str, layers: int | None) -> TransformerConfig:
    return dataclasses.replace(CONFIGS[name], num_layers=layers or CONFIGS[name].num_layers)


def transformer_call(
    name: str, latent: tuple[int, int, int], batch: int = 1, layers: int | None = None, **options
) -> Callable[[], torch.Tensor]:
    """One call of ours; guidance is two calls of batch 1 where memory is short.

    Args:
        layers: fewer than the model has, for what does not depend on them.
        options: of `CogVideoXTransformer`.
    """
    config = config_of(name, layers)
    with torch.device("meta"):
        model = CogVideoXTransformer(config, dtype=torch.bfloat16, **options).requires_grad_(False)
    noise, extra, timestep, text = call_inputs(config, latent, batch)
    return lambda: model(noise, timestep, text, concat_latents=extra)


def diffusers_call(
    name: str, latent: tuple[int, int, int], batch: int = 2, layers: int | None = None
) -> Callable[[], tuple]:
    """One call of diffusers' transformer, guidance as its pipeline runs it: both prompts at once."""
    config = config_of(name, layers)
    t, h, w = latent
    with torch.device("meta"):
        model = diffusers_transformer(config, h, w).to(torch.bfloat16)
    rope = None
    if config.use_rotary_positional_embeddings:
        shape = tokens_of(latent) - TEXT_TOKENS, config.attention_head_dim
        rope = torch.empty(shape, device="meta"), torch.empty(shape, device="meta")
    noise, extra, timestep, text = call_inputs(config, latent, batch)
    x = torch.cat([noise, extra], dim=1).movedim(1, 2)
    return lambda: model(x, text, timestep, image_rotary_emb=rope, return_dict=False)


def trace_transformer(name: str, latent: tuple[int, int, int], batch: int = 1, layers: int | None = None) -> LiveBytes:
    """The live bytes of `transformer_call`."""
    return trace(transformer_call(name, latent, batch, layers))


def trace_diffusers_transformer(name: str, latent: tuple[int, int, int], batch: int = 2) -> LiveBytes:
    """The live bytes of `diffusers_call`."""
    return trace(diffusers_call(name, latent, batch))


def vae_on_meta() -> CogVideoXVAE:
    return CogVideoXVAE(VAEConfig(), **META).requires_grad_(False)


def decode_call(latent: tuple[int, int, int]) -> Callable[[], None]:
    """Decoding a latent in the authors' chunks, each of which leaves the device at once."""
    z, vae = torch.empty(1, 16, *latent, **META), vae_on_meta()

    def run() -> None:
        for chunk in vae.decode_stream(z):
            del chunk

    return run


def trace_decode(latent: tuple[int, int, int], tile: int = 0) -> LiveBytes:
    """The live bytes of `decode_call`.

    Args:
        tile: latents, 0 = whole frames. One tile is as large as all.
    """
    t, h, w = latent
    return trace(decode_call((t, min(h, tile or h), min(w, tile or w))))


def trace_encode(frames: int, height: int, width: int) -> LiveBytes:
    """Encoding a video of F H W pixels likewise."""
    pixels = torch.empty(1, 3, frames, height, width, **META)
    vae = vae_on_meta()

    def run() -> None:
        for chunk in vae.encode_stream(pixels):
            del chunk

    return trace(run)


def trace_diffusers_decode(latent: tuple[int, int, int]) -> LiveBytes:
    with torch.device("meta"):
        vae = diffusers_vae(VAEConfig()).to(torch.bfloat16)
    z = torch.empty(1, 16, *latent, **META)
    return trace(lambda: vae.decode(z).sample)

"""Seconds of ours over seconds of diffusers', run by turns in one process, so that a noisy machine disturbs both."""

import math
import time
from collections.abc import Callable

import torch

from ..model_loading.config import TransformerConfig
from ..model_loading.transformer import CogVideoXTransformer
from ..model_loading.vae import CogVideoXVAE, VAEConfig
from .peers import diffusers_transformer, diffusers_vae


def by_turns(ours: Callable, theirs: Callable, rounds: int) -> tuple[float, float, torch.Tensor, torch.Tensor]:
    """Least seconds of each, which other load on the machine disturbs least, after a run that does not count, and what
    they return; without rounds the seconds are not a number."""
    seconds = ([], [])
    with torch.no_grad():
        results = ours(), theirs()
        for _ in range(rounds):
            for run, taken in zip((ours, theirs), seconds, strict=True):
                begun = time.perf_counter()
                run()
                taken.append(time.perf_counter() - begun)
    return *(min(taken) if taken else math.nan for taken in seconds), *results


def random_(module: torch.nn.Module, seed: int = 0) -> None:
    """Weights of a size that keeps activations near one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)


TIMED = TransformerConfig(
    num_attention_heads=8, num_layers=6, in_channels=33, use_rotary_positional_embeddings=True, text_embed_dim=512
)


def timed_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(noise and conditioning latents, timestep, text) of 13 x 32 x 32 latents: 3,328 tokens and 226 of text."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 33, 13, 32, 32, generator=generator)
    return x, torch.tensor([500]), torch.randn(1, 226, 512, generator=generator)


def time_transformer(rounds: int = 9) -> dict:
    """One call of 8 heads and 6 layers on `timed_inputs`, float32."""
    ours = CogVideoXTransformer(TIMED).requires_grad_(False)
    random_(ours)
    theirs = diffusers_transformer(TIMED, 32, 32)
    theirs.load_state_dict(ours.state_dict())
    x, timestep, text = timed_inputs()
    rope = ours.compute_positions((13, 16, 16), ours.position_options)
    rope = tuple(part.repeat_interleave(2, dim=1) for part in (rope.real, rope.imag))
    video = x.movedim(1, 2)
    seconds, peers, out, expected = by_turns(
        lambda: ours(x[:, :16], timestep, text, extra_latents=x[:, 16:]),
        lambda: theirs(video, text, timestep, image_rotary_emb=rope, return_dict=False)[0].movedim(1, 2),
        rounds,
    )
    return {"ours": seconds, "diffusers": peers, "difference": float((out - expected).abs().max())}


def time_decode(rounds: int = 3) -> dict:
    """Decoding 9 frames of 128 x 192 pixels with the real VAE's widths, float32, in the same chunks."""
    ours = CogVideoXVAE(VAEConfig()).requires_grad_(False)
    random_(ours)
    theirs = diffusers_vae(ours.config)
    theirs.load_state_dict(ours.state_dict())
    z = torch.randn(1, 16, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    seconds, peers, out, expected = by_turns(
        lambda: ours.decode(z), lambda: decode_in_the_authors_chunks(theirs, z), rounds
    )
    return {"ours": seconds, "diffusers": peers, "difference": float((out - expected).abs().max())}


def decode_in_the_authors_chunks(vae, z: torch.Tensor) -> torch.Tensor:
    """diffusers' decoder, the first latent frame alone and then two at a time."""
    cache, parts = None, []
    for start, end in ((0, 1), *((i, i + 2) for i in range(1, z.shape[2], 2))):
        part, cache = vae.decoder(z[:, :, start:end], conv_cache=cache)
        parts.append(part)
    return torch.cat(parts, dim=2)

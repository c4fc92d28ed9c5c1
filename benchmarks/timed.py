"""Seconds of ours over seconds of a peer's: interleaved in one process, and compared pair by pair, so that a noisy
machine disturbs both sides alike."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from statistics import median

import torch

from ..model_loading.networks.config import TransformerConfig
from ..model_loading.networks.transformer import CogVideoXTransformer
from ..model_loading.networks.vae import CogVideoXVAE, VAEConfig
from .peers import diffusers_transformer, diffusers_vae

THREADS = (1, 2)  # of PyTorch
REAL_VAE = VAEConfig()


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Seconds of ours and of a peer's, a pair for each time that both ran one right after the other."""

    seconds: tuple[tuple[float, float], ...]

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in self.seconds]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios: other load changes single pairs, and leaves the median of all."""
        return median(self.ratios)

    @property
    def theirs(self) -> float:
        """Median seconds of the peer."""
        return median(theirs for _, theirs in self.seconds)


def interleaved(ours: Callable, theirs: Callable, rounds: int) -> tuple[Pairs, torch.Tensor, torch.Tensor]:
    """Time pairs of runs, after a pair that does not count; returns what both return, too.

    The order changes from pair to pair, so that drift (clock speed, heat) favours neither.
    """
    pairs = []
    with torch.no_grad():
        results = ours(), theirs()
        for index in range(rounds):
            taken = {}
            for run in (ours, theirs) if index % 2 == 0 else (theirs, ours):
                begun = time.perf_counter()
                run()
                taken[run] = time.perf_counter() - begun
            pairs.append((taken[ours], taken[theirs]))
    return Pairs(tuple(pairs)), *results


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Let PyTorch compute on this many threads meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


LATENT = (13, 32, 32)  # T h w: 3,328 tokens


def timed_inputs(latent: tuple[int, int, int] = LATENT) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(noise and conditioning latents, timestep, text of 226 tokens)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 33, *latent, generator=generator)
    return x, torch.tensor([500]), torch.randn(1, 226, 512, generator=generator)


def time_transformer(rounds: int = 9, latent: tuple[int, int, int] = LATENT) -> tuple[Pairs, float]:
    """One call of 8 heads and 6 layers on `timed_inputs`, float32; and the largest difference from diffusers'."""
    ours = CogVideoXTransformer(TIMED).requires_grad_(False)
    random_(ours)
    t, h, w = latent
    theirs = diffusers_transformer(TIMED, h, w)
    theirs.load_state_dict(ours.state_dict())
    x, timestep, text = timed_inputs(latent)
    rope = ours.compute_positions((t, h // 2, w // 2), ours.position_options)
    rope = tuple(part.repeat_interleave(2, dim=1) for part in (rope.real, rope.imag))
    video = x.movedim(1, 2)
    pairs, out, expected = interleaved(
        lambda: ours(x[:, :16], timestep, text, concat_latents=x[:, 16:]),
        lambda: theirs(video, text, timestep, image_rotary_emb=rope, return_dict=False)[0].movedim(1, 2),
        rounds,
    )
    return pairs, float((out - expected).abs().max())


def time_decode(
    rounds: int = 5, latent: tuple[int, int, int] = (3, 12, 16), config: VAEConfig = REAL_VAE
) -> tuple[Pairs, float]:
    """Decoding a latent of T h w (9 frames of 96 x 128 pixels), float32, in the same chunks; and the largest
    difference from diffusers'."""
    ours = CogVideoXVAE(config).requires_grad_(False)
    random_(ours)
    theirs = diffusers_vae(ours.config)
    theirs.load_state_dict(ours.state_dict())
    z = torch.randn(1, 16, *latent, generator=torch.Generator().manual_seed(0))
    pairs, out, expected = interleaved(lambda: ours.decode(z), lambda: decode_in_the_authors_chunks(theirs, z), rounds)
    return pairs, float((out - expected).abs().max())


def decode_in_the_authors_chunks(vae, z: torch.Tensor) -> torch.Tensor:
    """diffusers' decoder, the first latent frame alone and then two at a time."""
    cache, parts = None, []
    for start, end in ((0, 1), *((i, i + 2) for i in range(1, z.shape[2], 2))):
        part, cache = vae.decoder(z[:, :, start:end], conv_cache=cache)
        parts.append(part)
    return torch.cat(parts, dim=2)

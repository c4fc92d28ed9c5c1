"""Seconds of ours over seconds of a peer's, and what loading takes.

Runs are interleaved in one process and compared pair by pair, so that a noisy machine disturbs both sides alike.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import torch

from ..model_loading.files.checkpoint import open_checkpoint
from ..model_loading.networks.config import TransformerConfig
from ..model_loading.networks.transformer import CogVideoXTransformer
from ..model_loading.networks.vae import CogVideoXVAE, VAEConfig
from ..model_loading.standalone import load_transformer
from ..sampling.schedule import NoiseSchedule
from ..training.tasks.hub import FILES, save_weights, write_configs
from .traced import diffusers_transformer, diffusers_vae, random_state

RUN = Path(__file__).resolve().parent / "run.py"
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
    ours.load_state_dict(random_state(ours))
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
    ours.load_state_dict(random_state(ours))
    theirs = diffusers_vae(ours.config)
    theirs.load_state_dict(ours.state_dict())
    z = torch.randn(1, 16, *latent, generator=torch.Generator().manual_seed(0))
    pairs, out, expected = interleaved(lambda: ours.decode(z), lambda: decode_in_chunks(theirs, z), rounds)
    return pairs, float((out - expected).abs().max())


def decode_in_chunks(vae, z: torch.Tensor) -> torch.Tensor:
    """diffusers' decoder, the first latent frame alone and then two at a time."""
    cache, parts = None, []
    for start, end in ((0, 1), *((i, i + 2) for i in range(1, z.shape[2], 2))):
        part, cache = vae.decoder(z[:, :, start:end], conv_cache=cache)
        parts.append(part)
    return torch.cat(parts, dim=2)


SMALL = TransformerConfig(num_attention_heads=12, num_layers=12, in_channels=33, use_rotary_positional_embeddings=True)
ROUNDS = 5


def anonymous_bytes(process: int | str = "self") -> int:
    """Memory of a process that belongs to no file, by the process's id: RssAnon."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure_loading(folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Load a model folder: anonymous bytes over the file's size, and seconds over those of reading the mapped file.

    Seconds are the median of interleaved pairs. ``python benchmarks/run.py load`` prints this for `loading_apart`.
    """
    from safetensors.torch import load_file

    file = folder / FILES["transformer"]

    def read_mapped() -> None:
        for tensor in load_file(file).values():
            torch.isfinite(tensor.sum())  # reads every page

    def load() -> CogVideoXTransformer:
        return load_transformer(open_checkpoint(folder), dtype)

    load()  # what is imported and made once in a process
    before = anonymous_bytes()
    pairs = [(seconds(load), seconds(read_mapped)) for _ in range(ROUNDS)]
    model = load()
    share = (anonymous_bytes() - before) / file.stat().st_size
    del model
    return {"anonymous": share, "seconds": median(taken / raw for taken, raw in pairs)}


def seconds(run: Callable) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def write_folder(folder: Path, config: TransformerConfig) -> None:
    """A transformer's folder in bf16, filled with one repeated block of numbers."""
    write_configs(folder, config, VAEConfig(), NoiseSchedule())
    state = CogVideoXTransformer(config, device="meta").state_dict()
    numbers = torch.randn(max(value.numel() for value in state.values()), dtype=torch.bfloat16) * 0.02
    state = {key: numbers[: value.numel()].view(value.shape).clone() for key, value in state.items()}
    save_weights(folder / FILES["transformer"], state, torch.bfloat16)


def loading_apart(config: TransformerConfig) -> dict[str, dict[str, float]]:
    """A file of bf16 loaded as it is, and cast to fp8, each in a fresh process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder, config)
        found = {}
        for what, dtype in (("as it is", "bfloat16"), ("cast to fp8", "float8_e4m3fn")):
            command = [sys.executable, str(RUN), "load", str(folder), dtype]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            found[what] = json.loads(answer.stdout)
        return found

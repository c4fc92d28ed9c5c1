"""From draws to tensors.

Everything random about a sample comes from the seed and the sample's running number. So a resumed run and a run in
several processes see the same samples.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import TypedDict

import torch
from torch.utils.data import DataLoader, Dataset

from ...sampling.geometry import SPATIAL_COMPRESSION, frames_to_latent_t
from .buckets import Draw
from .clips import Clips
from .masks import choose_kind, random_mask

LATENT_CHANNELS = 16
# Logarithm of the noise on a reference video, as in VideoX-Fun's trainer: mean and standard deviation.
REFERENCE_NOISE_LOG = -3.0, 0.5


class Batch(TypedDict):
    """The input of a task: B clips with R noises each."""

    video: torch.Tensor  # B F H W 3, 0..1
    mask: torch.Tensor  # B F H W, 1 = generate
    captions: list[str]
    noise: torch.Tensor  # B R 16 t h w
    time: torch.Tensor  # B R, uniform in 0..1: how far along the schedule
    chance: torch.Tensor  # B, uniform in 0..1, for random choices of a task
    reference_noise: torch.Tensor  # B, log-normal: for models whose configuration asks for noise on known pixels
    reference_seed: torch.Tensor  # B, the seed of that noise


def make_sample(draw: Draw, clips: Clips, seed: int, masks: Mapping[str, float], noises: int) -> dict:
    """One clip with its mask, noises, times and chance, for `collate`."""
    rng = random.Random(f"sample {seed} {draw.number}")  # noqa: S311 - not for secrets
    generator = torch.Generator().manual_seed(rng.getrandbits(62))
    width, height, length = draw.bucket.width, draw.bucket.height, draw.bucket.length
    latent = frames_to_latent_t(length), height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION
    mask = random_mask(choose_kind(masks, rng), length, height, width, rng)
    chance = rng.random()
    noise = torch.randn(noises, LATENT_CHANNELS, *latent, generator=generator)
    time = torch.rand(noises, generator=generator)
    mean, deviation = REFERENCE_NOISE_LOG
    reference_noise = torch.exp(mean + deviation * torch.randn((), generator=generator))
    reference_seed = torch.randint(2**62, (), generator=generator)
    video, caption = clips.clip(draw.index, draw.bucket, rng)
    return {
        "video": video,
        "mask": mask,
        "captions": caption,
        "noise": noise,
        "time": time,
        "chance": torch.tensor(chance),
        "reference_noise": reference_noise,
        "reference_seed": reference_seed,
    }


def collate(samples: list[dict]) -> Batch:
    stacked = {key: [sample[key] for sample in samples] for key in samples[0]}
    return {key: value if key == "captions" else torch.stack(value) for key, value in stacked.items()}


class Samples(Dataset):
    """The samples of a phase, by `Draw`: see `make_sample`."""

    def __init__(self, clips: Clips, seed: int, masks: Mapping[str, float], noises: int = 1):
        self.clips, self.seed, self.masks, self.noises = clips, seed, masks, noises

    def __getitem__(self, draw: Draw) -> dict:
        return make_sample(draw, self.clips, self.seed, self.masks, self.noises)


def load(samples: Dataset, draws: Iterable[list[Draw]], workers: int = 0) -> Iterator[Batch]:
    """A `Batch` for every list of draws, in their order.

    Args:
        workers: processes that make samples ahead of time; 0 makes them when they are asked for.
    """
    own = torch.Generator()  # for the workers' seeds, which nothing uses: the global one stays as it is
    return iter(DataLoader(samples, batch_sampler=draws, collate_fn=collate, num_workers=workers, generator=own))

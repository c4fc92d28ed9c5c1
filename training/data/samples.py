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
from .buckets import Bucket, Draw
from .clips import Clips
from .control import EDGES, THRESHOLDS, draw_edges
from .masks import choose_kind, random_mask

LATENT_CHANNELS = 16
# Logarithm of the noise on a reference video, as in VideoX-Fun's trainer: mean and standard deviation.
REFERENCE_NOISE_LOG = -3.0, 0.5


class Batch(TypedDict, total=False):
    """The input of a task: B clips with R noises each. Only Control training has a control video."""

    video: torch.Tensor  # B F H W 3, 0..1
    mask: torch.Tensor  # B F H W, 1 = generate
    control: torch.Tensor  # B F H W 3, 0..1: see `Samples`
    captions: list[str]
    noise: torch.Tensor  # B R 16 t h w
    time: torch.Tensor  # B R, uniform in 0..1: how far along the schedule
    chance: torch.Tensor  # B, uniform in 0..1, for random choices of a task
    reference_noise: torch.Tensor  # B, log-normal: for models whose configuration asks for noise on known pixels
    reference_seed: torch.Tensor  # B, the seed of that noise


def generators(seed: int, number: int) -> tuple[random.Random, torch.Generator]:
    """The sources of everything random about the sample of a number."""
    rng = random.Random(f"sample {seed} {number}")  # noqa: S311 - not for secrets
    return rng, torch.Generator().manual_seed(rng.getrandbits(62))


def latent_shape(bucket: Bucket) -> tuple[int, int, int, int]:
    """16 t h w."""
    t, h, w = frames_to_latent_t(bucket.length), bucket.height, bucket.width
    return LATENT_CHANNELS, t, h // SPATIAL_COMPRESSION, w // SPATIAL_COMPRESSION


def noise_and_time(bucket: Bucket, noises: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """The first values of a sample's generator: noise R 16 t h w, and time R."""
    noise = torch.randn(noises, *latent_shape(bucket), generator=generator)
    return {"noise": noise, "time": torch.rand(noises, generator=generator)}


def make_sample(
    draw: Draw,
    clips: Clips,
    seed: int,
    masks: Mapping[str, float],
    noises: int,
    control: str = "",
    thresholds: tuple[float, float] = THRESHOLDS,
) -> dict:
    """One clip with its mask, noises, times and chance, for `collate`."""
    rng, generator = generators(seed, draw.number)
    width, height, length = draw.bucket.width, draw.bucket.height, draw.bucket.length
    mask = random_mask(choose_kind(masks, rng), length, height, width, rng)
    chance = rng.random()
    noised = noise_and_time(draw.bucket, noises, generator)
    mean, deviation = REFERENCE_NOISE_LOG
    reference_noise = torch.exp(mean + deviation * torch.randn((), generator=generator))
    reference_seed = torch.randint(2**62, (), generator=generator)
    controls = {}
    if control and control != EDGES:
        video, caption, controls["control"] = clips.controlled(draw.index, draw.bucket, rng)
    else:
        video, caption = clips.clip(draw.index, draw.bucket, rng)
    if control == EDGES:
        controls["control"] = draw_edges(video, thresholds)
    return {
        "video": video,
        **controls,
        "mask": mask,
        "captions": caption,
        **noised,
        "chance": torch.tensor(chance),
        "reference_noise": reference_noise,
        "reference_seed": reference_seed,
    }


def collate(samples: list[dict]) -> Batch:
    stacked = {key: [sample[key] for sample in samples] for key in samples[0]}
    return {key: value if key == "captions" else torch.stack(value) for key, value in stacked.items()}


class Samples(Dataset):
    """The samples of a phase, by `Draw`: see `make_sample`.

    Args:
        control: the kind of control video: "" for none, `EDGES` draws it from the clip, and others are read by the
            ``clips``, which have been opened for this kind.
        thresholds: of `EDGES`, see `draw_edges`.
    """

    def __init__(
        self,
        clips: Clips,
        seed: int,
        masks: Mapping[str, float],
        noises: int = 1,
        control: str = "",
        thresholds: tuple[float, float] = THRESHOLDS,
    ):
        self.clips, self.seed, self.masks, self.noises = clips, seed, masks, noises
        self.control, self.thresholds = control, thresholds

    def __getitem__(self, draw: Draw) -> dict:
        what = self.clips, self.seed, self.masks, self.noises, self.control, self.thresholds
        return make_sample(draw, *what)


def load(samples: Dataset, draws: Iterable[list[Draw]], workers: int = 0) -> Iterator[Batch]:
    """A `Batch` for every list of draws, in their order.

    An error in a worker process is raised here, with its traceback. Where there is a GPU, the batches are in pinned
    memory, from which they are copied there without waiting.

    Args:
        workers: processes that make samples ahead of time, one batch each (a batch of long clips has 10 GB and more),
            with one thread of PyTorch each. They live until the iterator is deleted. 0 makes samples when they are
            asked for.
    """
    own = torch.Generator()  # for the workers' seeds, which nothing uses: the global one stays as it is
    options = {"num_workers": workers, "prefetch_factor": 1 if workers else None, "generator": own}
    return iter(
        DataLoader(samples, batch_sampler=draws, collate_fn=collate, pin_memory=torch.cuda.is_available(), **options)
    )

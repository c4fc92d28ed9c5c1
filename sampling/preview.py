"""Pictures of latents for the previews that a sampler shows while it works, and how long these may take."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F

from .geometry import FRAMES_PER_SECOND

FACTORS, BIAS = "latent_rgb_factors", "latent_rgb_factors_bias"  # what a VAE's configuration may hold


class PreviewFactors(NamedTuple):
    """From scaled latents to RGB of -1..1: three factors per latent channel, and three numbers that are added."""

    factors: list[list[float]]
    bias: list[float]

    @classmethod
    def from_config(cls, values: Mapping) -> "PreviewFactors":
        """Those of a VAE's configuration, or the published ones if it has none."""
        return cls(values[FACTORS], values[BIAS]) if FACTORS in values else PUBLISHED

    def to_config(self) -> dict:
        return {FACTORS: self.factors, BIAS: self.bias}


# For CogVideoX's latent space, from ComfyUI-CogVideoXWrapper's latent preview; how they were fitted is not published.
PUBLISHED = PreviewFactors(
    [
        [0.1195, 0.0992, -0.0048], [-0.0012, 0.0550, 0.0213], [-0.0141, -0.0087, -0.0210], [0.0306, 0.1219, 0.0140],
        [0.0927, 0.0303, 0.0508], [0.0379, 0.0494, 0.0586], [0.0177, 0.0088, 0.0360], [0.1061, 0.0234, 0.0572],
        [0.1274, -0.0110, 0.0433], [-0.0187, 0.0822, 0.1061], [0.0084, 0.0762, 0.0930], [0.1294, 0.1236, 0.0448],
        [0.0457, 0.0411, -0.0177], [0.0002, -0.0140, 0.0533], [0.0808, 0.1155, -0.0215], [-0.0152, -0.0058, 0.0722],
    ],
    [0.0, 0.0, 0.0],
)  # fmt: skip

SHARE = 0.05  # of the time of sampling that previews may take


def rgb_frames(latents: torch.Tensor, factors: PreviewFactors) -> torch.Tensor:
    """Scaled latents C T h w as coarse pictures T 3 h w of 0..1, one for each latent frame."""
    matrix, bias = (torch.tensor(values, device=latents.device) for values in factors)
    rgb = torch.einsum("cthw,cr->trhw", latents.float(), matrix) + bias[:, None, None]
    return (rgb + 1) / 2


def to_pictures(frames: torch.Tensor, largest: int) -> torch.Tensor:
    """Frames F 3 H W of 0..1 as pictures F H W 3, uint8, on the CPU, made smaller than ``largest`` x ``largest``."""
    height, width = frames.shape[2:]
    scale = largest / max(height, width)
    if scale < 1:
        size = [max(round(side * scale), 1) for side in (height, width)]
        frames = F.interpolate(frames.float(), size, mode="area")
    frames = (frames.clamp(0, 1) * 255).round().to(torch.uint8)
    return frames.movedim(1, -1).cpu()  # FCHW -> FHWC


def durations(frames: int, latent_t: int) -> list[int]:
    """Milliseconds of each picture of a clip of ``latent_t`` latent frames, so that it lasts as long as the clip.

    A picture stands for one frame, or for a latent frame if there are only as many: the first has one frame, each of
    the others has four.
    """
    one = 1000 // FRAMES_PER_SECOND
    return [one] + [one * (4 if frames == latent_t else 1)] * (frames - 1)


class Budget:
    """Keeps the time that previews take below a share of the time of sampling, from now on.

    Args:
        clock: seconds.
    """

    def __init__(self, share: float = SHARE, clock: Callable[[], float] = time.monotonic):
        self.share, self.clock = share, clock
        self.started = clock()
        self.spent = 0.0
        self.count = 0

    @property
    def elapsed(self) -> float:
        return self.clock() - self.started

    def allows(self, seconds: float) -> bool:
        """Whether a preview that costs ``seconds`` stays within the share."""
        return self.spent + seconds <= self.share * self.elapsed

    @contextlib.contextmanager
    def spending(self) -> Iterator[None]:
        """Measure a preview."""
        before = self.clock()
        yield
        self.spent += self.clock() - before
        self.count += 1

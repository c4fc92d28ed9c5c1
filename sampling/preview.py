"""Latents to RGB by a matrix, for the picture that a sampler shows while it works."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

# What a VAE's configuration may hold.
CHANNELS = 16  # of every CogVideoX latent
FACTORS, BIAS = "latent_rgb_factors", "latent_rgb_factors_bias"


class PreviewFactors(NamedTuple):
    """From scaled latents to RGB of -1..1: a row of three per latent channel, and what is added to their sum."""

    factors: list[list[float]]
    bias: list[float]

    @classmethod
    def from_config(cls, values: Mapping) -> "PreviewFactors | None":
        """Those of a VAE's configuration, if it has any.

        Raises:
            ValueError: not three numbers a channel.
        """
        if FACTORS not in values:
            return None
        factors, bias = values[FACTORS], values.get(BIAS, [0.0, 0.0, 0.0])
        try:
            if len(factors) != CHANNELS or any(len(row) != 3 for row in (*factors, bias)):
                raise ValueError(
                    f"expected {CHANNELS} rows of 3 numbers and a row of 3: remove both, or fit them again"
                )
            return cls([[float(value) for value in row] for row in factors], [float(value) for value in bias])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{FACTORS} or {BIAS} in the VAE's configuration can't be read ({error})") from error

    def to_config(self) -> dict:
        return {FACTORS: self.factors, BIAS: self.bias}


# CogVideoX's own latent space. As listed for 16 channels in ComfyUI-CogVideoXWrapper's latent preview; how they were
# fitted is not published.
PUBLISHED = PreviewFactors(
    [
        [0.1195, 0.0992, -0.0048],
        [-0.0012, 0.0550, 0.0213],
        [-0.0141, -0.0087, -0.0210],
        [0.0306, 0.1219, 0.0140],
        [0.0927, 0.0303, 0.0508],
        [0.0379, 0.0494, 0.0586],
        [0.0177, 0.0088, 0.0360],
        [0.1061, 0.0234, 0.0572],
        [0.1274, -0.0110, 0.0433],
        [-0.0187, 0.0822, 0.1061],
        [0.0084, 0.0762, 0.0930],
        [0.1294, 0.1236, 0.0448],
        [0.0457, 0.0411, -0.0177],
        [0.0002, -0.0140, 0.0533],
        [0.0808, 0.1155, -0.0215],
        [-0.0152, -0.0058, 0.0722],
    ],
    [0.0, 0.0, 0.0],
)


def latent_pixels(video: torch.Tensor, latent_h: int, latent_w: int) -> torch.Tensor:
    """The frames that begin a latent frame, at the latent's size. F H W 3 of 0..1 -> T h w 3 of -1..1."""
    first = torch.cat([video[:1], video[1::4]])  # a latent frame stands for one frame, then for four each
    small = F.interpolate(first.movedim(-1, 1), (latent_h, latent_w), mode="area")
    return small.movedim(1, -1) * 2 - 1


def fit_preview(latents: Sequence[torch.Tensor], videos: Sequence[torch.Tensor]) -> PreviewFactors:
    """The matrix whose pictures are nearest to the videos, by least squares.

    Args:
        latents: scaled, C T h w each.
        videos: what they were encoded from, F H W 3 of 0..1 each.
    """
    seen = torch.cat([latent.movedim(0, -1).flatten(0, -2) for latent in latents])
    wanted = torch.cat([latent_pixels(v, *x.shape[2:]).flatten(0, -2) for v, x in zip(videos, latents, strict=True)])
    seen = torch.cat([seen, torch.ones(len(seen), 1)], dim=1)
    solved = torch.linalg.lstsq(seen.double(), wanted.double()).solution
    rows = [[round(value, 5) for value in row] for row in solved.tolist()]
    return PreviewFactors(rows[:-1], rows[-1])

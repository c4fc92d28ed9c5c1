"""Fit the matrix that shows a VAE's latents as pictures while a sampler works."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ...sampling.preview import PreviewFactors


def latent_pixels(video: torch.Tensor, latent_h: int, latent_w: int) -> torch.Tensor:
    """The first frame of each latent frame, at the latent's size. F H W 3 of 0..1 -> T h w 3 of -1..1."""
    first = torch.cat([video[:1], video[1::4]])  # the first latent frame stands for one frame, the others for four
    small = F.interpolate(first.movedim(-1, 1), (latent_h, latent_w), mode="area")
    return small.movedim(1, -1) * 2 - 1


def fit_preview(latents: Sequence[torch.Tensor], videos: Sequence[torch.Tensor]) -> PreviewFactors:
    """The matrix whose pictures are closest to the videos, by least squares.

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

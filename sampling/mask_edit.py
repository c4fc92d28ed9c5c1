"""Masks made larger, smaller, softer or the other way round, with kornia."""

import math

import torch

from .libraries import import_kornia
from .masks import as_frames

MAX_STEP = 32  # pixels that a mask grows at once: kornia needs as many copies of a frame as its kernel has pixels


def adjust_mask(mask: torch.Tensor, grow: int = 0, blur: float = 0.0, invert: bool = False) -> torch.Tensor:
    """Invert, then grow, then blur a mask, each frame on its own.

    Args:
        mask: F H W (or H W, F 1 H W), 0..1, 1 = generate.
        grow: pixels by which what is generated grows in every direction, by a square; negative shrinks it.
        blur: sigma of a Gaussian in pixels, 0 or more.

    Returns:
        F H W, 0..1.

    Raises:
        ValueError: blur is negative, or the mask no mask.
    """
    if blur < 0:
        raise ValueError(f"blur is {blur}, expected 0 or more pixels")
    mask = as_frames(mask).clamp(0, 1)
    if invert:
        mask = 1 - mask
    if not grow and not blur:
        return mask
    still = len(mask) > 1 and torch.equal(mask, mask[:1].expand_as(mask))  # one mask over a whole video
    frames = [blurred(grown(frame[None, None], grow), blur)[0, 0] for frame in (mask[:1] if still else mask)]
    return frames[0].expand_as(mask).clone() if still else torch.stack(frames)


def grown(frame: torch.Tensor, pixels: int) -> torch.Tensor:
    """A B 1 H W mask dilated by a square of 2 ``pixels`` + 1, or eroded where ``pixels`` is negative."""
    morphology = import_kornia().morphology
    change, left = (morphology.dilation if pixels > 0 else morphology.erosion), abs(pixels)
    while left:
        step = min(left, MAX_STEP)
        for kernel in (torch.ones(1, 2 * step + 1), torch.ones(2 * step + 1, 1)):  # a square, one side at a time
            frame = change(frame, kernel.to(frame))
        left -= step
    return frame


def blurred(frame: torch.Tensor, sigma: float) -> torch.Tensor:
    """A B 1 H W mask under a Gaussian cut at three sigma; beyond its edge it goes on as it ends."""
    if not sigma:
        return frame
    size = 2 * math.ceil(3 * sigma) + 1
    return (
        import_kornia()
        .filters.gaussian_blur2d(frame, (size, size), (sigma, sigma), border_type="replicate")
        .clamp(0, 1)
    )

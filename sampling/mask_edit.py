"""Masks made larger, smaller, softer or the other way round."""

import math

import torch
import torch.nn.functional as F

from .libraries import import_kornia
from .masks import as_frames

MAX_GROW = 512  # pixels
MAX_BLUR = 128.0  # sigma in pixels


def adjust_mask(
    mask: torch.Tensor, grow: int = 0, blur: float = 0.0, invert: bool = False, on_progress=None
) -> torch.Tensor:
    """Invert, then grow, then blur a mask, each frame on its own.

    Args:
        mask: F H W (or H W, F 1 H W), 0..1, 1 = generate.
        grow: pixels by which what is generated grows in every direction, by a square; negative shrinks it.
        blur: sigma of a Gaussian in pixels, 0 or more.
        on_progress: called with (done, total) before each frame, to report progress or to interrupt.

    Returns:
        F H W, 0..1.

    Raises:
        ValueError: grow or blur is out of range, or the mask no mask.
    """
    if not -MAX_GROW <= grow <= MAX_GROW:
        raise ValueError(f"grow is {float(grow):g}, expected -{MAX_GROW} to {MAX_GROW} pixels")
    if not 0 <= blur <= MAX_BLUR:
        raise ValueError(f"blur is {float(blur):g}, expected 0 to {MAX_BLUR:g} pixels")
    mask = as_frames(mask).clamp(0, 1)
    if invert:
        mask = 1 - mask
    if not grow and not blur:
        return mask
    still = len(mask) > 1 and torch.equal(mask, mask[:1].expand_as(mask))  # one mask over a whole video
    frames = []
    for index, frame in enumerate(mask[:1] if still else mask):
        if on_progress is not None:
            on_progress(index, 1 if still else len(mask))
        frames.append(blurred(grown(frame[None, None], grow), blur)[0, 0])
    return frames[0].expand_as(mask).clone() if still else torch.stack(frames)


def grown(frame: torch.Tensor, pixels: int) -> torch.Tensor:
    """A B 1 H W mask dilated by a square of 2 ``pixels`` + 1, or eroded where ``pixels`` is negative."""
    if pixels < 0:
        return -grown(-frame, -pixels)
    for axis in (2, 3) if pixels else ():
        frame = largest_around(frame, pixels, axis)
    return frame


def largest_around(x: torch.Tensor, pixels: int, axis: int) -> torch.Tensor:
    """The largest value within ``pixels`` on either side along an axis, by windows that double in size."""
    padding = [0, 0] * (x.ndim - 1 - axis) + [pixels, pixels]
    x = F.pad(x, padding, value=-math.inf)
    window, wanted = 1, 2 * pixels + 1
    while window < wanted:
        step = min(window, wanted - window)
        rest = x.shape[axis] - step
        x = torch.maximum(x.narrow(axis, 0, rest), x.narrow(axis, step, rest))
        window += step
    return x


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

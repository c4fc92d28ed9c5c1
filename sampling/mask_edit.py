"""Grow, shrink, blur and invert masks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .libraries import import_library
from .masks import as_frames

MAX_GROW = 512  # pixels
MAX_BLUR = 128.0  # sigma in pixels


def adjust_mask(mask: Tensor, grow: int = 0, blur: float = 0.0, invert: bool = False, on_progress=None) -> Tensor:
    """Invert, then grow, then blur each frame of a mask.

    Args:
        mask: F H W (or H W, F 1 H W), 0..1, 1 = generate.
        grow: how many pixels the generated region grows in every direction; negative values shrink it.
        blur: sigma of a Gaussian blur in pixels.
        on_progress: called with (done, total) before each frame, to report progress or to interrupt.

    Returns:
        F H W, 0..1.

    Raises:
        ValueError: grow or blur is out of range, or the mask has no shape of a mask.
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
    still = len(mask) > 1 and torch.equal(mask, mask[:1].expand_as(mask))  # the same mask for every frame
    frames = []
    for index, frame in enumerate(mask[:1] if still else mask):
        if on_progress is not None:
            on_progress(index, 1 if still else len(mask))
        frames.append(blurred(grown(frame[None, None], grow), blur)[0, 0])
    return frames[0].expand_as(mask).clone() if still else torch.stack(frames)


def grown(frame: Tensor, pixels: int) -> Tensor:
    """A B 1 H W mask dilated by a square of 2 ``pixels`` + 1, or eroded where ``pixels`` is negative.

    The maximum over columns and then over rows, of a window that doubles: kornia's dilation takes a kernel of the
    whole square, a million values at most.
    """
    if pixels < 0:
        return -grown(-frame, -pixels)
    frame = F.pad(frame, (pixels,) * 4, value=-math.inf)
    for axis in (2, 3):
        covered, size = 1, 2 * pixels + 1
        while covered < size:
            step = min(covered, size - covered)
            length = frame.shape[axis] - step
            frame = torch.maximum(frame.narrow(axis, 0, length), frame.narrow(axis, step, length))
            covered += step
    return frame


def blurred(frame: Tensor, sigma: float) -> Tensor:
    """A B 1 H W mask under a Gaussian cut off at three sigma; the edge pixels repeat beyond the picture's edge."""
    if not sigma:
        return frame
    size = 2 * math.ceil(3 * sigma) + 1
    gaussian_blur = import_library("kornia").filters.gaussian_blur2d
    return gaussian_blur(frame, (size, size), (sigma, sigma), border_type="replicate").clamp(0, 1)

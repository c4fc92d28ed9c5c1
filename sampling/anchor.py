"""Bring the colours, the contrast and the sharpness of a long video's rounds back to those of the first one."""

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from .clips import check_same_size
from .composite import check_strength, parts, recolored
from .libraries import import_library

log = logging.getLogger(__name__)

STILL = 0.03  # standard deviation of a pixel over time, of 0..1: compression and grain stay below, motion does not
LEAST_STILL = 0.1  # share of the picture: less may be chance, and does not show the colours of the whole
SAME = 0.1  # how far a still pixel may be from the first round's: drift stays below, another object does not
SIZE, SIGMA = 5, 1.0  # pixels, of the blur that tells what detail is
MOST_SHARPENING = 1.5  # times the detail that is added: more of it makes halos
INVISIBLE = 1 / 255  # root mean square of detail: so little may be added, where the first round has none


def anchored(video: Tensor, first: Tensor, strength: float = 1.0, on_progress: Callable | None = None) -> Tensor:
    """Match the colours of a round of a long video to those of the first one, and bring back lost sharpness.

    Mean and contrast of L, a and b are matched, as in `composite`, and measured over the pixels that stand still in
    both rounds and show about the same in both. Where the camera moves or the scene changes there are too few of them,
    and the round stays as it is. A round is never made less sharp.

    Args:
        video, first: F H W 3, 0..1, of one size.
        strength: 0 leaves the round as it is, 1 matches it.
        on_progress: called with (done, total), to report progress or to interrupt.

    Returns:
        F H W 3, 0..1; ``video`` itself where it stays as it is.

    Raises:
        ValueError: the sizes differ, or strength is outside 0..1.
    """
    check_strength(strength)
    check_same_size(first, video, "the first round", "the round")
    if strength == 0:
        return video
    (variance, mean), (first_variance, first_mean) = (torch.var_mean(clip, 0, correction=0) for clip in (video, first))
    still = torch.maximum(variance, first_variance).amax(-1) < STILL**2
    stays = still & ((mean - first_mean).abs().amax(-1) < SAME)
    share = float(stays.float().mean())
    if share < LEAST_STILL:
        log.info("%.1f %% of the picture stands still, too little to match: colours and sharpness stay", 100 * share)
        return video
    moves = (~stays).float().expand(max(len(video), len(first)), -1, -1)
    matched = recolored(video, first, moves, 1.0, on_progress).clamp_(0, 1)
    amount = lost_sharpness(matched, first, stays)
    for part in parts(len(video)):
        sharp = (matched[part] + amount * detail(matched[part])).clamp(0, 1)
        matched[part] = torch.lerp(video[part], sharp, strength)
    return matched


def lost_sharpness(video: Tensor, first: Tensor, still: Tensor) -> float:
    """How much of its `detail` a round lacks: with so many times of it added, it is as sharp as the first one.

    All pixels are measured, since many scenes have edges only where something moves. But what stands still never gets
    more detail than it has in the first round: if a sharp object leaves the picture, nothing else is sharpened for it.

    Args:
        video, first: F H W 3, 0..1.
        still: H W, where both show the same.

    Returns:
        0 to `MOST_SHARPENING`; 0 if nothing was lost.
    """
    (ours, mixed, added), (wanted, _, _) = slopes(video), slopes(first)
    if ours >= wanted or not added:
        return 0.0
    amount = (math.sqrt(mixed**2 + added * (wanted - ours)) - mixed) / added
    inner = max_pool2d((~still).float()[None], SIZE, 1, SIZE // 2)[0] == 0  # whose detail is of still pixels alone
    if not inner.any():
        return 0.0
    has, had = (float(detail(clip.mean(0, keepdim=True))[0, inner].square().mean().sqrt()) for clip in (video, first))
    limit = max(had, INVISIBLE) / has - 1 if has else MOST_SHARPENING
    return min(max(min(amount, limit), 0.0), MOST_SHARPENING)


def slopes(video: Tensor) -> tuple[float, float, float]:
    """Mean products of the differences of neighbouring pixels: of a video by itself, by its `detail`, and of that."""
    products = torch.zeros(3, dtype=torch.float64)
    for part in parts(len(video)):
        grey, fine = (frames.float().mean(-1) for frames in (video[part], detail(video[part])))
        for axis in (1, 2):
            a, b = grey.diff(dim=axis), fine.diff(dim=axis)
            means = ((x * y).mean(dim=(1, 2)).sum().cpu() for x, y in ((a, a), (a, b), (b, b)))
            products += torch.stack(list(means)).double()
    ours, mixed, added = (products / len(video)).tolist()
    return ours, mixed, added


def detail(frames: Tensor) -> Tensor:
    """What a small blur takes away from frames F H W 3: most of an edge, little of a gradient."""
    blur = import_library("kornia").filters.gaussian_blur2d
    blurred = blur(frames.movedim(-1, 1).float(), (SIZE, SIZE), (SIGMA, SIGMA), "replicate")  # kornia wants B C H W
    return frames - blurred.movedim(1, -1).to(frames)

"""Bring the colours, the contrast and the sharpness of a long video's rounds back to those of the first one."""

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from .clips import check_same_size
from .composite import COLOR_PASSES, check_strength, parts, recolored
from .libraries import import_library

log = logging.getLogger(__name__)

STILL = 0.03  # standard deviation of a pixel over time, of 0..1: compression and grain stay below, motion does not
LEAST_STILL = 0.1  # share of the picture: less may be chance, and does not show the colours of the whole
SAME = 0.1  # how far a still pixel may be from the first round's: drift stays below, another object does not
SIZE, SIGMA = 5, 1.0  # pixels, of the blur that tells what detail is
MOST_SHARPENING = 1.5  # times the detail that is added: more of it makes halos
INVISIBLE = 1 / 255  # of detail: so much may be added, where the first round has none
PASSES = COLOR_PASSES + 3  # over the frames: two more to measure sharpness, one to bring it back


def anchored(video: Tensor, first: Tensor, strength: float = 1.0, on_progress: Callable | None = None) -> Tensor:
    """Match the colours of a round of a long video to those of the first one, and bring back lost sharpness.

    Mean and contrast of L, a and b are matched, as in `composite`, and measured over the pixels that stand still in
    both rounds and show about the same in both. Where the camera moves or the scene changes there are too few of them,
    and the round stays as it is. Detail is added, see `lost_sharpness`, and never taken away.

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
    matched = recolored(video, first, moves, 1.0, on_progress, PASSES).clamp_(0, 1)
    amount, room = lost_sharpness(matched, first, still, on_progress)
    for part in parts(len(video), on_progress, PASSES - 1, PASSES):
        sharp = matched[part]
        if amount:
            sharp = (sharp + (amount * detail(sharp)).clamp(-room, room)).clamp(0, 1)
        matched[part] = torch.lerp(video[part], sharp, strength).clamp(0, 1)
    return matched


def lost_sharpness(
    video: Tensor, first: Tensor, still: Tensor, on_progress: Callable | None = None
) -> tuple[float, Tensor]:
    """How much of its `detail` a round lacks: with so many times of it added, it is as sharp as the first one.

    All pixels are measured, since many scenes have edges only where something moves. What stands still sets limits:
    it gets no more detail than it has in the first round, or what can't be seen. So if a sharp object leaves the
    picture, nothing else is sharpened for it.

    Args:
        video, first: F H W 3, 0..1.
        still: H W, the pixels that stand still in both.
        on_progress: see `anchored`.

    Returns:
        0 to `MOST_SHARPENING`, 0 if nothing was lost; and H W 3, the most that may be added to each pixel.
    """
    mean, first_mean = (clip.mean(0, keepdim=True) for clip in (video, first))
    has, had = detail(mean)[0], detail(first_mean)[0]
    # blurred, since lost sharpness is no other object; and detail is that of a pixel's neighbours, too
    same = (mean[0] - has - first_mean[0] + had).abs().amax(-1) < SAME
    inner = max_pool2d((~(still & same)).float()[None], SIZE, 1, SIZE // 2)[0] == 0
    room = (had.abs() + INVISIBLE - has.abs()).clamp(min=0)
    room[~inner] = math.inf
    if inner.float().mean() < LEAST_STILL:
        return 0.0, room
    twice = detail(has[None])[0]
    squares = [float((a * b)[inner].mean()) for a, b in ((has, has), (has, twice), (twice, twice))]
    limit = times_added(squares, max(float(had[inner].square().mean()), INVISIBLE**2))
    amount = min(times_added(*slope_squares(video, first, on_progress)), limit)
    return min(amount, MOST_SHARPENING), room


def times_added(squares: Sequence[float], wanted: float) -> float:
    """How many times y is added to x until the mean square of the sum is ``wanted``; 0 if that of x is enough.

    Args:
        squares: the means of x * x, x * y and y * y.
    """
    x, xy, y = squares
    return (math.sqrt(xy**2 + y * (wanted - x)) - xy) / y if x < wanted and y > 0 else 0.0


def slope_squares(video: Tensor, first: Tensor, on_progress: Callable | None) -> tuple[list[float], float]:
    """Mean squares of slopes, for `times_added`: of a round, with its detail's, and of the first round."""
    ours, theirs = torch.zeros(3, dtype=torch.float64), 0.0
    for part in parts(len(video), on_progress, COLOR_PASSES, PASSES):
        x, y = slopes(video[part]), slopes(detail(video[part]))
        ours += torch.stack([x @ x, x @ y, y @ y]).double().cpu()
    for part in parts(len(first), on_progress, COLOR_PASSES + 1, PASSES):
        theirs += float(slopes(first[part]).square().sum())
    return (ours / len(video)).tolist(), theirs / len(first)


def slopes(frames: Tensor) -> Tensor:
    """The differences of neighbouring grey pixels of frames F H W 3, as one row."""
    grey = frames.float().mean(-1)
    return torch.cat([grey.diff(dim=axis).flatten() for axis in (1, 2)])


def detail(frames: Tensor) -> Tensor:
    """What a small blur takes away from frames F H W 3: most of an edge, little of a gradient."""
    blur = import_library("kornia").filters.gaussian_blur2d
    blurred = blur(frames.movedim(-1, 1).float(), (SIZE, SIZE), (SIGMA, SIGMA), "replicate")  # kornia wants B C H W
    return frames - blurred.movedim(1, -1).to(frames)

"""A mask of the first frame that follows the motion of a video."""

from collections.abc import Callable

from torch import Tensor

from .masks import THRESHOLD
from .optical_flow import pixel_grid, read

MISSED = 4.0  # square pixels that a path there and back may miss by, for each frame: errors add up
LOST = 0.1  # share of the first frame's area: with less left, the object is lost


def follow_mask(
    mask: Tensor, length: int, flow: Callable[[int, int], Tensor], on_progress: Callable | None = None
) -> Tensor:
    """Move a mask with the motion of a video.

    The flows between neighbouring frames are added up to one from each frame back to the first, and the mask is read
    there once, so that it is not blurred anew in every frame. What comes into view from behind an object is not part
    of the mask: a pixel counts only if the path from its place in the first frame leads back to it (the
    forward-backward check of Sundaram, Brox and Keutzer 2010, here over all frames). What comes in at an edge of the
    picture continues that edge.

    Args:
        mask: H W, 0..1, that of the first frame.
        length: frames of the video.
        flow: (a, b) -> 2 H W, x and y in pixels: where the pixels of frame a are in frame b, less their own place.
        on_progress: called with (done, total) before each frame, to report progress or to interrupt.

    Returns:
        [length, H, W], 0..1. The first frame is ``mask``.
    """
    mask = mask.float()
    result = mask.repeat(length, 1, 1)
    back = forth = mask.new_zeros(2, *mask.shape)  # to the first frame, and from it
    for frame in range(1, length):
        if on_progress is not None:
            on_progress(frame - 1, length - 1)
        backward, forward = flow(frame, frame - 1), flow(frame - 1, frame)
        here, back, forth = pixel_grid(backward), back.to(backward), forth.to(backward)
        back = backward + read(back, here + backward)
        forth = forth + read(forward, here + forth)
        missed = back + read(forth, here + back)
        returns = missed.square().sum(0) <= MISSED * frame
        result[frame] = read(mask.to(backward)[None], here + back)[0] * returns
    return result


def lost_at(mask: Tensor) -> int | None:
    """The index of the first frame of an F H W mask with less than a tenth of what the first one has, or None."""
    areas = (mask >= THRESHOLD).sum((1, 2))
    lost = (areas < max(1.0, LOST * int(areas[0]))).nonzero()
    return int(lost[0]) if len(lost) else None

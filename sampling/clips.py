"""The frames and the sound of a clip by time: a model's frames per second are seldom those of the clip."""

import logging
import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor

from .masks import check_image

log = logging.getLogger(__name__)

SLACK = 1e-3  # seconds: some files round times to milliseconds, so a frame that begins within one is shown

Frame, Made = TypeVar("Frame"), TypeVar("Made")


def times_within(start: float, end: float, rate: float, length: int) -> list[float]:
    """The times in seconds of up to ``length`` frames at ``rate`` a second, from ``start`` on and before ``end``.

    Raises:
        ValueError: the clip ends before ``start``.
    """
    count = min(length, math.ceil((end - start - SLACK) * rate))
    if count < 1:
        raise ValueError(
            f"start_seconds is {start:g}, but the clip has {end:.2f} seconds: choose a start before its end"
        )
    return [start + i / rate for i in range(count)]


def shown_at(frames: Iterable[tuple[float, Frame]], times: list[float], make: Callable[[Frame], Made]) -> list[Made]:
    """For each time, what is made of the frame that is shown then: the last one that begins at or before it.

    Before the first frame, the first one is shown. Reads no further than needed, and makes something of chosen frames
    only, once each.

    Args:
        frames: with the times at which they begin, in order. At least one.
        times: in order.
    """
    found: list[Made] = []
    shown, made = None, None

    def choose(before: float) -> None:
        nonlocal made
        while len(found) < len(times) and times[len(found)] + SLACK < before:
            made = make(shown) if made is None else made
            found.append(made)

    for begin, frame in frames:
        if shown is not None:
            choose(begin)
        if len(found) == len(times):
            return found
        shown, made = frame, None
    choose(math.inf)
    return found


def sound_within(waveform: Tensor, sample_rate: int, begin: float, start: float, seconds: float) -> Tensor:
    """A part of a sound, silent where the sound has not begun or has ended.

    Args:
        waveform: ... S.
        begin: when the sound begins, in seconds of the clip.
        start, seconds: the part.
    """
    count = round(seconds * sample_rate)
    first = round((start - begin) * sample_rate)
    part = waveform[..., max(first, 0) : max(first + count, 0)]
    before = min(max(-first, 0), count)
    result = waveform.new_zeros(*waveform.shape[:-1], count)
    result[..., before : before + part.shape[-1]] = part
    return result


def join(clip: Tensor, continuation: Tensor, overlap: int) -> Tensor:
    """A clip and what follows it, blended where both show the same: F H W C, of the two lengths less the overlap.

    Args:
        overlap: frames that end the clip and begin its continuation, at most as many as the shorter of them has. The
            first of them is nearly the clip's, the last nearly the continuation's.

    Raises:
        ValueError: they differ in size, or one is no RGB.
    """
    check_same_size(clip, continuation, "clip", "continuation")
    if len(continuation) <= min(overlap, len(clip)):
        log.warning(
            "overlap %d leaves nothing of the continuation, whose length is %d: make it longer, or set overlap to the "
            "start_frames of Start/End Image Mask Builder",
            overlap,
            len(continuation),
        )
    overlap = min(overlap, len(clip), len(continuation))
    share = (torch.arange(1, overlap + 1) / (overlap + 1)).view(-1, 1, 1, 1).to(clip)
    blended = torch.lerp(clip[len(clip) - overlap :], continuation[:overlap].to(clip), share)
    return torch.cat([clip[: len(clip) - overlap], blended, continuation[overlap:].to(clip)])


def check_same_size(one: Tensor, other: Tensor, name: str, other_name: str) -> None:
    """Raise a ValueError unless both are RGB videos, F H W 3, of one size."""
    check_image(one, name)
    check_image(other, other_name)
    if one.shape[1:] != other.shape[1:]:
        (height, width), (other_height, other_width) = one.shape[1:3], other.shape[1:3]
        raise ValueError(
            f"{name} is {width} x {height} and {other_name} {other_width} x {other_height}, expected the same size: "
            "give the nodes that they come from the same width and height"
        )


def rotated(picture: Tensor, degrees: float) -> Tensor:
    """An H W 3 picture turned counter-clockwise by what a file says, to the nearest quarter."""
    return torch.rot90(picture, round(degrees / 90) % 4)

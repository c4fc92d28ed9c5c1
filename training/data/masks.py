"""Random masks: which part of a training clip is known. 1 = generate, 0 = keep."""

import math
import random
from collections.abc import Mapping

import torch

KINDS = ("start", "end", "start_end", "region", "everything", "nothing")  # what is known
# A mask as VideoX-Fun draws it: see `videox_fun_mask`. It can stand among the others.
VIDEOX_FUN = "videox_fun"


def _few(length: int, rng: random.Random) -> int:
    """How many frames are known at one end: 1 in 70 % of the cases, otherwise up to half of the clip."""
    most = max((length - 1) // 2, 1)
    return 1 if rng.random() < 0.7 else rng.randint(1, most)


def _region(length: int, height: int, width: int, rng: random.Random) -> torch.Tensor:
    """A rectangle of 20 to 70 % of the area, the same in all frames.

    The inside is generated in 75 % of the cases, otherwise the outside. The first frame is known in half of the cases.
    """
    area = rng.uniform(0.2, 0.7)
    proportion = math.exp(rng.uniform(-0.7, 0.7))
    box_h = min(max(round(height * math.sqrt(area * proportion)), 1), height)
    box_w = min(max(round(width * math.sqrt(area / proportion)), 1), width)
    top, left = rng.randint(0, height - box_h), rng.randint(0, width - box_w)
    mask = torch.zeros(length, height, width)
    mask[:, top : top + box_h, left : left + box_w] = 1
    if rng.random() < 0.25:
        mask = 1 - mask
    if rng.random() < 0.5 and length > 1:
        mask[0] = 0
    return mask


def random_mask(kind: str, length: int, height: int, width: int, rng: random.Random) -> torch.Tensor:
    """A mask of a kind, F H W.

    Args:
        kind: what is known, one of `KINDS`, or `VIDEOX_FUN`. In a clip of one frame, a start or an end is everything.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind == "region":
        return _region(length, height, width, rng)
    if kind == VIDEOX_FUN:
        return videox_fun_mask(choose_kind(videox_fun_shares(length), rng), length, height, width, rng)
    mask = torch.ones(length, height, width)
    if kind in ("start", "start_end"):
        mask[: _few(length, rng)] = 0
    if kind in ("end", "start_end"):
        mask[length - _few(length, rng) :] = 0
    elif kind == "everything":
        mask.zero_()
    elif kind not in ("start", "nothing"):
        raise ValueError(f"unknown kind of mask {kind!r}, expected one of {[*KINDS, VIDEOX_FUN]}")
    return mask


def choose_kind(weights: Mapping[str, float], rng: random.Random) -> str:
    """A random kind, with probabilities in proportion to the weights."""
    return rng.choices(list(weights), list(weights.values()))[0]


# What VideoX-Fun's trainers of CogVideoX-Fun generate (`get_random_mask` in videox_fun/data/utils.py), and how often:
# in clips of several frames, and in pictures.
VIDEOX_FUN_SHARES = {
    "all": (0.2, 0.7),  # the whole clip
    "after_start": (0.2, 0.0),  # all but the first 1 to 4 frames
    "between": (0.2, 0.0),  # all but the first and the last 1 to 4 frames, equally many at both ends
    "block": (0.05, 0.2),  # a rectangle, the same in all frames
    "block_span": (0.05, 0.0),  # a rectangle, in a span around the middle frame
    "pixels": (0.05, 0.0),  # every pixel of every frame with probability 1/2
    "patches": (0.05, 0.0),  # a small rectangle of its own in each of some frames
    "ellipse": (0.1, 0.05),  # in the first frame alone, with its axes along the frame's
    "circle": (0.05, 0.05),  # in the first frame alone
    "frames": (0.05, 0.0),  # every frame with probability 1/2
}


def videox_fun_shares(length: int) -> dict[str, float]:
    """How often VideoX-Fun draws each of its kinds in clips of ``length`` frames."""
    return {kind: shares[length == 1] for kind, shares in VIDEOX_FUN_SHARES.items()}


def _block(height: int, width: int, rng: random.Random) -> tuple[slice, slice]:
    """A rectangle around any pixel, a quarter to three quarters as wide and high as the frame, cut at its edges."""
    sides = []
    for side in (height, width):
        centre, half = rng.randrange(side), rng.randrange(side // 4, side // 4 * 3) // 2
        sides.append(slice(max(centre - half, 0), min(centre + half, side)))
    return sides[0], sides[1]


def _ellipse(height: int, width: int, rng: random.Random, circle: bool) -> torch.Tensor:
    """An ellipse or a circle around any pixel, its semi-axes 1/8 to 1/4 of the shorter side, H W."""
    centre_y, centre_x = rng.randrange(height), rng.randrange(width)
    smallest, largest = min(height, width) // 8, min(height, width) // 4
    a = rng.randrange(smallest, largest)
    b = a if circle else rng.randrange(smallest, largest)
    y, x = torch.arange(height)[:, None] - centre_y, torch.arange(width)[None] - centre_x
    return ((y / b).square() + (x / a).square() < 1).float()


def _patches(mask: torch.Tensor, rng: random.Random) -> None:
    """Mark a rectangle of up to a quarter of the width and height in each of 1 to half of the frames."""
    length, height, width = mask.shape
    for frame in rng.sample(range(length), rng.randint(1, max(length // 2, 1))):
        patch_h, patch_w = rng.randint(1, height // 4), rng.randint(1, width // 4)
        top, left = rng.randint(0, height - patch_h), rng.randint(0, width - patch_w)
        mask[frame, top : top + patch_h, left : left + patch_w] = 1


def videox_fun_mask(kind: str, length: int, height: int, width: int, rng: random.Random) -> torch.Tensor:
    """A mask as in VideoX-Fun's `get_random_mask`, F H W, 1 = generate.

    VideoX-Fun draws it for the clip before it cuts the clip to its bucket's length; here it is drawn for that length.

    Args:
        kind: what is generated, a key of `VIDEOX_FUN_SHARES`. In a clip of at most 8 frames, "between" can be empty.
    """
    mask = torch.zeros(length, height, width)
    if kind == "all":
        mask.fill_(1)
    elif kind in ("after_start", "between"):
        known = rng.randint(1, 4)
        mask[known : length - known if kind == "between" else length] = 1
    elif kind in ("block", "block_span"):
        rows, columns = _block(height, width, rng)
        middle = length // 2
        first, last = (0, length) if kind == "block" else (rng.randrange(middle), rng.randrange(middle, length))
        mask[first:last, rows, columns] = 1
    elif kind == "pixels":
        generator = torch.Generator().manual_seed(rng.getrandbits(62))
        mask = torch.randint(0, 2, mask.shape, generator=generator).float()
    elif kind == "patches":
        _patches(mask, rng)
    elif kind in ("ellipse", "circle"):
        mask[0] = _ellipse(height, width, rng, circle=kind == "circle")
    elif kind == "frames":
        for frame in mask:
            frame.fill_(float(rng.random() > 0.5))
    return mask

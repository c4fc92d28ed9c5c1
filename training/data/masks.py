"""Random masks: which part of a training clip is known. 1 = generate, 0 = keep."""

import math
import random
from collections.abc import Mapping

import torch

KINDS = ("start", "end", "start_end", "region", "everything", "nothing")  # what is known


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
        kind: what is known, one of `KINDS`. In a clip of one frame, a start or an end is everything.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind == "region":
        return _region(length, height, width, rng)
    mask = torch.ones(length, height, width)
    if kind in ("start", "start_end"):
        mask[: _few(length, rng)] = 0
    if kind in ("end", "start_end"):
        mask[length - _few(length, rng) :] = 0
    elif kind == "everything":
        mask.zero_()
    elif kind not in ("start", "nothing"):
        raise ValueError(f"unknown kind of mask {kind!r}, expected one of {list(KINDS)}")
    return mask


def choose_kind(weights: Mapping[str, float], rng: random.Random) -> str:
    """A random kind, with probabilities in proportion to the weights."""
    return rng.choices(list(weights), list(weights.values()))[0]

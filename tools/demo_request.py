"""What the demo asks for."""

import dataclasses
from pathlib import Path

import torch

from ..training.data import shapes

MODEL = Path(__file__).resolve().parent.parent / "models" / "nano"
SCENE = shapes.Scene("red", "circle", "right", "night", 0.2, (0.26, 0.6), (0.74, 0.6))
CFG = 2.0  # what the nano model's evaluation uses


@dataclasses.dataclass(frozen=True)
class Request:
    """Two images, 1 H W 3 of 0..1, and what happens between them."""

    start: torch.Tensor
    end: torch.Tensor
    prompt: str
    negative: str
    model: Path
    cfg: float


def shape_that_moves(width: int, height: int) -> Request:
    """The first and the last picture of a clip of the kind that the nano model knows."""
    clip = shapes.render(SCENE, shapes.PATH_FRAMES, height, width)
    return Request(clip[:1], clip[-1:], SCENE.caption(), shapes.NEGATIVE, MODEL, CFG)

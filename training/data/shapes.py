"""Procedural clips: one shape of one colour that moves in a named direction over a background.

A clip is computed from its `Scene`, and a scene from a seed and a number. So a data set takes no disk space, and
another seed gives clips that were never trained. Coordinates are fractions of the width and height, x to the right and
y down. Sizes are fractions of the shorter side.
"""

import dataclasses
import math
import random

import torch

COLOURS = {
    "red": (0.88, 0.15, 0.15),
    "green": (0.15, 0.72, 0.22),
    "blue": (0.18, 0.30, 0.92),
    "yellow": (0.95, 0.83, 0.12),
    "purple": (0.62, 0.20, 0.80),
    "white": (0.96, 0.96, 0.96),
}
# The colours at the top and the bottom of the frame. Shapes are more saturated or brighter than all of them.
BACKGROUNDS = {
    "night": ((0.04, 0.05, 0.14), (0.14, 0.16, 0.30)),
    "sand": ((0.80, 0.72, 0.56), (0.64, 0.54, 0.40)),
    "fog": ((0.66, 0.69, 0.71), (0.48, 0.51, 0.53)),
    "forest": ((0.20, 0.30, 0.20), (0.08, 0.15, 0.10)),
    "dusk": ((0.46, 0.34, 0.40), (0.70, 0.50, 0.44)),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
SHAPES = ("circle", "square", "triangle")
NEW_SHAPE = "ring"  # only the LoRA is trained on it
HELD_OUT = 1_000_000  # seeds from here on are for the evaluation; no configuration may train on them

SIZES = (0.17, 0.23)  # radius
PATH_FRAMES = 17  # of a whole path; shorter clips show its beginning, at the same speed
DISTANCES = (0.36, 0.5)  # the length of a path
EDGE_PIXELS = 1.5  # width of an outline's blur

GRAMMAR = (
    "a {colour} {shape} moves {direction} over the {background}",
    "a {colour} {shape} moving {direction} over the {background}",
    "the {colour} {shape} goes {direction} over the {background}",
    "{colour} {shape} moves {direction} , {background}",
)
NEGATIVE = ""  # the caption after dropout in training, and so the negative prompt of guidance


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a clip shows. ``radius`` in fractions of the shorter side, ``start`` and ``end`` the centre's path."""

    colour: str
    shape: str
    direction: str
    background: str
    radius: float
    start: tuple[float, float]
    end: tuple[float, float]

    def caption(self, form: int = 0) -> str:
        """A sentence of the grammar; ``form`` chooses which."""
        return GRAMMAR[form % len(GRAMMAR)].format(**{k: getattr(self, k) for k in Scene.words})

    words = ("colour", "shape", "direction", "background")


def vocabulary() -> list[str]:
    """Every word of the grammar, with the new shape's."""
    fixed = " ".join(GRAMMAR).replace("{", " {").split()
    words = [word for word in fixed if not word.startswith("{") and word != ","]
    return list(dict.fromkeys([*words, ",", *COLOURS, *SHAPES, NEW_SHAPE, *DIRECTIONS, *BACKGROUNDS]))


def random_scene(seed: int, index: int, shapes: tuple[str, ...] = SHAPES) -> Scene:
    """The ``index``-th scene of a seed; shapes stay inside the frame on their whole path."""
    rng = random.Random(f"scene {seed} {index}")  # noqa: S311 - not for secrets
    direction = rng.choice(list(DIRECTIONS))
    radius, distance = rng.uniform(*SIZES), rng.uniform(*DISTANCES)
    step = DIRECTIONS[direction]
    middle = []
    for axis in (0, 1):
        margin = radius + abs(step[axis]) * distance / 2
        middle.append(rng.uniform(margin, 1 - margin))
    ends = [tuple(m + sign * s * distance / 2 for m, s in zip(middle, step, strict=True)) for sign in (-1, 1)]
    return Scene(
        rng.choice(list(COLOURS)), rng.choice(list(shapes)), direction, rng.choice(list(BACKGROUNDS)), radius, *ends
    )


def centres(scene: Scene, length: int) -> torch.Tensor:
    """The shape's centre in every frame, [length, 2] (x, y). It stays at the end of its path."""
    along = (torch.arange(length) / (PATH_FRAMES - 1)).clamp(max=1)[:, None]
    start, end = torch.tensor(scene.start), torch.tensor(scene.end)
    return start + (end - start) * along


def distance_to(shape: str, x: torch.Tensor, y: torch.Tensor, radius: float) -> torch.Tensor:
    """Signed distance of points to an outline centred at zero, negative inside, in the units of ``radius``.

    All shapes have about the same area (I. Quilez, "2D distance functions", for the triangle).
    """
    if shape == "circle":
        return torch.hypot(x, y) - radius
    if shape == "ring":
        return (torch.hypot(x, y) - 0.74 * radius).abs() - 0.26 * radius
    if shape == "square":
        half = 0.86 * radius
        dx, dy = x.abs() - half, y.abs() - half
        return torch.hypot(dx.clamp(min=0), dy.clamp(min=0)) + torch.maximum(dx, dy).clamp(max=0)
    if shape == "triangle":  # equilateral, a corner at the top
        side = 1.16 * radius
        x, y = x.abs() - side, side / math.sqrt(3) - y
        mirrored = x + math.sqrt(3) * y > 0
        x, y = (
            torch.where(mirrored, (x - math.sqrt(3) * y) / 2, x),
            torch.where(mirrored, (-math.sqrt(3) * x - y) / 2, y),
        )
        x = x - x.clamp(-2 * side, 0)
        return -torch.hypot(x, y) * torch.sign(y)
    raise ValueError(f"unknown shape {shape!r}, expected one of {[*SHAPES, NEW_SHAPE]}")


def render(scene: Scene, length: int, height: int, width: int) -> torch.Tensor:
    """A scene as F H W 3 of 0..1, float32."""
    side = min(height, width)
    centre = centres(scene, length) * torch.tensor([width, height])
    x = torch.arange(width)[None, None, :] + 0.5 - centre[:, 0, None, None]
    y = torch.arange(height)[None, :, None] + 0.5 - centre[:, 1, None, None]
    x, y = torch.broadcast_tensors(x, y)
    distance = distance_to(scene.shape, x, y, scene.radius * side)
    cover = (0.5 - distance / EDGE_PIXELS).clamp(0, 1)[..., None]
    top, bottom = (torch.tensor(colour) for colour in BACKGROUNDS[scene.background])
    back = top + (bottom - top) * ((torch.arange(height) + 0.5) / height)[:, None, None]
    return cover * torch.tensor(COLOURS[scene.colour]) + (1 - cover) * back  # FHW3

"""The shapes of procedural clips: their colours and outlines."""

import math

import torch

COLOURS = {
    "red": (0.88, 0.15, 0.15),
    "green": (0.15, 0.72, 0.22),
    "blue": (0.18, 0.30, 0.92),
    "yellow": (0.95, 0.83, 0.12),
    "purple": (0.62, 0.20, 0.80),
    "white": (0.96, 0.96, 0.96),
}
SHAPES = ("circle", "square", "triangle")
NEW_SHAPE = "ring"  # only the LoRA is trained on it
EDGE_PIXELS = 1.5  # width of an outline's blur


def distance_to(shape: str, x: torch.Tensor, y: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """Signed distance of points to an outline centred at zero, negative inside, in the units of ``radius``.

    All shapes have about the same area (I. Quilez, "2D distance functions", for the triangle).

    Args:
        x, y, radius: of shapes that broadcast.

    Raises:
        ValueError: the shape is unknown.
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
        x = x - torch.minimum(torch.maximum(x, -2 * side), torch.zeros(()))
        return -torch.hypot(x, y) * torch.sign(y)
    raise ValueError(f"unknown shape {shape!r}, expected one of {[*SHAPES, NEW_SHAPE]}")


def cover(
    shape: str, centre: torch.Tensor, radius: torch.Tensor, angle: torch.Tensor, height: int, width: int
) -> torch.Tensor:
    """How much of every pixel a shape covers, F H W of 0..1.

    Args:
        centre: F 2, x and y in fractions of the width and height.
        radius: F, in fractions of the shorter side.
        angle: F, in degrees, clockwise.
    """
    place = centre * torch.tensor([width, height])
    x = (torch.arange(width) + 0.5)[None, None, :] - place[:, 0, None, None]
    y = (torch.arange(height) + 0.5)[None, :, None] - place[:, 1, None, None]
    x, y = torch.broadcast_tensors(x, y)
    if angle.any():
        turn = torch.deg2rad(angle)[:, None, None]
        x, y = x * turn.cos() + y * turn.sin(), y * turn.cos() - x * turn.sin()
    distance = distance_to(shape, x, y, radius[:, None, None] * min(height, width))
    return (0.5 - distance / EDGE_PIXELS).clamp(0, 1)

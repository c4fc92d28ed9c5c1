"""Positions of tokens: the 2B's additive table, and the rotary angles of the 5B and of V1.5.

Every function depends only on the run's grid and the trained grid; the transformer caches the result per grid.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import crop_region

THETA = 10000.0
POSITION_MODES = ("fun", "cut", "generated")


@dataclasses.dataclass(frozen=True)
class PositionOptions:
    """How positions are made for a run.

    Args:
        mode: "fun" spreads the trained positions over the run's grid, as in training. "cut" takes the middle of the
            trained grid. "generated" counts tokens from the top left corner.
        temporal_scale: divides the time of each frame; above 1, a longer clip covers the trained time.
        riflex_k: the frequency that RIFLEx slows, counted from 1, for clips longer than trained; 0 is off. The paper
            uses 2 for CogVideoX (Zhao et al. 2025).
    """

    mode: str = "fun"
    temporal_scale: float = 1.0
    riflex_k: int = 0

    def __post_init__(self):
        if self.mode not in POSITION_MODES:
            raise ValueError(f"the position mode is {self.mode!r}, expected one of {', '.join(POSITION_MODES)}")
        if not self.temporal_scale > 0:
            raise ValueError(f"the temporal scale is {self.temporal_scale}, expected a number above 0")

    def max_latent_t(self, trained: int | None) -> int | None:
        """The most latent frames of a call: the trained number times the temporal scale; None for no limit."""
        if trained is None or self.riflex_k:
            return None
        return max(1, math.floor(trained * self.temporal_scale))


TRAINED = PositionOptions()
Grid = tuple[int, int, int]  # t, h, w
Axes = tuple[Tensor, Tensor, Tensor]  # of an additive table: t x dim/4, h x 3/8 dim, w x 3/8 dim


def middle(grid: tuple[int, int], base: tuple[int, int]) -> tuple[int, int]:
    """Where a run's grid (h, w) begins in the middle of the trained one, for the mode "cut"."""
    if grid[0] > base[0] or grid[1] > base[1]:
        raise ValueError(
            f"the grid {grid[0]} x {grid[1]} is larger than the trained grid of {base[0]} x {base[1]}, which can't be "
            'cut to it: set the position mode to "fun"'
        )
    return (base[0] - grid[0]) // 2, (base[1] - grid[1]) // 2


def sines(length: int, channels: int, scale: float) -> Tensor:
    """[length, channels] sines, then cosines, of positions divided by ``scale`` (Vaswani et al. 2017), float32."""
    frequencies = THETA ** (-torch.arange(channels // 2, dtype=torch.float64) / (channels // 2))
    angles = torch.outer(torch.arange(length, dtype=torch.float64) / scale, frequencies)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


def trained_axes(dim: int, t: int, h: int, w: int, spatial_scale: float = 1.875, temporal_scale: float = 1.0) -> Axes:
    """The axes of the additive table that the 2B models were trained with, float32; `join_axes` makes the table.

    A quarter of the channels is time, then three eighths each are x and y. Positions are divided by the interpolation
    scales (``get_3d_sincos_pos_embed`` in diffusers).
    """
    space = dim // 4 * 3 // 2
    return sines(t, dim // 4, temporal_scale), sines(h, space, spatial_scale), sines(w, space, spatial_scale)


def join_axes(t: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """The additive table of its axes, [t * h * w, dim]; the channels are time, x, y."""
    grid = len(t), len(y), len(x)
    parts = t[:, None, None], x[None, None], y[None, :, None]
    return torch.cat([part.expand(*grid, -1) for part in parts], dim=-1).flatten(0, 2)


def additive_axes(
    dim: int, grid: Grid, base_grid: Grid, scales: tuple[float, float], options: PositionOptions = TRAINED
) -> Axes:
    """The axes of the 2B's table for a run's grid (t, h, w), float32.

    Every channel depends on one axis, so resizing the axes is resizing the table. A large video's table takes 400 MB,
    its axes 0.4 MB.

    Args:
        base_grid: the trained grid (t, h, w).
        scales: the spatial and the temporal interpolation scale of the trained table.
        options: "fun" resizes the trained table in space and cuts it in time, like VideoX-Fun's patch embedding; a
            newly computed table is 27 to 45 % off. "cut" takes the middle of the table (Stable Diffusion 3's
            ``cropped_pos_embed``). "generated" computes a new table with the trained distance between tokens, as
            diffusers does for other sizes.

    Raises:
        ValueError: RIFLEx, which needs rotary positions, or "cut" and a grid larger than the trained one.
    """
    if options.riflex_k:
        raise ValueError(
            "RIFLEx changes rotary positions, but the 2B models have an additive table: set riflex_k to 0, and use "
            "Context Windows or a temporal_scale for longer clips"
        )
    scales = scales[0], scales[1] * options.temporal_scale
    if options.mode == "generated":
        return trained_axes(dim, *grid, *scales)
    t, y, x = trained_axes(dim, max(base_grid[0], grid[0]), *base_grid[1:], *scales)
    if options.mode == "cut":
        top, left = middle(grid[1:], base_grid[1:])
        return t[: grid[0]], y[top : top + grid[1]], x[left : left + grid[2]]
    y, x = (F.interpolate(axis.T[None], n, mode="linear")[0].T for axis, n in ((y, grid[1]), (x, grid[2])))
    return t[: grid[0]], y, x


def riflex(frequencies: Tensor, k: int, length: float) -> Tensor:
    """Slow the ``k``-th frequency (from 1) so that a longer clip stays within nine tenths of its period.

    ``0.9 * 2 pi / length``: equation 8 of RIFLEx (Zhao et al. 2025) and the 0.9 of their code. A clip no longer than
    the period stays as trained. With k = 2 the period is 20 latent frames on the 5B and 40 on V1.5.

    Args:
        length: of the clip, in positions.
    """
    if not 1 <= k <= len(frequencies):
        raise ValueError(f"RIFLEx's k is {k}, expected 1 to {len(frequencies)}: the paper uses 2 for CogVideoX")
    if length <= round(2 * math.pi / float(frequencies[k - 1])):
        return frequencies
    slowed = frequencies.clone()
    slowed[k - 1] = 0.9 * 2 * math.pi / length
    return slowed


def rotary(t: Tensor, y: Tensor, x: Tensor, head_dim: int = 64, options: PositionOptions = TRAINED) -> Tensor:
    """3D RoPE (Su et al. 2021) of positions along each axis, [len(t) * len(y) * len(x), head_dim / 2], complex64.

    A quarter of a head's channels turns with time, three eighths each with y and x (16, 24, 24 of 64).
    """
    time, space = (1.0 / THETA ** (torch.arange(0, n, 2).float() / n) for n in (head_dim // 4, head_dim // 8 * 3))
    if options.riflex_k:
        time = riflex(time, options.riflex_k, len(t) / options.temporal_scale)
    axes = (t / options.temporal_scale, time), (y, space), (x, space)
    angles = [torch.outer(positions.float(), frequencies) for positions, frequencies in axes]
    t, y, x = (torch.polar(torch.ones_like(angle), angle) for angle in angles)
    grid = len(t), len(y), len(x)
    parts = t[:, None, None], y[None, :, None], x[None, None]
    return torch.cat([part.expand(*grid, -1) for part in parts], dim=-1).flatten(0, 2)


def interpolated_rotary(
    grid_t: int, grid_h: int, grid_w: int, base_h: int, base_w: int, head_dim: int = 64, options=TRAINED
) -> Tensor:
    """RoPE of the 5B V1.0 and V1.1: the run's grid spread over its crop region of the trained grid.

    Positions are numpy's ``linspace(start, stop, n, endpoint=False)`` over the region, as in VideoX-Fun; diffusers
    differs by up to 0.02 where the region does not start at zero. Frames are counted.

    Args:
        base_h, base_w: the trained grid in tokens, 30 x 45.
        options: "cut" takes the positions in the middle of the trained grid, "generated" counts tokens.

    Raises:
        ValueError: "cut" and a grid larger than the trained one.
    """
    if options.mode == "generated":
        return integer_rotary(grid_t, grid_h, grid_w, head_dim, options)
    y, x = torch.arange(grid_h, dtype=torch.float64), torch.arange(grid_w, dtype=torch.float64)
    if options.mode == "cut":
        top, left = middle((grid_h, grid_w), (base_h, base_w))
    else:
        top, left, bottom, right = crop_region(grid_h, grid_w, base_h, base_w)
        y, x = y * ((bottom - top) / grid_h), x * ((right - left) / grid_w)
    return rotary(torch.arange(grid_t), top + y, left + x, head_dim, options)


def integer_rotary(grid_t: int, grid_h: int, grid_w: int, head_dim: int = 64, options=TRAINED) -> Tensor:
    """RoPE of V1.5: positions are token indices, whatever the trained grid and the mode."""
    return rotary(torch.arange(grid_t), torch.arange(grid_h), torch.arange(grid_w), head_dim, options)

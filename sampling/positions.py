"""Where a token is: the 2B's additive table and the rotary angles of the 5B and of V1.5.

Every function depends on the run's grid and the trained grid alone; the transformer caches the result per grid.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F

from .geometry import crop_region

THETA = 10000.0
POSITION_MODES = ("fun", "cut", "generated")


@dataclasses.dataclass(frozen=True)
class PositionOptions:
    """How positions are made for a run.

    Args:
        mode: "fun" is how the models were trained: the trained positions spread over the run's grid. "cut" takes a
            piece out of the middle of the trained grid, "generated" counts tokens from the corner.
        temporal_scale: what the time of each frame is divided by; above 1, a longer clip covers the trained time.
        riflex_k: RIFLEx's intrinsic frequency, counted from 1, for clips longer than trained; 0 is off. The paper's
            for CogVideoX is 2 (Zhao et al. 2025).
    """

    mode: str = "fun"
    temporal_scale: float = 1.0
    riflex_k: int = 0

    def __post_init__(self):
        if self.mode not in POSITION_MODES:
            raise ValueError(f"the position mode is {self.mode!r}, expected one of {list(POSITION_MODES)}")
        if not (math.isfinite(self.temporal_scale) and self.temporal_scale > 0):
            raise ValueError(f"the temporal scale is {self.temporal_scale}, expected a number above 0")
        if self.riflex_k < 0:
            raise ValueError(f"RIFLEx's k is {self.riflex_k}, expected 0 (off) or the number of a frequency")

    def max_latent_t(self, trained: int | None) -> int | None:
        """The most latent frames of a call: the trained number, stretched; None for no limit."""
        if trained is None or self.riflex_k:
            return None
        return math.floor(trained * self.temporal_scale)


TRAINED = PositionOptions()


def _sincos(positions: torch.Tensor, dim: int) -> torch.Tensor:
    """[n] positions -> [n, dim]: sines, then cosines, of dim/2 frequencies (Vaswani et al. 2017), float64."""
    frequencies = THETA ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = positions[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


Axes = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # of an additive table: t x dim/4, h x 3/8 dim, w x 3/8 dim


def trained_axes(
    dim: int, base_t: int, base_h: int, base_w: int, spatial_scale: float = 1.875, temporal_scale: float = 1.0
) -> Axes:
    """The additive table that the 2B models were trained with, by its axes, float32; `join_axes` makes the table.

    A quarter of the channels is time, then three eighths each of x and y; positions are divided by the
    interpolation scale (``get_3d_sincos_pos_embed`` in diffusers).
    """

    def axis(length: int, channels: int, scale: float) -> torch.Tensor:
        return _sincos(torch.arange(length, dtype=torch.float64) / scale, channels).float()

    space = dim // 4 * 3 // 2
    return (
        axis(base_t, dim // 4, temporal_scale),
        axis(base_h, space, spatial_scale),
        axis(base_w, space, spatial_scale),
    )


def join_axes(t: torch.Tensor, y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The additive table of its axes, [t * h * w, dim]; the channels are time, x, y."""
    grid = len(t), len(y), len(x)
    parts = t[:, None, None], x[None, None], y[None, :, None]
    return torch.cat([part.expand(*grid, -1) for part in parts], dim=-1).flatten(0, 2)


def _resized(axis: torch.Tensor, length: int) -> torch.Tensor:
    """An axis of a trained table, spread over another number of positions."""
    return F.interpolate(axis.T[None], size=length, mode="linear", align_corners=False)[0].T


def _middle(axis: torch.Tensor, length: int) -> torch.Tensor:
    start = (len(axis) - length) // 2
    return axis[start : start + length]


def additive_axes(
    dim: int,
    grid: tuple[int, int, int],
    base_grid: tuple[int, int, int],
    scales: tuple[float, float],
    options: PositionOptions = TRAINED,
) -> Axes:
    """The 2B's table for a run's grid (t, h, w), by its axes, float32.

    The table of a large video takes 400 MB, its axes 0.4 MB. Every channel depends on one axis alone, so resizing the
    axes is resizing the table.

    Args:
        base_grid: the trained grid (t, h, w).
        scales: the spatial and the temporal interpolation scale of the trained table.
        options: "fun" resizes the trained table in space and cuts it in time, as the patch embedding of the authors'
            transformer does (that is what the weights know, a newly computed one is 27 to 45 % off). "cut" takes the
            middle of its raster (``cropped_pos_embed`` of Stable Diffusion 3). "generated" counts from the top left
            corner with tokens as far apart as in training, and so goes on beyond the trained grid (diffusers' patch
            embedding off the trained size). A temporal scale stretches the trained time over more frames.

    Raises:
        ValueError: RIFLEx, which changes rotary positions, or a grid larger than the table to cut.
    """
    if options.riflex_k:
        raise ValueError(
            "RIFLEx changes rotary positions, but the 2B models have an additive table: set riflex_k to 0, and use "
            "context windows or a temporal scale for longer clips"
        )
    scales = scales[0], scales[1] * options.temporal_scale
    if options.mode == "generated":
        return trained_axes(dim, *grid, *scales)
    grid_t, grid_h, grid_w = grid
    base_t, base_h, base_w = max(base_grid[0], grid_t), *base_grid[1:]
    t, y, x = trained_axes(dim, base_t, base_h, base_w, *scales)
    if options.mode == "fun":
        return t[:grid_t], _resized(y, grid_h), _resized(x, grid_w)
    if grid_h > base_h or grid_w > base_w:
        raise ValueError(
            f"the grid {grid_t} x {grid_h} x {grid_w} is larger than the trained table of "
            f"{base_t} x {base_h} x {base_w}: resize the table (fun) instead of cutting it"
        )
    return t[:grid_t], _middle(y, grid_h), _middle(x, grid_w)


def _frequencies(dim: int) -> torch.Tensor:
    """[dim / 2] rotary frequencies, in radians per position (Su et al. 2021)."""
    return 1.0 / THETA ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _rotations(positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    """[n] positions -> [n, len(frequencies)] unit complex numbers, one per pair of channels, complex64."""
    angles = torch.outer(positions.float(), frequencies)
    return torch.complex(angles.cos(), angles.sin())


def riflex(frequencies: torch.Tensor, k: int, length: float) -> torch.Tensor:
    """Slow the ``k``-th frequency (from 1) so that a longer clip stays within nine tenths of its period.

    ``0.9 * 2 pi / length`` (equation 8 of RIFLEx, Zhao et al. 2025, and the 0.9 of their code). A clip that is no
    longer than the period is left as trained, which for CogVideoX's k = 2 is 20 positions, as there
    (latent frames; two each on V1.5).

    Args:
        length: of the clip, in positions.
    """
    if not 1 <= k <= len(frequencies):
        raise ValueError(f"RIFLEx's k is {k}, expected 1 to {len(frequencies)}: the paper's for CogVideoX is 2")
    if length <= round(2 * math.pi / float(frequencies[k - 1])):
        return frequencies
    slowed = frequencies.clone()
    slowed[k - 1] = 0.9 * 2 * math.pi / length
    return slowed


def rotary(
    t: torch.Tensor, y: torch.Tensor, x: torch.Tensor, head_dim: int = 64, options: PositionOptions = TRAINED
) -> torch.Tensor:
    """3D RoPE of positions along each axis, [len(t) * len(y) * len(x), head_dim / 2], complex64.

    A quarter of a head's channels turns with time, three eighths each with y and x (16, 24, 24 of 64).
    """
    shape = (len(t), len(y), len(x))
    time, space = _frequencies(head_dim // 4), _frequencies(head_dim // 8 * 3)
    if options.riflex_k:
        time = riflex(time, options.riflex_k, len(t) / options.temporal_scale)
    parts = (
        _rotations(t / options.temporal_scale, time)[:, None, None, :],
        _rotations(y, space)[None, :, None, :],
        _rotations(x, space)[None, None, :, :],
    )
    return torch.cat([p.expand(*shape, -1) for p in parts], dim=-1).reshape(-1, head_dim // 2)


def interpolated_rotary(
    grid_t: int,
    grid_h: int,
    grid_w: int,
    base_h: int,
    base_w: int,
    head_dim: int = 64,
    options: PositionOptions = TRAINED,
) -> torch.Tensor:
    """RoPE of the 5B V1.0 and V1.1: the run's grid spread over its crop region of the trained grid.

    numpy's ``linspace(start, stop, n, endpoint=False)`` over the region, frames counted (the authors' pipelines;
    today's diffusers differs by up to 0.02 where the region does not start at zero).

    Args:
        base_h, base_w: the trained grid in tokens, 30 x 45.
        options: in the mode "cut" the positions are those of the trained grid's middle, in "generated" they are token
            indices.

    Raises:
        ValueError: "cut" and the grid is larger than the trained one.
    """
    if options.mode == "generated":
        return integer_rotary(grid_t, grid_h, grid_w, head_dim, options)
    if options.mode == "cut":
        if grid_h > base_h or grid_w > base_w:
            raise ValueError(
                f"the grid {grid_h} x {grid_w} is larger than the trained one of {base_h} x {base_w}: interpolate "
                "positions (fun) instead of cutting them"
            )
        top, left = (base_h - grid_h) // 2, (base_w - grid_w) // 2
        return rotary(torch.arange(grid_t), top + torch.arange(grid_h), left + torch.arange(grid_w), head_dim, options)
    top, left, bottom, right = crop_region(grid_h, grid_w, base_h, base_w)
    y = top + torch.arange(grid_h, dtype=torch.float64) * ((bottom - top) / grid_h)
    x = left + torch.arange(grid_w, dtype=torch.float64) * ((right - left) / grid_w)
    return rotary(torch.arange(grid_t), y, x, head_dim, options)


def integer_rotary(
    grid_t: int, grid_h: int, grid_w: int, head_dim: int = 64, options: PositionOptions = TRAINED
) -> torch.Tensor:
    """RoPE of V1.5: positions are token indices, whatever the trained grid and the mode."""
    return rotary(torch.arange(grid_t), torch.arange(grid_h), torch.arange(grid_w), head_dim, options)

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


def trained_table(
    dim: int, base_t: int, base_h: int, base_w: int, spatial_scale: float = 1.875, temporal_scale: float = 1.0
) -> torch.Tensor:
    """The additive table that the 2B models were trained with, [base_t, base_h, base_w, dim], float32.

    A quarter of the channels is time, then three eighths each of x and y; positions are divided by the
    interpolation scale (``get_3d_sincos_pos_embed`` in diffusers).
    """
    dim_t, dim_space = dim // 4, dim // 4 * 3
    t = _sincos(torch.arange(base_t, dtype=torch.float64) / temporal_scale, dim_t)
    y = _sincos(torch.arange(base_h, dtype=torch.float64) / spatial_scale, dim_space // 2)
    x = _sincos(torch.arange(base_w, dtype=torch.float64) / spatial_scale, dim_space // 2)
    parts = (t[:, None, None, :], x[None, None, :, :], y[None, :, None, :])
    return torch.cat([p.expand(base_t, base_h, base_w, -1) for p in parts], dim=-1).float()


def generated_table(
    dim: int, grid_t: int, grid_h: int, grid_w: int, spatial_scale: float = 1.875, temporal_scale: float = 1.0
) -> torch.Tensor:
    """A table computed anew for a run's grid, [grid_t * grid_h * grid_w, dim]: tokens as far apart as in training,
    counted from the top left corner, so that a larger grid goes on beyond the trained one (what diffusers' patch
    embedding does off the trained size)."""
    table = trained_table(dim, grid_t, grid_h, grid_w, spatial_scale, temporal_scale)
    return table.reshape(grid_t * grid_h * grid_w, dim)


def interpolate_table(table: torch.Tensor, grid_t: int, grid_h: int, grid_w: int) -> torch.Tensor:
    """Resize a trained table to a run's grid, [grid_t * grid_h * grid_w, dim].

    Space is interpolated and time is cut, as in the patch embedding of the authors' transformer: a table resized
    from the trained one is what the weights know, a newly computed one is 27 to 45 % off.

    Args:
        table: [base_t, base_h, base_w, dim] with base_t >= grid_t.
    """
    base_t, _, _, dim = table.shape
    table = table.movedim(-1, 0)[None]  # THWC -> 1CTHW
    table = F.interpolate(table, size=(base_t, grid_h, grid_w), mode="trilinear", align_corners=False)
    return table[0, :, :grid_t].movedim(0, -1).reshape(grid_t * grid_h * grid_w, dim)


def cut_table(table: torch.Tensor, grid_t: int, grid_h: int, grid_w: int) -> torch.Tensor:
    """The middle of a trained table, [grid_t * grid_h * grid_w, dim]: cut from the raster instead of resized (the
    ``cropped_pos_embed`` of Stable Diffusion 3).

    Raises:
        ValueError: the grid is larger than the table.
    """
    base_t, base_h, base_w, dim = table.shape
    if grid_t > base_t or grid_h > base_h or grid_w > base_w:
        raise ValueError(
            f"the grid {grid_t} x {grid_h} x {grid_w} is larger than the trained table of "
            f"{base_t} x {base_h} x {base_w}: resize the table (fun) instead of cutting it"
        )
    top, left = (base_h - grid_h) // 2, (base_w - grid_w) // 2
    return table[:grid_t, top : top + grid_h, left : left + grid_w].reshape(grid_t * grid_h * grid_w, dim)


def additive_table(
    dim: int,
    grid: tuple[int, int, int],
    base_grid: tuple[int, int, int],
    scales: tuple[float, float],
    options: PositionOptions = TRAINED,
) -> torch.Tensor:
    """The 2B's table for a run's grid (t, h, w), [t * h * w, dim], float32.

    Args:
        base_grid: the trained grid (t, h, w).
        scales: the spatial and the temporal interpolation scale of the trained table.
        options: "fun" is `interpolate_table`, "cut" `cut_table`, "generated" `generated_table`; a temporal scale
            stretches the trained time over more frames.

    Raises:
        ValueError: RIFLEx, which changes rotary positions.
    """
    if options.riflex_k:
        raise ValueError(
            "RIFLEx changes rotary positions, but the 2B models have an additive table: set riflex_k to 0, and use "
            "context windows or a temporal scale for longer clips"
        )
    spatial_scale, temporal_scale = scales[0], scales[1] * options.temporal_scale
    if options.mode == "generated":
        return generated_table(dim, *grid, spatial_scale, temporal_scale)
    base_t, base_h, base_w = base_grid
    table = trained_table(dim, max(base_t, grid[0]), base_h, base_w, spatial_scale, temporal_scale)
    return interpolate_table(table, *grid) if options.mode == "fun" else cut_table(table, *grid)


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

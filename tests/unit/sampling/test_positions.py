"""The modes of positions, the temporal scale and RIFLEx."""

import math

import pytest
import torch
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.transformer import POSITIONS, CogVideoXTransformer
from cogvideox_fun.sampling.positions import (
    PositionOptions,
    additive_axes,
    integer_rotary,
    interpolated_rotary,
    join_axes,
    trained_axes,
)
from hypothesis import given
from hypothesis import strategies as some
from tiny_model import TINY, VARIANTS
from tried import tried

BASE, SCALES = (3, 6, 8), (1.5, 1.0)
grids = some.tuples(some.integers(1, 6), some.integers(1, 8), some.integers(1, 8))


def table(mode: str, grid=(2, 4, 4), **options) -> torch.Tensor:
    return join_axes(*additive_axes(64, grid, BASE, SCALES, PositionOptions(mode, **options))).view(*grid, 64)


def trained_table() -> torch.Tensor:
    return join_axes(*trained_axes(64, *BASE, *SCALES)).view(*BASE, 64)


def test_fun_resizes_cut_takes_the_middle_and_generated_counts_from_the_corner():
    trained = trained_table()
    halves = trained[:2].unflatten(2, (4, 2)).mean(3)  # 8 columns -> 4
    assert torch.allclose(table("fun", (2, 6, 4)), halves, atol=1e-6)
    assert torch.equal(table("cut"), trained[:2, 1:5, 2:6])
    assert torch.equal(table("generated"), trained[:2, :4, :4])
    assert torch.equal(table("generated", (3, 7, 9))[:, :6, :8], trained), "and goes on beyond the trained one"
    with pytest.raises(ValueError, match="the grid 7 x 4 is larger than the trained grid of 6 x 8"):
        table("cut", (2, 7, 4))


def time_angles(rope: torch.Tensor, grid) -> torch.Tensor:
    """[t, 8] angles of the channels that turn with time."""
    return rope.view(*grid, 32)[:, 0, 0, :8].angle()


def test_a_small_temporal_scale_leaves_a_frame():
    assert PositionOptions(temporal_scale=0.1).max_latent_t(5) == 1


def test_a_temporal_scale_stretches_the_trained_time():
    """Every second frame of the table is a trained one; rotary frame 2 is at the trained frame 1."""
    assert torch.allclose(table("fun", (6, 6, 8), temporal_scale=2.0)[::2], trained_table(), atol=1e-6)
    stretched = time_angles(integer_rotary(4, 2, 2, options=PositionOptions(temporal_scale=2.0)), (4, 2, 2))
    assert torch.allclose(stretched[2], time_angles(integer_rotary(4, 2, 2), (4, 2, 2))[1], atol=1e-6)
    for scale in (0.0, math.nan):
        with pytest.raises(ValueError, match=f"temporal scale is {scale}"):
            PositionOptions(temporal_scale=scale)


@tried
@given(grids, grids)
def test_resizing_the_axes_is_resizing_the_table(grid, base):
    """The whole table, trilinear in space, as VideoX-Fun's transformer resizes it."""
    (t, h, w), (base_t, base_h, base_w) = grid, (max(grid[0], base[0]), *base[1:])
    whole = join_axes(*trained_axes(16, base_t, base_h, base_w)).view(base_t, base_h, base_w, 16)
    resized = torch.nn.functional.interpolate(
        whole.movedim(-1, 0)[None], size=(base_t, h, w), mode="trilinear", align_corners=False
    )  # THWC -> 1CTHW
    expected = resized[0, :, :t].movedim(0, -1).reshape(-1, 16)
    found = join_axes(*additive_axes(16, grid, (base_t, base_h, base_w), (1.875, 1.0)))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # values of -1 to 1, another order of sums


@pytest.mark.parametrize(
    "grid, rows, columns", [((16, 10), (0, 8), (2, 7)), ((8, 20), (2, 6), (0, 10))], ids=["portrait", "wide"]
)
def test_rotary_positions_of_a_shape_other_than_the_trained_one(grid, rows, columns):
    """They are spread over a part of the trained grid, here at every half token."""
    whole = interpolated_rotary(1, 8, 10, 8, 10).view(8, 10, 32)
    found = interpolated_rotary(1, *grid, 8, 10).view(*grid, 32)
    assert torch.equal(found[::2, ::2], whole[slice(*rows), slice(*columns)])


def test_rotary_positions_are_cut_or_counted_like_the_table():
    grid, base = (2, 4, 4), (8, 10)
    whole = interpolated_rotary(2, 8, 10, *base).view(2, 8, 10, 32)
    cut = interpolated_rotary(*grid, *base, options=PositionOptions("cut")).view(*grid, 32)
    assert torch.equal(cut, whole[:, 2:6, 3:7])
    generated = interpolated_rotary(*grid, *base, options=PositionOptions("generated"))
    assert torch.equal(generated, integer_rotary(*grid))
    assert torch.equal(generated.view(*grid, 32), whole[:, :4, :4])
    with pytest.raises(ValueError, match="9 x 4 is larger than the trained grid of 8 x 10"):
        interpolated_rotary(1, 9, 4, *base, options=PositionOptions("cut"))


@pytest.mark.parametrize("length", [13, 20, 21, 25, 40])
def test_riflex_slows_one_frequency_of_clips_longer_than_its_period(length):
    """The paper's code: from 21 latent frames on, the second frequency becomes 0.9 * 2 pi / length."""
    grid = (length, 2, 2)
    plain = time_angles(integer_rotary(*grid), grid)
    slowed = time_angles(integer_rotary(*grid, options=PositionOptions(riflex_k=2)), grid)
    others = [i for i in range(8) if i != 1]
    assert torch.equal(slowed[:, others], plain[:, others])
    frequency = 0.9 * 2 * math.pi / length if length > 20 else 10000 ** (-1 / 8)
    assert slowed[1, 1].item() == pytest.approx(frequency, rel=1e-5)
    last = torch.polar(torch.tensor(1.0), torch.tensor(frequency * (length - 1))).angle()
    assert slowed[-1, 1].item() == pytest.approx(last.item(), abs=1e-4)


def call(variant: str, latent_t: int, **options):
    config = TransformerConfig(**TINY, **VARIANTS[variant])
    model = CogVideoXTransformer(config).requires_grad_(False)
    x, text = torch.zeros(1, 16, latent_t, 2, 2), torch.zeros(1, 3, config.text_embed_dim)
    chosen = {POSITIONS: PositionOptions(**options)} if options else {}
    return model(x, torch.tensor([500]), text, transformer_options=chosen)


def test_what_lifts_the_limit_of_49_frames():
    with pytest.raises(ValueError, match="14 frames .* at most 13 .*Context Windows, or Position Interpolation"):
        call("5b", 14)
    assert call("5b", 14, riflex_k=2).shape[2] == 14
    assert call("5b", 26, temporal_scale=2.0).shape[2] == 26
    assert call("2b", 26, temporal_scale=2.0).shape[2] == 26
    with pytest.raises(ValueError, match="27 frames .* at most 26 "):
        call("2b", 27, temporal_scale=2.0)
    with pytest.raises(ValueError, match="RIFLEx changes rotary positions, but the 2B"):
        call("2b", 14, riflex_k=2)
    with pytest.raises(ValueError, match="k is 9, expected 1 to 8"):
        call("5b", 30, riflex_k=9)

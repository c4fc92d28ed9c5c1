"""Masks grown, blurred and inverted."""

import sys

import pytest
import torch
from cogvideox_fun.sampling import mask_edit
from cogvideox_fun.sampling.mask_edit import adjust_mask
from hypothesis import given
from hypothesis import strategies as some
from tried import levels, tried


@tried
@given(
    some.integers(0, 2**32), some.integers(1, 3), some.integers(1, 12), some.integers(1, 12), some.integers(-6, 6),
    some.booleans(),
)  # fmt: skip
def test_a_mask_is_inverted_then_grown_by_a_square(seed, frames, height, width, grow, invert):
    """Against a search through every neighbour; the picture's edge is not the edge of a region."""
    mask = levels(seed, frames, height, width)
    found = adjust_mask(mask, grow, 0.0, invert)
    given_mask, reach = 1 - mask if invert else mask, abs(grow)
    for y in range(height):
        for x in range(width):
            near = given_mask[:, max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1].flatten(1)
            assert torch.equal(found[:, y, x], near.amax(1) if grow >= 0 else near.amin(1))


def test_the_largest_growth():
    mask = torch.zeros(1, 480, 720)
    mask[:, 20:30, 20:32] = 1
    grown = adjust_mask(mask, grow=512)
    assert grown[:, :542, :544].all() and not grown[:, :, 544:].any()


def test_blur():
    """The mean stays, the edge is half, and three sigma away nothing has changed."""
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    soft = adjust_mask(mask, blur=4.0)
    assert abs(float(soft.mean() - mask.mean())) < 1e-5
    row = soft[0, 32]
    assert torch.equal(row[:19], torch.zeros(19)) and (row[45:] > 1 - 1e-5).all()
    assert abs(float(row[31] + row[32]) - 1) < 1e-5 and 0 < row[25] < row[31] < 0.5


def test_one_mask_over_a_video_is_computed_once_and_a_moving_one_frame_by_frame(monkeypatch):
    told = []
    still, moving = torch.zeros(4, 16, 16), torch.eye(16)[:4, None].expand(4, 16, 16)
    still[:, 4:8] = 1
    result = adjust_mask(still, grow=3, blur=1.5, on_progress=lambda *args: told.append(args))
    assert told == [(0, 1)] and result.shape == (4, 16, 16)
    assert torch.equal(result[3], adjust_mask(still[:1], grow=3, blur=1.5)[0])
    told.clear()
    result = adjust_mask(moving, grow=3, on_progress=lambda *args: told.append(args))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]
    assert torch.equal(result[2], adjust_mask(moving[2:3], grow=3)[0])


def test_the_input_is_not_overwritten():
    mask = torch.eye(16)[None]
    for options in ({}, {"invert": True}, {"grow": 2}, {"blur": 1.0}):
        adjust_mask(mask, **options).fill_(0.5)
    assert torch.equal(mask, torch.eye(16)[None])


@pytest.mark.parametrize("options", [{"grow": 2**64}, {"grow": -513}, {"blur": 129.0}, {"blur": -1.0}])
def test_out_of_range(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .*, expected .* pixels"):
        adjust_mask(torch.ones(1, 8, 8), **options)


def test_without_kornia(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia", None)
    with pytest.raises(RuntimeError, match="needs kornia.*pip install kornia"):
        mask_edit.adjust_mask(torch.ones(1, 8, 8), blur=1.0)

"""Masks, tables and noise against VideoX-Fun's numbers. 1e-5 absolute, float32: the same formulas, other order."""

import pytest
import reference
import torch
from cogvideox_fun.sampling import inpaint, masks, positions

TOLERANCE = 1e-5


@pytest.mark.parametrize("case", ["i2v", "i2v_end"])
def test_start_end_builder(case):
    data = reference.load("start_end_builder")
    end = reference.image(data["in.end_rgb_u8"]) if case == "i2v_end" else None
    video, mask = masks.build_start_end(48, 32, 5, reference.image(data["in.start_rgb_u8"]), end, fit="stretch")
    assert (video.movedim(-1, 0)[None] - data[f"{case}.video"]).abs().max() <= TOLERANCE
    assert torch.equal(mask[None, None] * 255, data[f"{case}.mask"])


@pytest.mark.parametrize("case", ["13x48x64_to_4x6x8", "49x32x48_to_13x4x6", "5x48x80_to_2x6x10"])
def test_resize_mask_3d(case):
    data = reference.load("resize_mask_3d")
    known, expected = data[f"{case}.in"].float(), data[f"{case}.out"]
    assert (masks.resize_mask_3d(known, *expected.shape[2:]) - expected).abs().max() <= TOLERANCE
    # through the public function, in the public sense: 1 = generate
    ours = masks.mask_to_latent(1 - known[0, 0], *expected.shape[2:], soft=True)
    assert (1 - ours - expected[0, 0]).abs().max() <= TOLERANCE


def test_first_and_last_frame_of_9():
    """The last latent frame samples frame 6.5 of nine, so a single last frame does not show in the mask."""
    mask = torch.ones(9, 8, 8)
    mask[0], mask[-1] = 0, 0
    expected = reference.load("resize_mask_3d")["endonly_9_3.out"]
    assert (1 - masks.mask_to_latent(mask, 3, 1, 1) - expected[0, 0]).abs().max() <= TOLERANCE


def test_position_table():
    data = reference.load("pe_2b")

    def table(grid_h: int, grid_w: int):
        return positions.join_axes(*positions.additive_axes(32, (13, grid_h, grid_w), (13, 30, 45), (1.875, 1.0)))

    for latent_h, latent_w in ((60, 90), (64, 64)):
        name = f"lat{latent_h}x{latent_w}_T13"
        ours = table(latent_h // 2, latent_w // 2)
        assert (ours[data[f"{name}.idx"]] - data[f"{name}.rows"]).abs().max() <= TOLERANCE
    assert (table(3, 5) - data["lat6x10_T13.full"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("size", ["480x720_T13", "48x80_T13", "512x512_T13"])
def test_interpolated_rope(size):
    (height, width), latent_t = map(int, size.split("_T")[0].split("x")), int(size.split("_T")[1])
    check_rope(f"tiny-5b.{size}", positions.interpolated_rotary(latent_t, height // 16, width // 16, 30, 45))


@pytest.mark.parametrize("size", ["48x80_T12", "512x512_T12"])
def test_integer_rope(size):
    (height, width), latent_t = map(int, size.split("_T")[0].split("x")), int(size.split("_T")[1])
    check_rope(f"tiny-v1.5.{size}", positions.integer_rotary(latent_t // 2, height // 16, width // 16))


def check_rope(name: str, rope: torch.Tensor) -> None:
    data = reference.load("rope")
    for part, ours in (("cos", rope.real), ("sin", rope.imag)):
        ours = ours.repeat_interleave(2, dim=-1)
        if f"{name}.idx" in data:
            ours, expected = ours[data[f"{name}.idx"]], data[f"{name}.{part}_rows"]
        else:
            expected = data[f"{name}.{part}"]
        assert (ours - expected).abs().max() <= TOLERANCE


def test_noise_augmentation(monkeypatch):
    data = reference.load("noise_augmentation")
    monkeypatch.setattr(torch, "randn", lambda *_args, **_options: data["randn"])
    assert (inpaint.add_reference_noise(data["x"], 0.0563, seed=0) - data["y"]).abs().max() <= TOLERANCE

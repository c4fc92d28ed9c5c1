"""Start and end images, masks on videos and latents, and the channels of InP models."""

import pytest
import torch
from cogvideox_fun.sampling import inpaint, masks
from hypothesis import given
from hypothesis import strategies as some
from tried import levels, random, tried

seeds = some.integers(0, 2**32)
sides = some.integers(1, 40)


def gradient(height: int, width: int) -> torch.Tensor:
    """An image whose red tells the column and whose green tells the row."""
    x = torch.linspace(0, 1, width).expand(height, width)
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    return torch.stack([x, y, torch.zeros(height, width)], dim=-1)[None]


@tried
@given(seeds, some.integers(0, 5), some.integers(0, 5), some.integers(0, 3), sides, sides)
def test_start_and_end_are_known_and_nothing_else(seed, starts, ends, quarter, height, width):
    length = 4 * quarter + 1
    start, end = (random(seed + n, n, height, width, 3) if n else None for n in (starts, ends))
    if starts + ends > length:
        with pytest.raises(ValueError, match=f"but the video has {length}: set length to") as error:
            masks.build_start_end(32, 16, length, start, end)
        least = int(str(error.value).split("set length to ")[1].split(" ")[0])
        assert least % 4 == 1 and starts + ends <= least < starts + ends + 4
        length = least
    video, mask = masks.build_start_end(32, 16, length, start, end)
    known = [*range(starts), *range(length - ends, length)]
    assert video.shape == (length, 16, 32, 3) and (starts or ends or not video.any())
    assert [int(frame.unique()) for frame in mask] == [int(index not in known) for index in range(length)]
    if starts:
        assert torch.equal(video[:starts], masks.resize_image(start, 32, 16))
    if ends:
        assert torch.equal(video[length - ends :], masks.resize_image(end, 32, 16))


@pytest.mark.parametrize("channels, remedy", [(1, "Image to Mask and Convert Mask"), (4, "Split Image with Alpha")])
def test_images_that_are_not_rgb(channels, remedy):
    with pytest.raises(ValueError, match=f"end_image has {channels} channels.*{remedy}"):
        masks.build_start_end(32, 16, 5, None, torch.rand(1, 16, 32, channels))


@pytest.mark.parametrize(
    "size, fit, corners",
    [
        ((64, 256), "crop", ((96 / 255, 0), (159 / 255, 1))),  # a wide picture loses its sides, evenly
        ((256, 64), "crop", ((0, 96 / 255), (1, 159 / 255))),
        ((64, 256), "stretch", ((0, 0), (1, 1))),
    ],
)
def test_resizing_an_image(size, fit, corners):
    out = masks.resize_image(gradient(*size), 64, 64, fit)
    for corner, expected in zip((out[0, 0, 0], out[0, -1, -1]), corners, strict=True):
        assert corner[:2].tolist() == pytest.approx(expected, abs=0.02)


def test_an_image_of_the_right_size_is_untouched():
    image = torch.rand(2, 16, 32, 3)  # not on 8-bit steps
    assert masks.resize_image(image, 32, 16) is image


@tried
@given(seeds, some.integers(1, 12), sides, sides, some.integers(0, 4), sides, sides, some.booleans())
def test_a_mask_fits_a_video_or_is_refused(seed, frames, height, width, quarter, to_height, to_width, soft):
    length = 4 * quarter + 1
    mask = levels(seed, frames, height, width)
    if frames != 1 and not 0 <= frames - length < 4:
        with pytest.raises(ValueError, match=f"mask has {frames} frames but the video has {length}"):
            masks.fit_mask(mask, length, to_height, to_width, soft)
        return
    found = masks.fit_mask(mask, length, to_height, to_width, soft)
    assert found.shape == (length, to_height, to_width) and found.dtype == torch.float32
    for index in range(length):
        given_values = set(mask[min(index, frames - 1)].unique().tolist())
        assert set(found[index].unique().tolist()) <= (given_values if soft else {0.0, 1.0})
    if not soft:  # 0.5 and above generates
        assert torch.equal(found, (masks.fit_mask(mask, length, to_height, to_width, soft=True) >= 0.5).float())


@pytest.mark.parametrize("shape", [(6, 8), (1, 6, 8), (1, 1, 6, 8)])
def test_a_mask_in_any_shape_of_comfyuis_nodes(shape):
    mask = torch.rand(shape)
    assert torch.equal(masks.as_frames(mask), mask.reshape(1, 6, 8))
    with pytest.raises(ValueError, match=r"the mask has the shape \[1, 6, 8, 3\], expected \[frames"):
        masks.as_frames(torch.zeros(1, 6, 8, 3))


def test_a_mask_without_frames():
    with pytest.raises(ValueError, match="the mask has no frames"):
        masks.as_frames(torch.zeros(0, 8, 8))


def test_a_mask_is_resized_to_where_it_was():
    mask = torch.zeros(1, 2, 2)
    mask[0, 0, 1] = 1
    out = masks.fit_mask(mask, 5, 16, 32)
    assert out[4, :8, 16:].all() and not out[4, 8:].any() and not out[4, :, :16].any()
    with pytest.raises(ValueError, match="the mask has the shape"):
        masks.fit_mask(torch.ones(1, 3, 4, 4), 1, 4, 4)


@tried
@given(seeds, some.integers(0, 8), sides, sides, some.integers(0, 4), some.integers(1, 9), some.integers(1, 9))
def test_a_mask_on_the_latent_grid(seed, more, height, width, latent_more, latent_h, latent_w):
    """No value is new, and the first latent frame depends on the first frame alone, the others on the others."""
    mask = random(seed, 1, 1, 1 + more, height, width)
    latent_t = 1 + (latent_more if more else 0)
    found = masks.resize_mask_3d(mask, latent_t, latent_h, latent_w)
    assert found.shape == (1, 1, latent_t, latent_h, latent_w)
    assert mask.min() - 1e-5 <= found.min() and found.max() <= mask.max() + 1e-5
    other = torch.cat([mask[:, :, :1], 1 - mask[:, :, 1:]], dim=2)
    assert torch.equal(masks.resize_mask_3d(other, latent_t, latent_h, latent_w)[:, :, 0], found[:, :, 0])
    other = torch.cat([1 - mask[:, :, :1], mask[:, :, 1:]], dim=2)
    assert torch.equal(masks.resize_mask_3d(other, latent_t, latent_h, latent_w)[:, :, 1:], found[:, :, 1:])


def test_a_known_first_frame_and_a_region_on_the_latent_grid():
    mask = torch.ones(9, 48, 80)
    mask[0] = 0
    out = masks.mask_to_latent(mask, 3, 6, 10)
    assert out.shape == (3, 6, 10) and not out[0].any() and out[1:].all()
    mask = torch.zeros(1, 480, 720)
    mask[:, :240] = 1
    out = masks.mask_to_latent(mask, 13, 60, 90)
    assert out[:, :29].all() and not out[:, 31:].any()


def test_generated_pixels_are_black_and_kept_ones_get_noise_that_depends_on_the_seed_alone():
    video, mask = random(0, 3, 32, 32, 3), levels(1, 3, 32, 32)
    black = mask >= 0.5
    state = torch.get_rng_state()
    found = inpaint.reference_pixels(video, mask, 0.1, seed=7)
    noise = (found - (video * 2 - 1))[~black]
    assert (found[black] == -1).all() and noise.std().item() == pytest.approx(0.1, rel=0.1)
    assert torch.equal(inpaint.reference_pixels(video, mask)[~black], (video * 2 - 1)[~black])
    assert torch.equal(inpaint.reference_pixels(video, mask, 0.1, seed=7), found)
    assert not torch.equal(inpaint.reference_pixels(video, mask, 0.1, seed=8), found)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was read"


def test_inpaint_latents_hold_known_times_the_scale():
    mask = torch.zeros(1, 1, 2, 2, 2)
    mask[:, :, 1] = 1
    latent = torch.rand(1, 16, 2, 2, 2)
    out = inpaint.inpaint_latents(mask, latent, 0.7)
    assert (out[:, 0, 0] == 0.7).all() and not out[:, 0, 1].any() and torch.equal(out[:, 1:], latent)


def test_one_mask_for_a_long_video_needs_the_memory_of_one_frame():
    mask = torch.rand(1, 30, 50, generator=torch.Generator().manual_seed(0))
    fitted = masks.fit_mask(mask, 1001, 60, 100)
    assert fitted.shape == (1001, 60, 100) and fitted.untyped_storage().nbytes() == 60 * 100 * 4
    assert torch.equal(fitted[7], masks.fit_mask(mask, 1, 60, 100)[0])


@pytest.mark.parametrize("mask, noise", [(None, 0.0), (torch.ones(5, 8, 8), 0.0), (None, 0.1)])
def test_the_video_itself_is_not_changed(mask, noise):
    """VAE Encode goes on in place with what it gets."""
    video = torch.rand(5, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    before = video.clone()
    inpaint.reference_pixels(video, mask, noise).zero_()
    assert torch.equal(video, before)

import pytest
import torch
from cogvideox_fun.sampling import inpaint, masks


def gradient(height, width):
    """An image whose value tells where a pixel was."""
    x = torch.linspace(0, 1, width).expand(height, width)
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    return torch.stack([x, y, torch.zeros(height, width)], dim=-1)[None]


class TestStartEnd:
    def test_neither_is_black_and_all_generated(self):
        video, mask = masks.build_start_end(32, 16, 5)
        assert video.shape == (5, 16, 32, 3) and not video.any()
        assert mask.shape == (5, 16, 32) and mask.all()

    @pytest.mark.parametrize("start_frames, end_frames", [(1, 0), (0, 1), (1, 1), (3, 0), (2, 3), (9, 0), (4, 5)])
    def test_known_frames(self, start_frames, end_frames):
        start = torch.rand(start_frames, 16, 32, 3) if start_frames else None
        end = torch.rand(end_frames, 16, 32, 3) if end_frames else None
        video, mask = masks.build_start_end(32, 16, 9, start, end)
        known = [i < start_frames or i >= 9 - end_frames for i in range(9)]
        assert [not mask[i].any() for i in range(9)] == known
        assert all(mask[i].all() for i in range(9) if not known[i])
        if start_frames:
            assert torch.equal(video[:start_frames], start)
        if end_frames:
            assert torch.equal(video[9 - end_frames :], end)

    def test_one_frame_makes_an_image(self):
        video, mask = masks.build_start_end(32, 16, 1, torch.rand(1, 16, 32, 3))
        assert video.shape == (1, 16, 32, 3) and not mask.any()

    def test_more_images_than_frames(self):
        with pytest.raises(ValueError, match="start_image has 3 frames and end_image has 3 frames.*video has 5"):
            masks.build_start_end(32, 16, 5, torch.rand(3, 16, 32, 3), torch.rand(3, 16, 32, 3))

    @pytest.mark.parametrize("channels, remedy", [(1, "Convert Mask to Image"), (4, "Split Image with Alpha")])
    def test_images_that_are_not_rgb(self, channels, remedy):
        with pytest.raises(ValueError, match=f"end_image has {channels} channels.*{remedy}"):
            masks.build_start_end(32, 16, 5, None, torch.rand(1, 16, 32, channels))

    def test_nan(self):
        with pytest.raises(ValueError, match="start_image holds NaN"):
            masks.build_start_end(32, 16, 5, torch.full((1, 16, 32, 3), torch.nan))

    def test_size(self):
        with pytest.raises(ValueError, match="width is 30"):
            masks.build_start_end(30, 16, 5)


class TestResizeImage:
    def test_right_size_is_untouched(self):
        image = torch.rand(2, 16, 32, 3)  # not on 8-bit steps
        assert masks.resize_image(image, 32, 16) is image

    def test_crop_keeps_proportions(self):
        """A wide picture loses its sides, evenly, and is not squeezed."""
        out = masks.resize_image(gradient(64, 256), 64, 64, "crop")
        assert out.shape == (1, 64, 64, 3)
        assert out[0, 32, 0, 0].item() == pytest.approx(96 / 255, abs=0.02)
        assert out[0, 32, -1, 0].item() == pytest.approx(159 / 255, abs=0.02)
        assert out[0, 0, 32, 1].item() == pytest.approx(0, abs=0.02)
        assert out[0, -1, 32, 1].item() == pytest.approx(1, abs=0.02)

    def test_crop_of_a_tall_picture(self):
        out = masks.resize_image(gradient(256, 64), 64, 64, "crop")
        assert out[0, 0, 32, 1].item() == pytest.approx(96 / 255, abs=0.02)
        assert out[0, 32, 0, 0].item() == pytest.approx(0, abs=0.02)

    def test_stretch_keeps_everything(self):
        out = masks.resize_image(gradient(64, 256), 64, 64, "stretch")
        assert out[0, 32, 0, 0].item() == pytest.approx(0, abs=0.02)
        assert out[0, 32, -1, 0].item() == pytest.approx(1, abs=0.02)

    def test_unknown_fit(self):
        with pytest.raises(ValueError, match="'pad'"):
            masks.resize_image(torch.rand(1, 8, 8, 3), 16, 16, "pad")


class TestFitMask:
    def test_one_frame_is_repeated_and_resized(self):
        mask = torch.zeros(1, 2, 2)
        mask[0, 0, 1] = 1
        out = masks.fit_mask(mask, 5, 16, 32)
        assert out.shape == (5, 16, 32)
        assert out[4, :8, 16:].all() and not out[4, 8:].any() and not out[4, :, :16].any()

    @pytest.mark.parametrize("value, expected", [(0.49, 0.0), (0.5, 1.0), (0.51, 1.0)])
    def test_binarised_at_a_half(self, value, expected):
        assert masks.fit_mask(torch.full((1, 4, 4), value), 1, 4, 4).unique().tolist() == [expected]

    def test_soft_lets_values_through(self):
        assert masks.fit_mask(torch.full((1, 4, 4), 0.25), 1, 4, 4, soft=True).unique().tolist() == [0.25]

    def test_a_mask_longer_by_the_frames_that_the_vae_drops(self):
        assert masks.fit_mask(torch.ones(12, 4, 4), 9, 4, 4).shape == (9, 4, 4)

    @pytest.mark.parametrize("frames", [5, 8, 13, 33])
    def test_wrong_number_of_frames(self, frames):
        with pytest.raises(ValueError, match=f"mask has {frames} frames but the video has 9"):
            masks.fit_mask(torch.ones(frames, 4, 4), 9, 4, 4)

    def test_nan(self):
        with pytest.raises(ValueError, match="NaN"):
            masks.fit_mask(torch.full((1, 4, 4), torch.nan), 1, 4, 4)

    def test_shape(self):
        with pytest.raises(ValueError, match="shape"):
            masks.fit_mask(torch.ones(1, 3, 4, 4), 1, 4, 4)


class TestMaskToLatent:
    def test_polarity(self):
        """1 = generate before and after."""
        mask = torch.ones(9, 48, 80)
        mask[0] = 0
        out = masks.mask_to_latent(mask, 3, 6, 10)
        assert out.shape == (3, 6, 10)
        assert not out[0].any() and out[1:].all()

    def test_region_of_a_picture(self):
        mask = torch.zeros(1, 480, 720)
        mask[:, :240] = 1
        out = masks.mask_to_latent(mask, 13, 60, 90)
        assert out[:, :29].all() and not out[:, 31:].any()


def test_masked_video_is_black_where_generated():
    video = torch.rand(2, 4, 4, 3)
    mask = torch.zeros(2, 4, 4)
    mask[1, :2] = 0.5
    out = inpaint.mask_video(video, mask)
    assert (out[1, :2] == -1).all()
    assert torch.equal(out[0], video[0]) and torch.equal(out[1, 2:], video[1, 2:])


def test_reference_noise_depends_on_the_seed_alone():
    video = torch.rand(1, 3, 5, 8, 8)
    video[:, :, 2] = -1
    torch.manual_seed(1)
    first = inpaint.add_reference_noise(video, 0.1, seed=7)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(inpaint.add_reference_noise(video, 0.1, seed=7), first)
    assert torch.equal(torch.get_rng_state(), state), "the global generator was read"
    assert not torch.equal(inpaint.add_reference_noise(video, 0.1, seed=8), first)
    assert (first[:, :, 2] == -1).all()
    assert (first - video)[:, :, 0].std().item() == pytest.approx(0.1, rel=0.3)


def test_inpaint_latents_hold_known_times_the_scale():
    mask = torch.zeros(1, 1, 2, 2, 2)
    mask[:, :, 1] = 1
    latent = torch.rand(1, 16, 2, 2, 2)
    out = inpaint.inpaint_latents(mask, latent, 0.7)
    assert out.shape == (1, 17, 2, 2, 2)
    assert (out[:, 0, 0] == 0.7).all() and not out[:, 0, 1].any()
    assert torch.equal(out[:, 1:], latent)

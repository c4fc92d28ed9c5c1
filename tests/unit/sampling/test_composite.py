"""Colours matched to the source, and the source pasted back, on a real photograph."""

import pytest
import torch
from cogvideox_fun.sampling.composite import composite
from cogvideox_fun.sampling.masks import fit_mask, resize_image
from cogvideox_fun.tools.media import photographs


@pytest.fixture(scope="module")
def source():
    """Eleven frames of a photograph that moves, 64 x 96."""
    image = resize_image(photographs()[0], 128, 64)[0]
    return torch.stack([image[:, i : i + 96] for i in range(11)])


@pytest.fixture
def mask():
    mask = torch.zeros(11, 64, 96)
    mask[:, 16:48, 32:64] = 1
    return mask


def cast(video: torch.Tensor) -> torch.Tensor:
    """Warmer, darker and flatter."""
    return (video * torch.tensor([0.8, 0.7, 0.6]) + 0.1).clamp(0, 1)


def test_a_colour_cast_is_removed(source):
    """To a third of it; what is left is in the shape of the curve, which mean and contrast can't undo."""
    off = (cast(source) - source).abs().mean()
    left = (composite(cast(source), source) - source).abs().mean()
    assert off > 0.07 and left < off / 3
    half = (composite(cast(source), source, match_colors=0.5) - source).abs().mean()
    assert 0.4 * off < half < 0.6 * off


def test_a_video_with_the_sources_colours_stays(source):
    assert (composite(source, source) - source).abs().max() < 1e-3
    assert torch.equal(composite(cast(source), source, match_colors=0.0), cast(source))


def test_matching_colours_can_be_interrupted(source):
    told = []
    assert torch.equal(
        composite(cast(source), source, on_progress=lambda *at: told.append(at)), composite(cast(source), source)
    )
    assert told == [(0, 33), (8, 33), (11, 33), (19, 33), (22, 33), (30, 33)]


def test_the_known_part_comes_back_to_the_bit(source, mask):
    video = torch.rand(11, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    for match in (0.0, 1.0):
        result = composite(video, source, mask, match)
        assert torch.equal(result[mask == 0], source[mask == 0])
        assert not torch.equal(result[mask == 1], source[mask == 1])
    assert torch.equal(composite(video, source, mask, 0.0)[mask == 1], video[mask == 1])
    assert torch.equal(composite(video, source, mask, 0.0, paste_known=False), video)


def test_a_feathered_mask_blends(source):
    quarter = torch.full((1, 64, 96), 0.25)
    result = composite(torch.ones_like(source), source, quarter, match_colors=0.0)
    torch.testing.assert_close(result, 0.5 + 0.5 * source)


def test_what_the_mask_editor_paints_leaves_no_ghost(source):
    """Its default opacity is 0.7, and VAE Encode gives the model every pixel from 0.5 on."""
    video, painted = torch.ones_like(source), torch.zeros(1, 64, 96)
    painted[:, 20:40, 30:60] = 0.7
    region = fit_mask(painted, len(source), 64, 96) == 1
    result = composite(video, source, painted, match_colors=0.0)
    assert torch.equal(result[region], video[region]) and torch.equal(result[~region], source[~region])


def test_colours_are_measured_where_the_source_was_kept(source, mask):
    """What is new may have colours of its own: a red square in a cast video comes out as red, without the cast."""
    video = source.clone()
    video[mask == 1] = torch.tensor([0.9, 0.1, 0.1])
    result = composite(cast(video), source, mask)
    assert (result - video).abs().mean() < (cast(video) - video).abs().mean() / 4


def test_a_flat_region_does_not_blow_up_the_contrast(source, mask):
    """The kept part is one grey, which says nothing of the contrast."""
    grey = torch.full_like(source, 0.5)
    video = source * mask[..., None] + 0.5 * (1 - mask[..., None])
    assert (composite(video, grey, mask, paste_known=False) - video).abs().max() < 1e-3


@pytest.mark.parametrize("ours, theirs", [(0.01, 0.0), (0.004, 0.02)], ids=["flat", "grain"])
def test_noise_in_a_flat_region_does_not_change_the_contrast(mask, ours, theirs):
    """What is new keeps its colour over a flat background, where the VAE adds noise or takes the grain away."""
    generator = torch.Generator().manual_seed(0)
    video, source = (0.9 + noise * torch.randn(11, 64, 96, 3, generator=generator) for noise in (ours, theirs))
    video[mask == 1] = torch.tensor([0.6, 0.1, 0.1])
    result = composite(video, source, mask, paste_known=False)
    assert (result - video)[mask == 1].abs().max() < 0.02


@pytest.mark.parametrize("factor, change", [(0.01, 1.0), (0.4, 2.0), (0.8, 1.25), (4.0, 0.5)])
def test_the_contrast_changes_by_two_at_most(source, factor, change):
    """A faint video is not stretched into noise, nor a strong one made flat."""
    grey = 0.5 + 0.2 * (source - 0.5).mean(dim=-1, keepdim=True).expand(-1, -1, -1, 3)
    video = grey.mean() + factor * (grey - grey.mean())
    result = composite(video, grey)
    assert abs(result.std() / video.std() / change - 1) < 0.05


def test_one_measure_for_the_whole_video(source):
    """Frames of different brightness: what is the same colour in two of them stays so, in whatever order they come."""
    video = cast(source) * torch.linspace(0.5, 1, 11)[:, None, None, None]
    video[:, :8, :8] = torch.tensor([0.3, 0.4, 0.5])
    result = composite(video, source)
    assert (result[:, :8, :8] - result[0, 0, 0]).abs().max() < 1e-5
    order = torch.arange(10, -1, -1)
    torch.testing.assert_close(composite(video[order], source[order]), result[order], atol=1e-4, rtol=0)


def test_too_little_was_kept_to_match_colours_by(source, mask, caplog):
    ones = torch.ones(11, 64, 96)
    ones[:, 0, 0] = 0
    result = composite(cast(source), source, ones)
    assert torch.equal(result[ones == 1], cast(source)[ones == 1]) and "only 0.0 % of the source" in caplog.text


def test_lengths_and_sizes(source, mask):
    """A source longer than the video is cut, as VAE Encode cut it; anything else is an error with both numbers."""
    video = cast(source[:9])
    torch.testing.assert_close(composite(video, source), composite(video, source[:9]))
    still = torch.cat([mask, mask[:9]])  # as long as a source of twenty frames
    longer = torch.cat([source, source[:9]])
    torch.testing.assert_close(composite(video, longer, still), composite(video, source, mask))
    with pytest.raises(ValueError, match="mask has 20 frames but the video has 9"):
        composite(video, source, still)
    with pytest.raises(ValueError, match="source has 5 frames, but the video has 9"):
        composite(video, source[:5])
    with pytest.raises(ValueError, match="source is 96 x 32, but the video is 96 x 64"):
        composite(video, source[:, :32])
    with pytest.raises(ValueError, match="match_colors is 1.5"):
        composite(video, source, match_colors=1.5)

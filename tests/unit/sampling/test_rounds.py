"""How many rounds a long video has, how they are joined, and the colours of the first round."""

import pytest
import torch
from cogvideox_fun.sampling.anchor import MOST_SHARPENING, anchored, detail, lost_sharpness
from cogvideox_fun.sampling.rounds import join_rounds, prompt_lines, start_frames, summary
from skimage import data

ROUND, OVERLAP = 13, 5


@pytest.mark.parametrize("length", range(ROUND, 60))
def test_every_length_is_exact(length):
    starts = start_frames(length, ROUND, OVERLAP)
    assert length == ROUND + sum(ROUND - known for known in starts[1:])
    assert all(known == OVERLAP for known in starts[:-1]) and OVERLAP <= starts[-1] < ROUND
    longer = start_frames(length + 40, ROUND, OVERLAP)
    assert longer[: len(starts) - 1] == starts[:-1], "only the last round changes"


@pytest.mark.parametrize("overlap", [0, -3, 13, 20])
def test_an_overlap_that_adds_nothing(overlap):
    with pytest.raises(ValueError, match=f"overlap is {overlap} frames, expected 1 to 12: a round has 13 frames"):
        start_frames(29, ROUND, overlap)


def test_a_video_that_is_shorter_than_a_round():
    with pytest.raises(
        ValueError, match="length is 12 frames, shorter than one round of 13: set length to 13 or more"
    ):
        start_frames(12, ROUND, OVERLAP)


def test_lines_of_the_prompt():
    text = "  one\n\n two \r\nthree\n"
    assert prompt_lines(text, True) == ["one", "two", "three"]
    assert prompt_lines(text, False) == [text]
    assert prompt_lines(" \n ", True) == [""]


@pytest.mark.parametrize(
    ("length", "lines", "text"),
    [
        (13, 1, "13 frames: 1 round of 13"),
        (29, 3, "29 frames: 3 rounds of 13"),
        (28, 1, "28 frames: 3 rounds of 13, the last one adds 7"),
        (21, 3, "21 frames: 2 rounds of 13; the last 1 of 3 prompt lines is not used"),
        (20, 4, "20 frames: 2 rounds of 13, the last one adds 7; the last 2 of 4 prompt lines are not used"),
    ],
)
def test_what_the_node_shows(length, lines, text):
    assert summary(length, ROUND, start_frames(length, ROUND, OVERLAP), lines) == text


def numbered(first: int, count: int = ROUND) -> torch.Tensor:
    """Frames that show their number."""
    return torch.arange(first, first + count).float().view(-1, 1, 1, 1).expand(-1, 2, 4, 3)


@pytest.mark.parametrize("length", range(ROUND, 46))
def test_a_frame_is_at_its_place_in_the_joined_video(length):
    starts = start_frames(length, ROUND, OVERLAP)
    firsts = [0]
    for known in starts[1:]:
        firsts.append(firsts[-1] + ROUND - known)
    video = join_rounds([numbered(first) for first in firsts], OVERLAP, length)
    assert torch.allclose(video, numbered(0, length))


def test_rounds_are_blended_where_two_show_the_same():
    first, second = torch.zeros(ROUND, 2, 4, 3), torch.ones(ROUND, 2, 4, 3)
    video = join_rounds([first, second], OVERLAP, 21)[:, 0, 0, 0]
    assert video.tolist() == pytest.approx([0] * 8 + [i / 6 for i in range(1, 6)] + [1] * 8)
    later = join_rounds([first, second], OVERLAP, 18)[:, 0, 0, 0]
    assert later.tolist() == pytest.approx([0] * 8 + [i / 6 for i in range(1, 6)] + [1] * 5)
    assert not first.any() and second.all(), "the rounds stay as they are"


def test_rounds_that_make_no_such_video():
    rounds = [numbered(0), numbered(8)]
    for overlap, length in ((OVERLAP, 22), (OVERLAP, 8), (OVERLAP, 9), (OVERLAP, 12), (ROUND, 13)):
        with pytest.raises(ValueError, match=f"2 rounds of 13 frames with an overlap of {overlap} don't make a video"):
            join_rounds(rounds, overlap, length)
    assert len(join_rounds(rounds, OVERLAP, 13)) == 13, "the least: all that the last round adds is left out"
    assert join_rounds(rounds[:1], OVERLAP, 1).equal(rounds[0][-1:]), "of one round, its last frame"
    with pytest.raises(ValueError, match="the first round is 4 x 2 and another one 2 x 2, expected the same size"):
        join_rounds([numbered(0), numbered(8)[:, :, :2]], OVERLAP, 21)


# colours


def scene(seed: int = 0, contrast: float = 0.2, height: int = 32, width: int = 48) -> torch.Tensor:
    """A background that stands still and a square that moves over it: F H W 3."""
    generator = torch.Generator().manual_seed(seed)
    coarse = 0.5 + contrast * (torch.rand(1, 3, 4, 6, generator=generator) - 0.5)
    background = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0].movedim(0, -1)
    video = background.repeat(ROUND, 1, 1, 1)
    for i in range(ROUND):
        video[i, 8:16, 2 * i : 2 * i + 8] = torch.tensor([0.9, 0.1, 0.1])
    return video


def test_a_drift_of_what_stands_still_is_taken_back():
    """Colour and contrast; the square that moves is not measured, and changes with the rest."""
    first = scene()
    drifted = ((first - 0.5) * 1.15 + 0.5 + torch.tensor([0.03, -0.01, 0.02])).clamp(0, 1)
    still = slice(20, None)  # rows that the square never covers
    before, after = ((one - first)[:, still].abs().mean() for one in (drifted, anchored(drifted, first)))
    assert before > 0.02 and after < 0.15 * before
    half = anchored(drifted, first, 0.5)
    assert torch.allclose(half, torch.lerp(drifted, anchored(drifted, first), 0.5), atol=1e-5)


def test_what_moves_is_not_measured():
    """Another colour of the moving square changes nothing else."""
    first, other = scene(), scene()
    for i in range(ROUND):
        other[i, 8:16, 2 * i : 2 * i + 8] = torch.tensor([0.1, 0.9, 0.1])
    still = slice(20, None)
    assert torch.allclose(anchored(other, first)[:, still], first[:, still], atol=2e-3)


@pytest.mark.parametrize("shorter", [4, 8, ROUND - 3])
def test_a_round_may_have_another_length(shorter):
    first = scene()
    drifted = (first + torch.tensor([0.04, -0.02, 0.03])).clamp(0, 1)
    for one, other in ((drifted[:shorter], first), (drifted, first[:shorter])):
        found, source = anchored(one, other), first[: len(one)]
        assert found.shape == one.shape and (found - source).abs().mean() < 0.3 * (one - source).abs().mean()


def textured(strength: float = 0.1) -> torch.Tensor:
    """`scene` with fine detail on what stands still, F H W 3."""
    grain = torch.rand(32, 48, 3, generator=torch.Generator().manual_seed(1)) - 0.5
    return scene() + strength * grain


def blurred(video: torch.Tensor) -> torch.Tensor:
    from kornia.filters import gaussian_blur2d

    return gaussian_blur2d(video.movedim(-1, 1), (3, 3), (0.6, 0.6), "replicate").movedim(1, -1)


def sharpness(video: torch.Tensor) -> float:
    """The root mean square of the differences of neighbouring pixels."""
    return float(torch.cat([video.diff(dim=axis).flatten() for axis in (1, 2)]).square().mean().sqrt())


def photograph() -> torch.Tensor:
    """A photograph that stands still, F H W 3."""
    picture = torch.from_numpy(data.astronaut()[:128, 160:288]).float() / 255
    return picture.repeat(ROUND, 1, 1, 1)


EVERYWHERE = torch.ones(32, 48, dtype=torch.bool)


@pytest.mark.parametrize(
    "first", [scene(), textured(), photograph()], ids=["edges of what moves", "detail everywhere", "photograph"]
)
@pytest.mark.parametrize("length", [ROUND, 5])
def test_lost_sharpness_is_brought_back(first, length):
    soft = blurred(first)[:length]
    found = anchored(soft, first)
    assert sharpness(soft) < 0.8 * sharpness(first)
    # of a still pixel, only as much as it had is brought back
    assert sharpness(found) == pytest.approx(sharpness(first[:length]), rel=0.1)
    assert (found - first[:length]).square().mean() < 0.9 * (soft - first[:length]).square().mean()
    assert torch.allclose(anchored(soft, first, 0.5), torch.lerp(soft, found, 0.5), atol=1e-5)


def test_the_amount_of_lost_sharpness():
    soft = blurred(scene())
    still = EVERYWHERE.clone()
    still[:20] = False  # where the square moves
    amount, room = lost_sharpness(soft, soft + 0.7 * detail(soft), still)
    assert amount == pytest.approx(0.7, rel=1e-3)
    assert room[:20].isinf().all() and room[24:].isfinite().all()


def test_sharpening_has_a_limit():
    soft = blurred(blurred(blurred(blurred(textured(0.3)))))
    amount, _ = lost_sharpness(soft, textured(0.3), EVERYWHERE)
    assert amount == MOST_SHARPENING


def test_nothing_is_sharpened_for_an_object_that_left():
    """It flickers, so it does not stand still."""
    first, gone = textured(), textured()
    first[:, 4:16:2, 4:16] = 1.0
    first[::2, 4:16, 4:16] = first[::2, 4:16, 4:16].flip(1)
    assert sharpness(gone) < 0.8 * sharpness(first)
    assert torch.allclose(anchored(gone, first), gone, atol=4e-3)


def test_a_small_still_object_is_not_sharpened_for_another_one():
    """The picture is flat but for it: on average still pixels have hardly any detail."""
    first = torch.full((ROUND, 128, 128, 3), 0.5)
    first[:, 100:103, 60:63] = 0.7
    gone = first.clone()
    for i in range(ROUND):
        first[i, 10:30, 3 * i : 3 * i + 8] = torch.tensor([1.0, 0.0, 0.0])
    assert lost_sharpness(gone, first, (gone == first).all(0).all(-1))[0] > 0.1
    assert (anchored(gone, first) - gone)[:, 50:].abs().max() < 1.1 / 255


@pytest.mark.parametrize("what", ["sharper", "flat", "scattered"])
def test_what_is_not_sharpened(what):
    """A round that lost nothing, one without detail, and one of which no pixel with its neighbours stands still."""
    first = textured()
    still = EVERYWHERE.clone()
    still[::4, ::4] = what != "scattered"
    other = {
        "sharper": (first + 0.5 * (first - blurred(first))).clamp(0, 1),
        "flat": torch.full_like(first, 0.5),
        "scattered": blurred(first),
    }[what]
    assert lost_sharpness(other, first, still)[0] == 0


def test_progress_of_matching():
    seen = []
    first = textured()
    anchored(blurred(first), first, on_progress=lambda done, total: seen.append(done / total))
    assert seen == sorted(seen) and seen[0] == 0 and len(set(seen)) == len(seen) == 12, "six passes of two parts"
    assert max(b - a for a, b in zip(seen, [*seen[1:], 1.0], strict=True)) < 0.2


@pytest.mark.parametrize("what", ["camera", "scene", "light", "flicker"])
def test_colours_stay_where_nothing_stands_still(what):
    first = scene(contrast=0.9)
    other = {
        "camera": torch.stack([first[0].roll(4 * i, 1) for i in range(ROUND)]),
        "scene": 1 - first,
        "flicker": first * (1 + 0.3 * (-1.0) ** torch.arange(ROUND)).view(-1, 1, 1, 1),  # the same on average
        "light": first * torch.linspace(1, 0.5, ROUND).view(-1, 1, 1, 1),
    }[what]
    assert anchored(other, first) is other


def test_strength():
    first = scene()
    assert anchored(first + 0.05, first, 0.0).equal(first + 0.05)
    for strength in (-0.1, 1.5):
        with pytest.raises(ValueError, match=rf"match_colors is {strength}, expected 0 .* to 1"):
            anchored(first, first, strength)
    with pytest.raises(ValueError, match="expected the same size"):
        anchored(first[:, :, :16], first)

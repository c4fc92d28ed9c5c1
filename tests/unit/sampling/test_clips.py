"""Frames and sound of a clip by time."""

import pytest
import torch
from cogvideox_fun.sampling.clips import join, rotated, shown_at, sound_within, times_within


@pytest.mark.parametrize("rate", [8, 12.5, 23.976, 24, 30, 60, 5])
@pytest.mark.parametrize("start", [0.0, 0.3, 1.0])
def test_the_frame_that_is_shown_at_each_time(rate, start):
    """Of a clip of 3 seconds: never one that has not begun, never one that has been replaced."""
    count = round(3 * rate)
    begins = [i / rate for i in range(count)]
    times = times_within(start, 3.0, 8.0, 1000)
    assert times[0] == start and 3.0 - 1 / 8 - 2e-3 <= times[-1] < 3.0
    chosen = shown_at(zip(begins, range(count), strict=True), times, lambda i: i)
    assert len(chosen) == len(times)
    for time, i in zip(times, chosen, strict=True):
        assert begins[i] <= time + 1e-3 and (i + 1 == count or begins[i + 1] > time + 1e-3)
    if rate == 24:
        assert chosen == [round(start * 24) + 3 * i for i in range(len(times))] or start == 0.3
    if rate == 5:
        assert len(set(chosen)) < len(chosen), "a slow clip's frames are shown twice"


def test_uneven_times():
    """A clip of a phone: the second frame lasts for half a second, then two come at once."""
    frames = [(0.0, "a"), (0.1, "b"), (0.63, "c"), (0.64, "d")]
    made = []

    def make(frame):
        made.append(frame)
        return frame

    assert shown_at(frames, times_within(0, 1.0, 8, 9), make) == [*"abbbbbdd"]
    assert made == [*"abd"], "each once, and none that is not shown"
    assert shown_at([(0.5, "late")], [0.0, 1.0], str) == ["late", "late"]


def test_it_reads_no_further_than_needed():
    def frames():
        yield from ((0.0, 0), (0.1, 1), (0.2, 2))
        raise AssertionError

    assert shown_at(frames(), [0.0, 0.125], int) == [0, 1]


@pytest.mark.parametrize("seconds, count", [(6.125, 49), (6.0, 48), (1.0, 8), (0.04, 1), (100.0, 49)])
def test_as_many_frames_as_the_clip_has(seconds, count):
    assert len(times_within(0.0, seconds, 8.0, 49)) == count
    assert times_within(2.0, seconds + 2, 8.0, 49)[-1] == 2 + (count - 1) / 8


def test_a_start_behind_the_end_is_named():
    for start in (2.0, 5.0):
        with pytest.raises(ValueError, match=rf"start_seconds is {start:g}, but the clip has 2\.00 seconds"):
            times_within(start, 2.0, 8, 49)


def test_sound_of_a_part():
    sound = torch.arange(100.0)[None, None] + 1
    assert torch.equal(sound_within(sound, 10, 0.0, 2.0, 3.0), sound[..., 20:50])
    late = sound_within(sound, 10, 1.0, 0.5, 1.0)  # it begins half a second later
    assert late[0, 0].tolist() == [0, 0, 0, 0, 0, 1, 2, 3, 4, 5]
    end = sound_within(sound, 10, 0.0, 9.5, 1.0)
    assert end[0, 0].tolist() == [96, 97, 98, 99, 100, 0, 0, 0, 0, 0]
    assert sound_within(sound, 10, 0.0, 50.0, 0.5).tolist() == [[[0.0] * 5]]
    assert sound_within(sound, 10, 20.0, 0.0, 0.5).tolist() == [[[0.0] * 5]]


def test_a_picture_on_its_side_is_turned():
    picture = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [5.0], [6.0]]])
    assert torch.equal(rotated(picture, 0), picture)
    assert rotated(picture, 90)[..., 0].tolist() == [[3, 6], [2, 5], [1, 4]]
    assert torch.equal(rotated(picture, -90), rotated(picture, 270))
    assert torch.equal(rotated(rotated(picture, -90), 90), picture)


def test_a_clip_and_its_continuation_are_blended_where_both_show_the_same(caplog):
    clip = torch.zeros(6, 2, 4, 3)
    following = torch.ones(5, 2, 4, 3)
    joined = join(clip, following, 3)
    assert joined.shape == (8, 2, 4, 3)
    assert joined[:, 0, 0, 0].tolist() == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1])
    assert torch.equal(join(clip, following, 0), torch.cat([clip, following]))
    assert len(join(clip[:2], following, 4)) == 5, "a clip that is shorter is blended whole"
    assert not caplog.messages
    assert len(join(clip, following, len(following))) == len(clip)
    assert "overlap 5 leaves nothing of the continuation, whose length is 5" in caplog.text
    with pytest.raises(ValueError, match="clip is 4 x 2 and continuation 8 x 2, expected the same size: give"):
        join(clip, torch.ones(5, 2, 8, 3), 3)
    with pytest.raises(ValueError, match="continuation"):
        join(clip, torch.ones(5, 2, 4, 4), 3)

"""Token-length buckets, random masks, videos from folders, and that a sample depends only on its seed and number."""

import dataclasses
import itertools
import random

import numpy as np
import pytest
import torch
from cogvideox_fun.sampling.geometry import token_count
from cogvideox_fun.training.data import masks, shapes
from cogvideox_fun.training.data.buckets import Bucket, BucketBatches, token_buckets
from cogvideox_fun.training.data.clips import FolderClips, SceneClips
from cogvideox_fun.training.data.samples import Samples, load
from cogvideox_fun.training.loop.config import MASK_WEIGHTS, Batches, Data, Phase, read_phase
from cogvideox_fun.training.loop.source import open_clips, phase_batches, phase_buckets, phase_draws
from cogvideox_fun.training.planning.plan import PUBLISHED
from pack import ROOT
from video_files import counted, write_video

REPORT = [(512, 512), (768, 768), (1024, 1024)]
CONFIGS = sorted((ROOT / "training" / "configs").rglob("*.toml"))


def draws_of(drawn: BucketBatches, count: int) -> list:
    return [draw for batch in itertools.islice(drawn, count) for draw in batch]


def test_the_reports_lengths():
    """13312 tokens: 49 frames at 512, 21 at 768 and 9 at 1024 (the technical report)."""
    assert [bucket.length for bucket in token_buckets(13312, REPORT, 49)] == [49, 21, 9]
    assert token_buckets(29952, REPORT, 49) == [Bucket(768, 768, 49), Bucket(1024, 1024, 25)]
    assert token_buckets(53248, REPORT, 49) == [Bucket(1024, 1024, 49)]


@pytest.mark.parametrize(
    "tokens, sizes, max_length, words",
    [
        (320, [(64, 64)], 5, "within 10% of 320 tokens at up to 5 frames"),
        (80, [(70, 64)], 17, "width is 70 pixels"),
        (13312, REPORT, 48, "max_length is 48 frames, expected 4n .* use 45 or 49"),
    ],
)
def test_buckets_that_cant_be_made(tokens, sizes, max_length, words):
    with pytest.raises(ValueError, match=words):
        token_buckets(tokens, sizes, max_length)


def test_lengths_of_a_model_with_patches_in_time():
    """V1.5 takes an even number of latent frames: 13 become 12, and 3 become 2, which are no longer 13312 tokens."""
    buckets = token_buckets(13312, [(512, 512), (544, 480), *REPORT[1:]], 49, patch_t=2)
    assert buckets == [Bucket(512, 512, 45), Bucket(544, 480, 45), Bucket(768, 768, 21)]
    phase = Phase("full", "", "", 1, Batches(80, ((64, 64),), 17, 0.25, batch_size=1))
    assert next(phase_batches(phase, SceneClips(0), config=PUBLISHED["v1.5"]))["video"].shape[1] == 13


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_every_batch_of_a_phase_has_its_token_length(path):
    """Or one of the earlier phases' lengths that it repeats, each as often as the phase says."""
    phase = read_phase(path)
    goals, seen = {phase.batches.tokens, *phase.batches.earlier_tokens}, []
    phase = dataclasses.replace(phase, data=dataclasses.replace(phase.data, cache=""))  # made from these draws
    if phase.data.manifest:  # which is the reader's
        phase = dataclasses.replace(phase, data=Data(), batches=dataclasses.replace(phase.batches, batch_size=1))
    for draws in itertools.islice(phase_draws(phase, open_clips(phase.data)), 300):
        assert len(draws) == phase.batches.batch_size
        (bucket,) = {draw.bucket for draw in draws}
        tokens = token_count(bucket.width, bucket.height, bucket.length)
        near = [goal for goal in goals if abs(tokens - goal) <= 0.1 * goal]
        assert near, f"{bucket} has {tokens} tokens, expected one of {goals}"
        seen += near
    assert set(seen) == goals
    earlier = phase.batches.earlier_share if phase.batches.earlier_tokens else 0
    assert abs(seen.count(phase.batches.tokens) / len(seen) - (1 - earlier)) < 0.08
    assert (shapes.NEW_SHAPE in phase.data.shapes) == (phase.task == "lora" and not phase.data.control)  # LoRAs


def test_processes_share_a_batch():
    buckets = token_buckets(80, [(64, 64), (96, 96)], 17)
    whole = list(itertools.islice(BucketBatches(buckets, 6, seed=3), 20))
    parts = [list(itertools.islice(BucketBatches(buckets, 6, 3, rank=rank, world=2), 20)) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert len(first) == len(second) == 3
        assert sorted([*first, *second], key=lambda draw: draw.number) == batch
    with pytest.raises(ValueError, match="batch_size is 6.*multiple of the 4 processes"):
        BucketBatches(buckets, 6, 3, world=4)


def test_clips_go_to_the_closest_shape_that_they_are_long_enough_for():
    buckets = [Bucket(96, 64, 17), Bucket(64, 64, 9), Bucket(64, 96, 5)]
    aspects, lengths = [1.6, 1.6, 1.0, 0.6, 0.6, 1.4], [17, 16, 9, 5, 4, 100]
    drawn = BucketBatches(buckets, 2, 0, aspects, lengths)
    draws = draws_of(drawn, 30)
    expected = [buckets[0], buckets[1], buckets[1], buckets[2], None, buckets[0]]
    assert all(draw.bucket == expected[draw.index] for draw in draws)
    assert {draw.index for draw in draws} == {0, 1, 2, 3, 5} and drawn.too_short == [4]
    assert len({draw.number for draw in draws}) == 60
    with pytest.raises(ValueError, match="the longest has 4 frames, and the shortest bucket takes 5"):
        BucketBatches(buckets, 2, 0, [1.5, 1.5], [4, 1])


def test_bases_give_the_shapes_of_a_video_at_each_resolution():
    """A wide clip is drawn at every base, each time in the shape that is closest to its own."""
    options = Batches(13312, bases=(512, 640, 768, 1024, 1280))
    found = phase_buckets(options, 13312)
    assert {(512, 512), (672, 384), (1344, 768)} <= {(bucket.width, bucket.height) for bucket in found}
    drawn = draws_of(BucketBatches(found, 1, 0, [16 / 9], [100]), 60)
    sizes = {draw.bucket.base: (draw.bucket.width, draw.bucket.height, draw.bucket.length) for draw in drawn}
    expected = {512: (672, 384, 49), 640: (832, 480, 33), 768: (1008, 576, 21), 1024: (1344, 768, 9)}
    assert sizes == expected | {1280: (1680, 960, 5)}


@pytest.mark.parametrize(
    "width, height, bases",
    [
        (640, 360, {512}),
        (1280, 720, {512, 640, 768, 1024}),
        (1920, 1080, {512, 640, 768, 1024, 1280}),
        (320, 180, {512}),
    ],
)
def test_a_clip_is_not_enlarged_into_a_large_base(width, height, bases):
    """Its base is below 1.25 times the mean of its width and height, as in VideoX-Fun's trainer, or the smallest."""
    found = phase_buckets(Batches(13312, bases=(512, 640, 768, 1024, 1280)), 13312)
    drawn = BucketBatches(found, 1, 0, [width / height], [100], [(width + height) / 2])
    assert {draw.bucket.base for draw in draws_of(drawn, 60)} == bases


def test_the_sizes_of_clips_in_a_folder_decide_their_bases(tmp_path):
    """A size that is listed by itself is drawn, too."""
    write_video(tmp_path / "small.mp4", counted(8), 8)  # 64 x 48 pixels
    batches = Batches(16, ((80, 64),), 5, 0.9, batch_size=1, bases=(48, 64, 96))
    phase = Phase("lora", "", "", 1, batches, Data(folders=(str(tmp_path),), fps=8.0))
    draws = draws_of(phase_draws(phase, open_clips(phase.data)), 60)
    assert {draw.bucket.base for draw in draws} == {0, 48, 64}


def test_sizes_that_are_left_out_are_counted_in_the_log(caplog):
    """On V1.5, 49 frames are 45, and most shapes need more for the token length."""
    caplog.set_level("INFO")
    phase = Phase("lora", "", "", 1, Batches(13312, bases=(512,), batch_size=1))
    v15 = PUBLISHED["v1.5"]
    assert len(phase_draws(phase, SceneClips(0), config=v15).buckets) == 15
    assert "25 of 40 sizes are left out: no length of up to 49 frames is within 10% of 13312 tokens" in caplog.text
    caplog.clear()
    longer = dataclasses.replace(phase.batches, tokens=22528, max_length=85)
    assert len(phase_draws(dataclasses.replace(phase, batches=longer), SceneClips(0), config=v15).buckets) == 40
    assert "left out" not in caplog.text


def test_no_bucket_is_longer_than_the_model_takes(caplog):
    """85 frames are for V1.5: a 2B takes 49, also where max_length allows more."""
    caplog.set_level("INFO")
    phase = Phase("lora", "", "", 1, Batches(22528, ((512, 512), (768, 576)), 85, batch_size=1))
    assert phase_draws(phase, SceneClips(0), config=PUBLISHED["2b"]).buckets == [Bucket(768, 576, 49)]
    assert "max_length is 85, but the model takes at most 49 frames" in caplog.text
    assert "1 of 2 sizes are left out: no length of up to 49 frames" in caplog.text
    v15 = phase_buckets(phase.batches, 22528, PUBLISHED["v1.5"])
    assert v15 == [Bucket(512, 512, 85), Bucket(768, 576, 45)]


def test_clips_that_are_too_short_for_an_earlier_length():
    now, before = [Bucket(96, 96, 9)], [Bucket(64, 64, 17)]
    drawn = BucketBatches(now, 1, 0, [1.0, 1.0, 1.0], [9, 17, 8], earlier=before, earlier_share=0.5)
    assert {(draw.index, draw.bucket) for draw in draws_of(drawn, 60)} == {(0, now[0]), (1, now[0]), (1, before[0])}


@pytest.mark.parametrize("kind", masks.KINDS)
def test_masks_of_a_kind(kind):
    for seed in range(50):
        mask = masks.random_mask(kind, 9, 32, 48, random.Random(seed))
        assert mask.shape == (9, 32, 48) and set(mask.unique().tolist()) <= {0.0, 1.0}
        known = [not frame.any() for frame in mask]
        if kind == "region":
            assert 0.1 < mask[1].mean() < 0.9 and (mask[1:] == mask[1]).all()
            continue
        assert all(known[i] or mask[i].all() for i in range(9))
        assert known[0] == (kind in ("start", "start_end", "everything"))
        assert known[-1] == (kind in ("end", "start_end", "everything"))
        assert sum(a != b for a, b in itertools.pairwise(known)) == {"start": 1, "end": 1, "start_end": 2}.get(kind, 0)


def test_kinds_come_as_often_as_their_weights_say():
    drawn = [masks.choose_kind(MASK_WEIGHTS, random.Random(seed)) for seed in range(4000)]
    for kind, weight in MASK_WEIGHTS.items():
        assert abs(drawn.count(kind) / 4000 - weight) < 0.03


def test_a_sample_depends_on_its_seed_and_number_alone():
    """The second batch is the same whether the first was made, so a resumed run sees what it would have seen."""
    clips = SceneClips(seed=1)
    draws = list(itertools.islice(BucketBatches([Bucket(64, 64, 5)], 2, seed=4), 2))
    both = list(load(Samples(clips, 4, MASK_WEIGHTS, 2), draws))
    torch.manual_seed(123)
    (alone,) = load(Samples(clips, 4, MASK_WEIGHTS, 2), draws[1:])
    for key, value in both[1].items():
        assert torch.equal(alone[key], value) if torch.is_tensor(value) else alone[key] == value
        if torch.is_tensor(value) and key != "mask":
            assert not torch.equal(both[0][key], value)
    assert both[0]["noise"].shape == (2, 2, 16, 2, 8, 8) and both[0]["time"].shape == (2, 2)


@pytest.mark.parametrize(
    "name, rate, count, fps, expected",
    [
        ("film.mp4", 24, 24, 8.0, [0, 3, 6, 9, 12, 15, 18, 21]),
        ("phone.mp4", 30, 20, 8.0, [0, 4, 8, 12, 15, 19]),  # the first at or after 0, 3.75, 7.5 ... frames
        ("slow.mp4", 6, 5, 8.0, [0, 1, 2, 3, 4]),
        ("odd.avi", 10, 10, 8.0, [0, 2, 3, 4, 5, 7, 8, 9]),  # its clock ticks once a frame
        ("whole.mp4", 24, 7, 0.0, [0, 1, 2, 3, 4, 5, 6]),
        ("rounded.mkv", 28, 24, 7.0, [0, 4, 8, 12, 16, 20]),  # times in whole milliseconds: 0.714 for 5 / 7
    ],
)
def test_frames_are_taken_at_the_models_rate(tmp_path, name, rate, count, fps, expected):
    write_video(tmp_path / name, counted(count), rate)
    clips = FolderClips([tmp_path], fps)
    assert clips.lengths == [len(expected)]
    video, _ = clips.clip(0, Bucket(64, 48, len(expected)), random.Random(0))
    assert (video.mean((1, 2, 3)) * 25.5).round().int().tolist() == expected
    places = {round(float(clips.clip(0, Bucket(64, 48, 1), random.Random(s))[0].mean()) * 25.5) for s in range(99)}
    assert places == set(expected), "a clip starts at every frame"


@pytest.mark.parametrize("rotation, corner", [(-90, (0, 1)), (180, (1, 1)), (90, (1, 0))])
def test_a_clip_is_seen_as_its_rotation_says(tmp_path, rotation, corner):
    """Counterclockwise, of a frame whose upper left quarter is white; the file of an upright phone has -90."""
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :24, :32] = 255
    write_video(tmp_path / "phone.mp4", frames, rotation=rotation)
    clips = FolderClips([tmp_path], 0)
    width, height = (48, 64) if abs(rotation) == 90 else (64, 48)
    assert clips.aspects == [width / height] and clips.resolutions == [56]
    video, _ = clips.clip(0, Bucket(width, height, 3), random.Random(0))
    quarters = video.mean((0, 3)).unflatten(0, (2, -1)).unflatten(2, (2, -1)).mean((1, 3))
    white = torch.zeros(2, 2)
    white[corner] = 1
    assert torch.allclose(quarters, white, atol=0.05)  # MPEG-4 blurs the edges


def test_a_folder_of_videos_names_what_it_leaves_out(tmp_path, caplog):
    """And takes a video before a picture of its name, and a video whose caption is empty."""
    (tmp_path / "deep").mkdir()
    write_video(tmp_path / "deep" / "a.mp4", counted(24))
    write_video(tmp_path / "deep" / "a.png", counted(1), codec="png", pixels="rgb24")
    write_video(tmp_path / "mute.mp4", counted(24))
    (tmp_path / "mute.txt").write_text("\n")
    write_video(tmp_path / "empty.avi", counted(0))
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    (tmp_path / "broken.txt").write_text("broken")
    (tmp_path / "silent.mp4").write_bytes((tmp_path / "mute.mp4").read_bytes())
    (tmp_path / "alone.txt").write_text("a caption without a video")
    clips = FolderClips([tmp_path, tmp_path / "nowhere"])
    assert [path.name for path in clips.paths] == ["a.mp4", "mute.mp4"] and clips.captions == ["a", ""]
    for name in ("a.png", "broken.mp4", "silent.mp4", "alone.txt", "empty.avi", "nowhere"):
        assert any(name in line and "left out" in line for line in caplog.text.splitlines()), name
    (tmp_path / "mute.mp4").unlink()
    assert clips.clip(1, Bucket(96, 64, 5), random.Random(0))[1] == "a", "another takes its place"
    assert "mute.mp4" in caplog.text and "another clip is taken" in caplog.text
    with pytest.raises(ValueError, match="no clip has 101 frames at the phase's rate, the longest has 8"):
        clips.clip(1, Bucket(96, 64, 101), random.Random(0))


def test_links_to_folders_are_followed_once(tmp_path):
    """Also one that leads back into itself. And a byte order mark is not part of a caption."""
    (tmp_path / "disk").mkdir()
    write_video(tmp_path / "disk" / "a.mp4", counted(24))
    (tmp_path / "disk" / "a.txt").write_text("a red ball", encoding="utf-8-sig")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "disk")
    (tmp_path / "clips").mkdir()
    for name in ("first", "second"):
        (tmp_path / "clips" / name).symlink_to(tmp_path / "disk")
    clips = FolderClips([tmp_path / "clips"])
    assert clips.paths == [tmp_path / "clips" / "first" / "a.mp4"] and clips.captions == ["a red ball"]


def test_folders_that_give_no_clip(tmp_path):
    with pytest.raises(ValueError, match="no video with a caption in .*put name.mp4"):
        FolderClips([tmp_path])

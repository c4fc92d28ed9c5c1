"""The training loop: it learns, it resumes bit-equal, and several processes make the gradients of one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from cogvideox_fun.training.loop.config import Batches, ConfigError, Data, Optimizer, Phase, read_phase
from cogvideox_fun.training.loop.progress import read_losses, smooth
from cogvideox_fun.training.loop.state import NAME
from cogvideox_fun.training.loop.trainer import Trainer, learning_rate, open_clips, phase_batches
from cogvideox_fun.training.tasks.parts import Parts
from pack import ROOT
from safetensors.torch import load_file, save_file

PHASE = {
    "output": "",
    "steps": 6,
    "batches": Batches(8, ((48, 32), (32, 48)), 5, 0.3, batch_size=4),
    "data": Data(seed=5),
    "optimizer": Optimizer(1e-3, warmup_steps=2),
    "save_every": 3,
}


def trainer_of(model, folder, task="full", **changes) -> Trainer:
    phase = Phase(task, str(model), **{**PHASE, **changes})
    torch.manual_seed(0)
    return Trainer(phase, Parts(phase).task, Accelerator(cpu=True), folder)


@pytest.mark.parametrize("task", ["vae", "full", "lora"])
def test_training_lowers_the_loss(tiny_model, tmp_path, task):
    """Steps on one batch lower the loss of that batch, each kind of training by what it alone may change."""
    trainer = trainer_of(tiny_model, tmp_path, task, steps=20, optimizer=Optimizer(3e-3, 3e-3, warmup_steps=1))
    batch = next(phase_batches(trainer.phase, open_clips(trainer.phase.data)))
    frozen = {n: p.detach().clone() for n, p in trainer.task.named_parameters() if not p.requires_grad}
    losses = [float(trainer.train_step(batch)) for _ in range(20)]
    assert losses[-1] < 0.97 * losses[0]
    for name, parameter in trainer.task.named_parameters():
        assert name not in frozen or torch.equal(parameter, frozen[name]), name
    average = dict(zip(trainer.parameters, trainer.ema.averages, strict=True))
    assert any(not torch.equal(average[n], p) for n, p in trainer.parameters.items())


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint.safetensors")


def test_a_resumed_run_is_bit_equal(tiny_model, tmp_path):
    """Weights, averages, optimizer and the table of losses, after a stop at step 3 of 6."""
    trainer_of(tiny_model, tmp_path / "whole").run()
    trainer_of(tiny_model, tmp_path / "parts").run(until=3)
    torch.manual_seed(99)
    trainer = trainer_of(tiny_model, tmp_path / "parts")
    assert trainer.step == 3
    trainer.run()
    whole, parts = final_state(tmp_path / "whole"), final_state(tmp_path / "parts")
    assert whole.keys() == parts.keys() and any(key.startswith("optimizer.exp_avg.") for key in whole)
    for key, value in whole.items():
        assert torch.equal(parts[key], value), key
    losses = [[row["loss"] for row in read_losses(tmp_path / name / "loss.csv")] for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert (tmp_path / "whole" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_try_that_broke_off_after_its_checkpoint_leaves_no_rows(tiny_model, tmp_path):
    trainer_of(tiny_model, tmp_path).run(until=3)
    with (tmp_path / "loss.csv").open("a") as file:
        file.write("3,9.9,0.1,1\n4,9.9,0.1,1\n")
    trainer_of(tiny_model, tmp_path).run(until=4)
    rows = read_losses(tmp_path / "loss.csv")
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and rows[-1]["loss"] < 9
    assert rows[-1]["seconds"] > rows[2]["seconds"]


def test_a_checkpoint_of_another_run(tiny_model, tmp_path):
    trainer_of(tiny_model, tmp_path, "full").run(until=1)
    with pytest.raises(ValueError, match="is of another run.*give another output folder"):
        trainer_of(tiny_model, tmp_path, "vae")


def test_a_checkpoint_that_does_not_say_what_it_is_of(tiny_model, tmp_path):
    trainer_of(tiny_model, tmp_path, "full").run(until=1)
    (path,) = tmp_path.rglob(NAME)
    save_file(load_file(path), path)
    with pytest.raises(ValueError, match="does not say what run it is of.*give another output folder"):
        trainer_of(tiny_model, tmp_path, "full")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"lora_rank": 1}, r"down is \[8, .*\], here \[1, "),
        ({"seed": 8}, "it had '\"seed\": 0,', here '\"seed\": 8,'"),
        ({"data": Data(seed=6)}, 'it had \'"seed": 5'),
    ],
)
def test_a_checkpoint_of_another_configuration(tiny_model, tmp_path, changes, words):
    trainer_of(tiny_model, tmp_path, "lora").run(until=1)
    with pytest.raises(ValueError, match=f"is of another run.*{words}"):
        trainer_of(tiny_model, tmp_path, "lora", **changes)
    trainer_of(tiny_model, tmp_path, "lora", steps=9, save_every=1, micro_batch=1)  # free to change


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal but for the order of float32 sums, which differs between CPUs and numbers of threads.

    Some gradients are zero but for rounding: adding the same to every key changes no softmax, so that of the keys'
    bias is. Their rounding is that of the terms they are summed from, so the absolute tolerance is relative to the
    largest gradient of the model, which can't vanish: eight roundings of it (four were seen).
    """
    assert found.keys() == expected.keys() and len(found) > 40
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 1e-3
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-4, atol=1e-6 * largest), name


@pytest.mark.parametrize("task", ["full", "vae"])
def test_micro_batches_make_the_gradients_of_the_whole_batch(tiny_model, tmp_path, task):
    """A batch of four clips in parts of three and one."""
    gradients, losses = [], []
    for micro_batch in (0, 3):
        trainer = trainer_of(tiny_model, tmp_path, task, micro_batch=micro_batch)
        batch = next(phase_batches(trainer.phase, open_clips(trainer.phase.data)))
        losses.append(float(trainer.gradients(batch)))
        gradients.append({name: p.grad for name, p in trainer.parameters.items() if p.grad is not None})
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_same_gradients(gradients[1], gradients[0])


def test_blocks_computed_again_make_the_same_gradients(tiny_model, tmp_path):
    gradients = []
    for again in (False, True):
        trainer = trainer_of(tiny_model, tmp_path, "lora", checkpoint_blocks=again)
        for name, parameter in trainer.parameters.items():
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(len(name)))
        trainer.gradients(next(phase_batches(trainer.phase, open_clips(trainer.phase.data))))
        gradients.append({name: p.grad for name, p in trainer.parameters.items()})
    for name, value in gradients[0].items():
        assert value.any() and torch.equal(gradients[1][name], value), name


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tiny_model, tmp_path):
    trainer_of(tiny_model, tmp_path).run(until=3)
    before = final_state(tmp_path)
    trainer = trainer_of(tiny_model, tmp_path)
    with torch.no_grad():
        next(iter(trainer.parameters.values())).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the gradient of step 3 is nan"):
        trainer.run()
    assert all(torch.equal(value, before[key]) for key, value in final_state(tmp_path).items())


def test_the_learning_rate_rises_then_falls():
    options = Optimizer(1.0, 0.2, warmup_steps=10)
    rates = [learning_rate(options, step, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[60] == pytest.approx(0.6) and rates[-1] == pytest.approx(0.2, abs=1e-3)


def test_smoothing():
    assert smooth([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]


GRADIENTS = """
import os, sys
sys.path.insert(0, {tools!r})
import pack
pack.load_pack()
import torch
from accelerate import Accelerator
from cogvideox_fun.training.loop.config import Batches, Data, Optimizer, Phase
from cogvideox_fun.training.tasks.parts import Parts
from cogvideox_fun.training.loop.trainer import Trainer, open_clips, phase_batches
from safetensors.torch import save_file

accelerator = Accelerator(cpu=True)
phase = Phase("full", {model!r}, "", 1, Batches(8, ((48, 32), (32, 48)), 5, 0.3, 4, 2), Data(seed=5),
              Optimizer(1e-3, warmup_steps=1, max_grad_norm=1e9))
torch.manual_seed(accelerator.process_index)
trainer = Trainer(phase, Parts(phase).task, accelerator, {folder!r})
shared = accelerator.process_index, accelerator.num_processes
batch = next(phase_batches(phase, open_clips(phase.data), *shared))
loss = trainer.wrapped(batch)
accelerator.backward(loss)
loss = accelerator.reduce(loss.detach(), "mean")
if accelerator.is_main_process:
    gradients = {{name: p.grad for name, p in trainer.parameters.items() if p.grad is not None}}
    clips = torch.tensor([len(batch["video"])])
    save_file({{**gradients, "loss": loss[None], "clips": clips}}, {folder!r} + ".safetensors")
accelerator.wait_for_everyone()  # gloo can abort a process whose peer has closed its connection first
accelerator.end_training()
os._exit(0)  # and threads of its own while the interpreter ends
"""


def gradients(model, tmp_path, processes: int, **kernels: str) -> dict[str, torch.Tensor]:
    folder = tmp_path / f"of_{processes}"
    script = tmp_path / f"gradients_{processes}.py"
    script.write_text(GRADIENTS.format(tools=str(ROOT / "tools"), model=str(model), folder=str(folder)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [*launch, str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **kernels}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    return load_file(f"{folder}.safetensors")


def test_two_processes_make_the_gradients_of_one(tiny_model, tmp_path):
    """The two with kernels for the oldest CPUs, so that sums are in another order than that of the CPU's own ones."""
    one = gradients(tiny_model, tmp_path, 1)
    two = gradients(tiny_model, tmp_path, 2, ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41")
    assert (int(one.pop("clips")), int(two.pop("clips"))) == (4, 2)
    assert float(two.pop("loss")) == pytest.approx(float(one.pop("loss")), rel=1e-5)
    assert_same_gradients(two, one)


CONFIG = """
task = "full"
model = "model"
output = "out"
steps = 2
[batches]
tokens = 8
sizes = [[48, 32]]
batch_size = 2
tolerance = 0.3
"""


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('"full"', '"everything"', "task is 'everything', expected one of"),
        ('"full"', '"full"\nmixed_precision = "fp16"', "mixed_precision is 'fp16', expected one of"),
        ('"full"', '"full"\nseed = 1000000', "seed is 1000000, expected 0 to 999999"),
        ('"full"', '"full"\ncaption_dropout = 2', "caption_dropout is 2.0, expected 0 to 1"),
        ("[batches]", '[data]\nshapes = ["star"]\n[batches]', "shapes is .'star'., expected some of"),
        ("[batches]", "[optimizer]\nbetas = [0.9]\n[batches]", "betas is .0.9., expected two"),
        ("[batches]", "[optimizer]\nema_decay = 1\n[batches]", "ema_decay is 1.0, expected 0 to less than 1"),
        ("steps = 2", "steps = 0", "steps is 0, expected more than 0"),
        ("steps = 2", 'steps = "two"', "steps is 'two', expected int"),
        ("steps = 2", "stops = 2", "no field 'stops', expected one of"),
        ("steps = 2", "", "lacks steps"),
        ("[[48, 32]]", "[48, 32]", r"sizes\[0\] is 48, expected a list"),
        ("[[48, 32]]", "[[48, 32, 5]]", r"sizes\[0\] is \[48, 32, 5\], expected 2 values"),
        ("tokens = 8", "tokens = 8\nearlier_share = 1", "earlier_share is 1.0, expected 0 to less than 1"),
        ("[batches]", "[masks]\nmiddle = 1\n[batches]", "masks has middle = 1"),
        ("[batches]", "[batches", "can't be read as TOML"),
    ],
)
def test_a_configuration_that_cant_be_run(tmp_path, old, new, words):
    path = tmp_path / "phase.toml"
    path.write_text(CONFIG.replace(old, new))
    with pytest.raises(ConfigError, match=words) as error:
        read_phase(path)
    assert str(path) in str(error.value)


def test_paths_of_a_configuration_are_relative_to_it(tmp_path):
    (tmp_path / "phase.toml").write_text(CONFIG)
    phase = read_phase(tmp_path / "phase.toml", steps=7)
    assert (phase.model, phase.output, phase.steps) == (str(tmp_path / "model"), str(tmp_path / "out"), 7)


def test_the_command_line_trains_stops_resumes_and_writes(tiny_model, tmp_path):
    """A LoRA, from its configuration to its file, in two calls."""
    (tmp_path / "phase.toml").write_text(CONFIG.replace('"full"', '"lora"'))
    command = [sys.executable, str(ROOT / "training" / "run.py"), "train", str(tmp_path / "phase.toml"), "--cpu"]
    command += ["--model", tiny_model.name]  # relative to where it is called
    first = subprocess.run([*command, "--until", "1"], capture_output=True, text=True, cwd=tiny_model.parent)
    assert first.returncode == 0, first.stderr[-2000:]
    assert "stopped at step 1 of 2" in first.stderr and not (tmp_path / "out" / "model").exists()
    second = subprocess.run(command, capture_output=True, text=True, cwd=tiny_model.parent)
    assert second.returncode == 0, second.stderr[-2000:]
    state = load_file(tmp_path / "out" / "model" / "lora.safetensors")
    assert len(state) == 3 * 2 * 6 and all(key.startswith("diffusion_model.") for key in state)
    assert len(read_losses(tmp_path / "out" / "run" / "loss.csv")) == 2
    usage = subprocess.run([*command[:2], "--help"], capture_output=True, text=True, check=True)
    assert "run one phase" in usage.stdout

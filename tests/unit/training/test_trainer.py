"""The training loop: it learns, and a resumed run equals an unbroken one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from cogvideox_fun.training.data.manifest import write_manifest
from cogvideox_fun.training.loop import trainer as loop
from cogvideox_fun.training.loop.config import Batches, ConfigError, Data, Optimizer, Phase, read_phase
from cogvideox_fun.training.loop.progress import read_losses
from cogvideox_fun.training.loop.source import open_clips, phase_batches
from cogvideox_fun.training.loop.state import read_tensors
from cogvideox_fun.training.loop.trainer import Trainer, learning_rate
from cogvideox_fun.training.tasks.parts import Parts
from pack import ROOT
from safetensors.torch import load_file
from tiny_model import write_tiny_model
from video_files import counted, write_video

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
    return Trainer(phase, Parts(phase), Accelerator(cpu=True), folder)


@pytest.mark.parametrize("task", ["vae", "full", "lora", "few_steps", "tiny_decoder"])
def test_training_lowers_the_loss(tiny_model, tmp_path, task):
    """Steps on one batch lower the loss of that batch, each kind of training by what it alone may change."""
    trainer = trainer_of(tiny_model, tmp_path, task, steps=20, optimizer=Optimizer(3e-3, 3e-3, warmup_steps=1))
    batch = next(phase_batches(trainer.phase, open_clips(trainer.phase.data)))
    before = {name: p.detach().clone() for name, p in trainer.task.named_parameters()}
    losses = [float(trainer.train_step(batch)) for _ in range(20)]
    assert losses[-1] < 0.97 * losses[0]
    for name, parameter in trainer.task.named_parameters():
        assert parameter.requires_grad or torch.equal(parameter, before[name]), name
    average = trainer.engine.state("average")
    for other in (trainer.parameters, before):
        assert any(not torch.equal(average[name], other[name]) for name in average)


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Everything in the only checkpoint of a run."""
    (path,) = folder.glob("checkpoint_*")
    kinds = sorted(part.name for part in path.iterdir() if part.is_dir())
    return {f"{kind}.{name}": value for kind in kinds for name, value in read_tensors(path, kind).items()}


@pytest.mark.parametrize("task", ["full", "few_steps"])
def test_a_resumed_run_is_bit_equal(tiny_model, tmp_path, task):
    """After a stop at step 3 of 6, and two more steps that were not saved."""
    trainer_of(tiny_model, tmp_path / "whole", task).run()
    trainer_of(tiny_model, tmp_path / "parts", task).run(until=3)
    with (tmp_path / "parts" / "loss.csv").open("a") as file:
        file.write("3,9.9,0.1,1\n4,9.9,0.1,1\n")
    torch.manual_seed(99)
    trainer = trainer_of(tiny_model, tmp_path / "parts", task)
    assert trainer.step == 3
    trainer.run()
    whole, parts = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert {key.split(".")[0] for key in whole} == {"weights", "average", "exp_avg", "exp_avg_sq", "generators"}
    for key, value in whole.items():
        assert torch.equal(parts[key], value), key
    losses = [[row["loss"] for row in read_losses(tmp_path / name / "loss.csv")] for name in ("whole", "parts")]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    assert (tmp_path / "whole" / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_takes_only_the_batches_that_it_trains_on(tiny_model, tmp_path, monkeypatch):
    """A run that is done takes none."""
    taken = []
    monkeypatch.setattr(
        loop, "phase_batches", lambda *a, **options: (taken.append(b) or b for b in phase_batches(*a, **options))
    )
    for expected in (2, 2, 3):
        trainer_of(tiny_model, tmp_path, "lora").run(until=expected)
        assert len(taken) == expected


@pytest.mark.parametrize(
    "task, changes, words",
    [
        ("full", {}, 'it had \'"task": "lora",\', here \'"task": "full",\''),
        ("lora", {"lora_rank": 1}, '"lora_rank": 8,'),
        ("lora", {"data": Data(seed=6)}, 'it had \'"seed": 5'),
        ("lora", {"optimizer": Optimizer(weight_decay=0.1)}, '"weight_decay": 0.01,'),
    ],
)
def test_a_checkpoint_of_another_run(tiny_model, tmp_path, task, changes, words):
    trainer_of(tiny_model, tmp_path, "lora").run(until=1)
    with pytest.raises(ConfigError, match=f"is of another run.*{words}.*give another output folder"):
        trainer_of(tiny_model, tmp_path, task, **changes)
    free = {"steps": 9, "save_every": 1, "micro_batch": 1, "optimizer": Optimizer(1e-4, 1e-5, warmup_steps=1)}
    assert trainer_of(tiny_model, tmp_path, "lora", **free).step == 1, "these may change"


@pytest.mark.parametrize("kind", ["folders", "manifest"])
def test_the_clips_of_a_run_can_move(tiny_model, tmp_path, caplog, kind):
    """Clips of another name are another run; with the same name, the log says where they were."""
    (tmp_path / "old" / "clips").mkdir(parents=True)
    write_video(tmp_path / "old" / "clips" / "a.mp4", counted(8), 8)
    write_manifest([tmp_path / "old"], tmp_path / "old" / "clips.jsonl")

    def data(parent: str) -> Data:
        base = tmp_path / parent
        return Data(folders=(str(base / "clips"),)) if kind == "folders" else Data(manifest=str(base / "clips.jsonl"))

    trainer_of(tiny_model, tmp_path / "run", "lora", data=data("old")).run(until=1)
    (tmp_path / "old").rename(tmp_path / "new")
    assert trainer_of(tiny_model, tmp_path / "run", "lora", data=data("new")).step == 1
    assert re.search(
        r"its clips were in \['.*/old/clips.* and are now in \['.*/new/clips.*the same clips", caplog.text
    )
    shutil.copytree(tmp_path / "new" / "clips", tmp_path / "others")
    others = Data(folders=(str(tmp_path / "others"),))
    with pytest.raises(ConfigError, match="is of another run"):
        trainer_of(tiny_model, tmp_path / "run", "lora", data=others)


def test_a_checkpoint_of_another_model(tiny_model, tmp_path):
    trainer_of(tiny_model, tmp_path / "run").run(until=1)
    other = write_tiny_model(tmp_path / "other", "v1.5")
    with pytest.raises(ValueError, match="is of another model: give another output folder"):
        trainer_of(other, tmp_path / "run")


def assert_same_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Equal except for the order of float32 sums, which depends on the CPU and the number of threads.

    Some gradients are only rounding: adding a constant to every key changes no softmax, so the keys' bias has no
    gradient. The absolute tolerance is therefore relative to the largest gradient of the model, which can't vanish:
    eight roundings of it (four were seen).
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
    before = checkpoint(tmp_path)
    trainer = trainer_of(tiny_model, tmp_path)
    with torch.no_grad():
        next(iter(trainer.parameters.values())).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="the gradient of step 3 is nan"):
        trainer.run()
    assert all(torch.equal(value, before[key]) for key, value in checkpoint(tmp_path).items())


def test_the_learning_rate_rises_then_falls():
    options = Optimizer(1.0, 0.2, warmup_steps=10)
    rates = [learning_rate(options, step, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[60] == pytest.approx(0.6) and rates[-1] == pytest.approx(0.2, abs=1e-3)


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
        ('"full"', '"full"\nseed = 1000000', "seed is 1000000, expected 0 to 999999"),
        ("[batches]", '[data]\nshapes = ["star"]\n[batches]', "shapes is .'star'., expected some of"),
        ("[batches]", "[optimizer]\nema_decay = 1\n[batches]", "ema_decay is 1.0, expected 0 to less than 1"),
        ('"full"', '"lora"\ntrain_text_encoder = true', "train_text_encoder is True, expected false: only task full"),
        (
            '"full"',
            '"few_steps"\ntrain_patch_projection = true',
            "train_patch_projection is True, expected false: only",
        ),
        ("[batches]", "[few_steps]\nteacher_steps = 10\n[batches]", "teacher_steps is 10, expected a multiple of .*4"),
        ("[batches]", "[few_steps]\nguidance = 0.5\n[batches]", "guidance is 0.5, expected 1 .no guidance. or more"),
        ("[batches]", "[few_steps]\nsteps_at_once = 0\n[batches]", "steps_at_once is 0, expected more than 0"),
        ("[batches]", "[optimizer]\nmax_grad_norm = 0\n[batches]", "max_grad_norm is 0.0, expected more than 0"),
        ("steps = 2", "steps = 0", "steps is 0, expected more than 0"),
        ("steps = 2", "steps = 2\nlora_alpha = 0", "lora_alpha is 0.0, expected more than 0"),
        ("steps = 2", 'steps = "two"', "steps is 'two', expected int"),
        ("steps = 2", "stops = 2", "no field 'stops', expected one of"),
        ("steps = 2", "", "lacks steps"),
        ("[[48, 32]]", "[[48, 32, 5]]", r"sizes\[0\] is \[48, 32, 5\], expected 2 values"),
        ("[batches]", "[masks]\nmiddle = 1\n[batches]", "masks is .*'middle': 1.0.*, expected weights"),
        ("[batches]", "[data.backgrounds]\nsea = 1\n[batches]", "backgrounds is .*'sea': 1.0.*, expected weights"),
        ("[batches]", "[data.backgrounds]\nphoto = 0\n[batches]", "backgrounds is .*, expected a weight above 0"),
        ('"full"', '"lora"\ncuda_graphs = true', "cuda_graphs is True, expected false: .* the tasks vae and tiny"),
        ('"full"', '"few_steps"\nsnr_shift = 1', "snr_shift is 1.0, expected 0: few_steps is for the model's own"),
        ("steps = 2", "steps = 2\nsnr_shift = -1", "snr_shift is -1.0, expected 0 or more"),
        ("[batches]", "[optimizer]\nfinal_learning_rate = -1\n[batches]", "final_learning_rate is -1.0, expected 0"),
        ("steps = 2", "steps = 2\nkl_weight = -1", "kl_weight is -1.0, expected 0 or more"),
        ("steps = 2", "steps = 2\nwidths = [64, 32, 0, 8]", "widths is .64, 32, 0, 8., expected four numbers"),
        ("[batches]", "[optimizer]\neps = 0\n[batches]", "optimizer.eps is 0.0, expected more than 0"),
        ("[batches]", "[batches", "can't be read as TOML"),
    ],
)
def test_a_configuration_that_cant_be_run(tmp_path, old, new, words):
    path = tmp_path / "phase.toml"
    path.write_text(CONFIG.replace(old, new))
    with pytest.raises(ConfigError, match=words) as error:
        read_phase(path)
    assert str(path) in str(error.value)


def test_a_byte_order_mark_is_not_part_of_a_configuration(tmp_path):
    """Editors on Windows begin a text with one."""
    path = tmp_path / "phase.toml"
    path.write_text(CONFIG, encoding="utf-8-sig")
    assert read_phase(path).steps == 2


def test_the_command_line_trains_stops_resumes_and_writes(tiny_model, tmp_path):
    """A LoRA, from its configuration to its file, in two calls."""
    (tmp_path / "phase.toml").write_text(CONFIG.replace('"full"', '"lora"'))
    command = [sys.executable, str(ROOT / "training" / "run.py"), "train", str(tmp_path / "phase.toml"), "--cpu"]
    command += ["--model", tiny_model.name]  # relative to where it is called
    for more, expected in (["--until", "1"], "stopped after step 1, "), ([], "written"):
        result = subprocess.run([*command, *more], capture_output=True, text=True, cwd=tiny_model.parent)
        assert result.returncode == 0 and expected in result.stderr, result.stderr[-2000:]
    state = load_file(tmp_path / "out" / "model" / "lora.safetensors")
    assert len(state) == 3 * 2 * 6 and all(key.startswith("diffusion_model.") for key in state)
    assert len(read_losses(tmp_path / "out" / "run" / "loss.csv")) == 2

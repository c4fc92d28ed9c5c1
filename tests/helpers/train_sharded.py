"""Train the tiny model with every engine in two processes: a script for `accelerate launch`, see test_sharded.py.

Arguments: the model's folder, the folder for the runs, and a JSON file with the environment of every engine.
"""

import dataclasses
import json
import os
import resource
import shutil
import sys
import time
from itertools import islice
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "tools"))
import pack

pack.load_pack()

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402
from cogvideox_fun.training.loop.config import Batches, Data, Optimizer, Phase  # noqa: E402
from cogvideox_fun.training.loop.source import open_clips, phase_batches  # noqa: E402
from cogvideox_fun.training.loop.trainer import Trainer  # noqa: E402
from cogvideox_fun.training.tasks.parts import Parts  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

STEPS = 3  # of an unbroken run


def trainer_of(model: str | Path, folder: Path, task: str = "full", **changes) -> Trainer:
    batches = Batches(8, ((48, 32), (32, 48)), 5, 0.3, batch_size=4)
    optimizer = Optimizer(1e-3, warmup_steps=2)
    phase = Phase(task, str(model), "", 9, batches, Data(seed=5), optimizer, save_every=99)
    torch.manual_seed(0)
    phase = dataclasses.replace(phase, train_text_encoder=task == "full", **changes)
    return Trainer(phase, Parts(phase), Accelerator(cpu=True), folder)


def run(trainer: Trainer, until: int, copy: Path | None = None) -> None:
    """Train to a step and save a checkpoint, or a copy of it. It writes no table and no picture, which take long."""
    rank, world = trainer.accelerator.process_index, trainer.accelerator.num_processes
    batches = phase_batches(trainer.phase, open_clips(trainer.phase.data), rank, world, trainer.step)
    for batch in islice(batches, until - trainer.step):
        trainer.train_step(batch)
    trainer.checkpoints.save(trainer.step)
    if copy is not None and trainer.accelerator.is_main_process:
        (path,) = trainer.folder.glob("checkpoint_*")
        shutil.copytree(path, copy / path.name)
    trainer.accelerator.wait_for_everyone()


def train(model: str, folder: Path) -> None:
    """An unbroken run, one that is resumed, and a LoRA in bfloat16, with what saves memory."""
    saving = {"micro_batch": 1, "checkpoint_blocks": True}
    trainer = trainer_of(model, folder / "whole", **saving)
    run(trainer, 1, folder / "first")
    run(trainer, 2, folder / "second")
    run(trainer, STEPS)
    if trainer.accelerator.is_main_process:
        for name in ("parts", "moved"):
            shutil.copytree(folder / "second", folder / name)
    trainer.accelerator.wait_for_everyone()
    run(trainer_of(model, folder / "parts", **saving), STEPS)
    trainer = trainer_of(model, folder / "lora", "lora", mixed_precision="bf16", **saving)
    run(trainer, 1)
    frozen = trainer.task.transformer.proj_out.weight
    local = getattr(frozen, "ds_tensor", frozen.to_local() if hasattr(frozen, "to_local") else frozen)
    share = local.numel() / getattr(frozen, "ds_numel", frozen.numel())
    (folder / f"frozen_{trainer.accelerator.process_index}").write_text(str(share))


def everything(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The state of this process, copied."""
    found = {}
    for kind in trainer.engine.kinds():
        for name, value in trainer.engine.state(kind).items():
            found[f"{kind}.{name}"] = (value.to_local() if hasattr(value, "to_local") else value).clone()
    return found


def fail(trainer: Trainer) -> str:
    """What a NaN and a full disk on the second process alone do; nothing may change, and every process must know."""
    rank, before, found = trainer.accelerator.process_index, everything(trainer), ""
    batch = next(phase_batches(trainer.phase, open_clips(trainer.phase.data), rank, 2))
    if rank == 1:
        batch["noise"][0] = torch.nan
    try:
        trainer.train_step(batch)
    except FloatingPointError as error:
        found += f"{error}\n"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        trainer.checkpoints.save(99)
    except OSError as error:
        found += f"{error}\n"
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = everything(trainer)
    same = before.keys() == after.keys() and all(torch.equal(after[name], value) for name, value in before.items())
    return found + f"same: {same}\n"


def finish(model: str, folder: Path) -> None:
    """Go on from what one process left."""
    trainer = trainer_of(model, folder / "moved")
    run(trainer, STEPS + 1)
    weights = trainer.weights(average=True)
    if trainer.accelerator.is_main_process:
        save_file(weights, folder / "weights.safetensors")
    (folder / f"failures_{trainer.accelerator.process_index}").write_text(fail(trainer))


def main() -> None:
    model, folder, engines = sys.argv[1], Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
    if any("ACCELERATE_USE_DEEPSPEED" in environment for environment in engines.values()):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled first
    accelerator = Accelerator(cpu=True)
    for step in (train, finish):
        for name, environment in engines.items():
            os.environ.update(environment)
            step(model, folder / name)
            for variable in environment:
                del os.environ[variable]
        if accelerator.is_main_process:
            (folder / "waiting").touch()
        while step is train and not (folder / "go on").exists():
            time.sleep(0.1)
    accelerator.wait_for_everyone()  # gloo can abort a process whose peer has closed its connection
    accelerator.end_training()
    os._exit(0)  # and threads of its own while the interpreter ends


if __name__ == "__main__":
    main()

"""Checkpoints of a run, by torch.distributed.checkpoint.

A checkpoint is a folder with ``run.json`` and a folder for each kind of tensor: ``weights``, ``average`` and the
optimizer's moments. The tensors are those of the trained parameters, by name, without the frozen parts (T5 alone has
9.5 GB). Every process writes its share, and any number of processes can read them, with any engine.
"""

import contextlib
import dataclasses
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from .config import ConfigError, Phase, phase_of_values
from .engines import AVERAGE, WEIGHTS, Engine

log = logging.getLogger(__name__)

RUN, GENERATORS = "run.json", "generators"


def about(phase: Phase) -> str:
    """What a checkpoint must have in common with the run that continues it.

    The names of the clips' folders or manifest belong to it, but not where they are. The paths of models, outputs and
    caches may change, and so may the number of steps, the learning rates, what saves memory, and what only shows the
    run.
    """
    fields = dataclasses.asdict(phase)
    del fields["family"]  # only checked
    data, optimizer = fields["data"], fields["optimizer"]
    del data["workers"], optimizer["learning_rate"], optimizer["final_learning_rate"], optimizer["warmup_steps"]
    data["cache"] = bool(data["cache"])
    data["folders"], data["manifest"] = [Path(one).name for one in data["folders"]], Path(data["manifest"]).name
    memory = "micro_batch", "checkpoint_blocks", "cuda_graphs"
    for free in ("model", "output", "text_encoder", "lora", "save_every", "steps", "logging", "validation", *memory):
        del fields[free]
    return json.dumps(fields, indent=0, default=dict)


class Checkpoints:
    """The checkpoints of a run, of which the newest is kept: ``folder/checkpoint_<step>``.

    Args:
        engine: has what is saved, and the phase.
    """

    def __init__(self, accelerator, folder: Path, engine: Engine):
        self.accelerator, self.folder, self.engine = accelerator, folder, engine

    def save(self, step: int) -> None:
        """Write a checkpoint; the older one stays until this one is complete.

        Raises:
            OSError: it can't be written; the older one is kept.
        """
        unfinished, target = self.folder / "unfinished", self.folder / f"checkpoint_{step:07d}"
        try:
            self._on_main(lambda: self._begin(unfinished, step))
            for kind in self.engine.kinds():
                self._write(self.engine.state(kind), unfinished / kind)
            self._write(self._generators(), unfinished / GENERATORS)
            self._on_main(lambda: self._end(unfinished, target))
        except (OSError, CheckpointException) as error:
            cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
            free = shutil.disk_usage(self.folder).free // 2**20
            if self.accelerator.is_main_process:
                shutil.rmtree(unfinished, ignore_errors=True)
            raise OSError(
                f"the checkpoint of step {step} can't be written to {self.folder}, where {free} MiB are free ({cause})"
                ": make room, or move the folder to a larger disk, and run the same command; the older checkpoint is "
                "kept"
            ) from cause

    def load(self) -> int:
        """Continue from the newest checkpoint; returns how many steps were done, 0 if there is none.

        Raises:
            ConfigError: it is of another run, or the processes find different ones.
        """
        path = newest(self.folder)
        run = {"step": 0} if path is None else read_run(path)
        self._agree(run["step"])
        if path is None:
            return 0
        before, now = read_phase_of(path), self.engine.phase
        if about(before) != about(now):
            pairs = zip(about(before).splitlines(), about(now).splitlines(), strict=False)
            change = next((f"it had {a!r}, here {b!r}" for a, b in pairs if a != b), "it has other fields")
            raise ConfigError(f"{path} is of another run ({change}): give another output folder, or remove it")
        if shapes(path / WEIGHTS) != self.engine.shapes:
            raise ConfigError(f"{path} is of another model: give another output folder, or remove it")
        old, new = ([one for one in (*data.folders, data.manifest) if one] for data in (before.data, now.data))
        if old != new and self.accelerator.is_main_process:
            log.warning("%s: its clips were in %s and are now in %s: they must be the same clips", path, old, new)
        for kind in self.engine.kinds():
            self.engine.load(kind, lambda tensors, kind=kind: self._read(tensors, path / kind))
        self.engine.loaded(run["step"])
        self._set_generators(path / GENERATORS)
        return run["step"]

    def _agree(self, step: int) -> None:
        """Raise a ConfigError unless all processes found the same checkpoint."""
        steps = self.accelerator.gather(torch.tensor([step], device=self.accelerator.device)).tolist()
        if len(set(steps)) > 1:
            raise ConfigError(
                f"the processes found checkpoints of the steps {steps} in {self.folder}: put the output on a disk "
                "that all machines share, or copy the checkpoint to each machine"
            )

    def _on_main(self, action: Callable[[], None]) -> None:
        """Do something on the main process; its OSError is raised on all, so that none waits for another."""
        from accelerate.utils import broadcast_object_list

        failed: list[OSError | None] = [None]
        if self.accelerator.is_main_process:
            try:
                action()
            except OSError as error:
                failed = [error]
        broadcast_object_list(failed)
        if failed[0] is not None:
            raise failed[0]

    def _begin(self, unfinished: Path, step: int) -> None:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        run = {"step": step, "phase": dataclasses.asdict(self.engine.phase)}
        (unfinished / RUN).write_text(json.dumps(run, default=dict), encoding="utf-8")

    def _end(self, unfinished: Path, target: Path) -> None:
        older = complete(self.folder)
        unfinished.rename(target)
        for path in older:
            shutil.rmtree(path)

    def _write(self, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        with one_process_is_fine():
            dcp.save(tensors, checkpoint_id=folder, no_dist=self.engine.world == 1)

    def _read(self, tensors: dict[str, torch.Tensor], folder: Path) -> None:
        read(tensors, folder, alone=self.engine.world == 1)

    def _generators(self) -> dict[str, torch.Tensor]:
        """The states of this process's random generators."""
        rank, device = self.accelerator.process_index, self.accelerator.device
        found = {f"cpu.{rank}": torch.get_rng_state()}
        return found | ({f"cuda.{rank}": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})

    def _set_generators(self, folder: Path) -> None:
        """Continue with the generators of the same rank, where the checkpoint has them."""
        own, saved = self._generators(), shapes(folder)
        known = {name: value for name, value in own.items() if saved.get(name) == value.shape}
        read(known, folder)
        for name, value in known.items():
            torch.set_rng_state(value) if name.startswith("cpu") else torch.cuda.set_rng_state(
                value, self.accelerator.device
            )


@contextlib.contextmanager
def one_process_is_fine() -> Iterator[None]:
    """Without torch's warning that no other process takes part."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


def read(tensors: dict[str, torch.Tensor], folder: Path, alone: bool = True) -> None:
    """Fill tensors, or this process's shards of them, from one folder of a checkpoint.

    Args:
        alone: the other processes do not call it.
    """
    with one_process_is_fine():
        dcp.load(tensors, checkpoint_id=folder, no_dist=alone)


def newest(folder: Path) -> Path | None:
    """The newest complete checkpoint in a run's folder."""
    return max(complete(Path(folder)), default=None)


def complete(folder: Path) -> list[Path]:
    """The complete checkpoints in a run's folder. A copy under another name is the user's own."""
    found = folder.glob("checkpoint_*")
    return [path for path in found if re.fullmatch(r"checkpoint_\d{7,}", path.name) and path.is_dir()]


def read_run(path: Path) -> dict:
    """What a checkpoint says about its run: ``step`` and the values of its ``phase``."""
    return json.loads((path / RUN).read_text(encoding="utf-8"))


def read_phase_of(path: Path) -> Phase:
    """The phase of a checkpoint."""
    return phase_of_values(read_run(path)["phase"], str(path / RUN))


def shapes(folder: Path) -> dict[str, torch.Size]:
    """The shapes of the tensors in one folder of a checkpoint."""
    return {
        name: found.size for name, found in dcp.FileSystemReader(folder).read_metadata().state_dict_metadata.items()
    }


def read_tensors(path: Path, kind: str | None = None) -> dict[str, torch.Tensor]:
    """A kind of tensors of a checkpoint, whole, on the CPU; by default the average, or the weights without one."""
    kind = kind or (AVERAGE if (path / AVERAGE).is_dir() else WEIGHTS)
    metadata = dcp.FileSystemReader(path / kind).read_metadata().state_dict_metadata
    tensors = {name: torch.empty(found.size, dtype=found.properties.dtype) for name, found in metadata.items()}
    read(tensors, path / kind)
    return tensors

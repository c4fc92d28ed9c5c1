"""The training loop: one task, its batches and an optimizer, with accelerate."""

import logging
import math
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from ..data.samples import Batch
from ..tasks.parts import Parts
from .config import Optimizer, Phase
from .engines import AVERAGE, WEIGHTS, make_engine
from .graphs import GraphedGradients
from .monitor import Monitor
from .progress import plot_losses, read_losses
from .source import open_clips, phase_batches
from .state import Checkpoints
from .validation import Validator

log = logging.getLogger(__name__)


def learning_rate(options: Optimizer, step: int, steps: int) -> float:
    """A linear warm-up, then half a cosine from ``learning_rate`` to ``final_learning_rate``.

    Not `diffusers.optimization.get_scheduler`: its cosine has no final rate, and its first step has a rate of 0.

    Args:
        step: from 0.
    """
    peak, final = options.learning_rate, options.final_learning_rate
    if step < options.warmup_steps:
        return peak * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(steps - options.warmup_steps, 1)
    return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {k: value.to(device, non_blocking=True) if torch.is_tensor(value) else value for k, value in batch.items()}


class Trainer:
    """A run of a phase in ``folder``, continued from its checkpoint if there is one.

    Args:
        parts: its task is a module whose forward gives losses; what requires a gradient is trained.
        accelerator: accelerate's, of this run alone.
    """

    def __init__(self, phase: Phase, parts: Parts, accelerator, folder: str | Path):
        self.phase, self.parts, self.accelerator, self.folder = phase, parts, accelerator, Path(folder)
        self.task = parts.task
        if parts.encoders is not None:
            parts.encoders.to(accelerator.device)
        self.engine = make_engine(phase, parts.task, accelerator)
        self.parameters, self.optimizer = self.engine.parameters, self.engine.optimizer
        self.checkpoints = Checkpoints(accelerator, self.folder, self.engine)
        self.validator = Validator(phase, parts, accelerator, self.folder) if phase.validation.every else None
        self.losses: list[torch.Tensor] = []  # of the last step, a tensor for each micro-batch
        self.gradient_norm = math.nan  # of the last step, before it was limited
        self.step = self.checkpoints.load()
        self.graphs = None
        if phase.cuda_graphs and accelerator.device.type == "cuda" and accelerator.num_processes == 1:
            self.graphs = GraphedGradients(self._losses, list(self.parameters.values()), accelerator.device)

    def train_step(self, batch: Batch) -> torch.Tensor:
        """One step; returns the loss, of all processes together.

        Raises:
            FloatingPointError: the gradient is not finite. Nothing was changed.
        """
        lr = learning_rate(self.phase.optimizer, self.step, self.phase.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = self.gradients(batch)
        norm = self.engine.update()
        if not math.isfinite(norm):
            found = f"the gradient of step {self.step} is {norm} (its loss is {float(loss)})"
            raise FloatingPointError(
                f"{found}: lower the learning rate, and run the same command, or begin in another folder"
            )
        self.gradient_norm = norm
        self.step += 1
        return self.accelerator.reduce(loss, "mean")

    def gradients(self, batch: Batch) -> torch.Tensor:
        """Add the gradients of a batch, a micro-batch at a time; returns this process's loss."""
        clips = len(batch["captions"])
        if self.graphs is not None:
            try:
                self.losses = [self.graphs(batch)]
                return self.losses[0].mean()
            except RuntimeError as error:
                log.warning("a step can't be a CUDA graph: its kernels are started one by one", exc_info=error)
                self.graphs = None
                self.optimizer.zero_grad(set_to_none=False)  # of what the capture had added
        size = self.phase.micro_batch or clips
        total = torch.zeros((), device=self.accelerator.device)
        self.losses = []
        for start in range(0, clips, size):
            part = {key: value[start : start + size] for key, value in batch.items()}
            part = to_device(part, self.accelerator.device)  # the pixels of all can have more than 10 GB
            with self.engine.exchange(last=start + size >= clips):
                with self.engine.autocast():
                    losses = self.engine.module(self.parts.prepare(part))
                    loss = losses.mean() * (len(part["captions"]) / clips)
                self.engine.backward(loss)
            total += loss.detach().float()
            self.losses.append(losses.detach())
        return total

    def _losses(self, batch: Batch) -> torch.Tensor:
        with self.engine.autocast():
            return self.engine.module(self.parts.prepare(batch))

    def weights(self, average: bool) -> dict[str, torch.Tensor]:
        """What is trained, or its average, whole and by name, on the main process. Every process calls it."""
        kind = AVERAGE if average and self.engine.ema is not None else WEIGHTS
        main, found = self.accelerator.is_main_process, {}
        for name, value in self.engine.gathered(kind):
            if main:
                found[name] = value.cpu() if self.engine.sharded else value
        return found

    def validate(self) -> None:
        """Make the validation's clips if they are due."""
        if self.validator is not None and self.validator.due(self.step):
            self.validator(self.step, self.weights(self.phase.validation.weights == "average"))

    def run(self, until: int | None = None) -> None:
        """Train up to ``until`` steps (default: all of the phase), saving as often as the phase says.

        Raises:
            FloatingPointError: a gradient is not finite. The last checkpoint is kept.
        """
        until = self.phase.steps if until is None else min(until, self.phase.steps)
        main = self.accelerator.is_main_process
        clips = open_clips(self.phase.data)
        shared = self.accelerator.process_index, self.accelerator.num_processes
        batches = phase_batches(self.phase, clips, *shared, start=self.step, config=self.parts.config)
        progress = tqdm(initial=self.step, total=self.phase.steps, unit="step", disable=not main)
        with Monitor(self.phase, self.accelerator, self.folder, self.step) as monitor, progress:
            if self.validator is not None:
                self.validator.forget(self.step)
            self.validate()
            for batch in islice(monitor.timed(batches), max(until - self.step, 0)):
                loss = float(self.train_step(batch))
                rate = self.optimizer.param_groups[0]["lr"]
                monitor.record(self.step - 1, batch, self.losses, loss, rate, self.gradient_norm)
                progress.update()
                progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
                if self.step % self.phase.save_every == 0 or self.step == until:
                    self.checkpoints.save(self.step)
                self.validate()
        if main and until:
            plot_losses(self.folder / "loss.png", {self.phase.task: read_losses(self.folder / "loss.csv")})

"""The training loop: one task, its batches, an optimizer, under accelerate."""

import logging
import math
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch
from tqdm import tqdm

from .buckets import Bucket, BucketBatches, token_buckets
from .clips import Clips, FolderClips, ShapeClips
from .config import Data, Optimizer, Phase
from .ema import EMA
from .progress import LossTable, plot_losses, read_losses
from .samples import Batch, batches
from .state import load_state, save_state

log = logging.getLogger(__name__)


def learning_rate(options: Optimizer, step: int, steps: int) -> float:
    """A linear warm-up, then half a cosine from ``learning_rate`` to ``final_learning_rate``.

    Args:
        step: from 0.
    """
    peak, final = options.learning_rate, options.final_learning_rate
    if step < options.warmup_steps:
        return peak * (step + 1) / options.warmup_steps
    done = (step - options.warmup_steps) / max(steps - options.warmup_steps, 1)
    return final + (peak - final) * (1 + math.cos(math.pi * done)) / 2


def open_clips(data: Data) -> Clips:
    return FolderClips(data.folders) if data.folders else ShapeClips(data.seed, data.shapes, data.count)


def phase_batches(phase: Phase, clips: Clips, rank: int = 0, world: int = 1, start: int = 0) -> Iterator[Batch]:
    """The batches of a phase from step ``start`` on, this process's share of each."""
    options = phase.batches

    def buckets(tokens: int) -> list[Bucket]:
        return token_buckets(tokens, options.sizes, options.max_length, options.tolerance)

    earlier = [bucket for tokens in options.earlier_tokens for bucket in buckets(tokens)]
    draws = BucketBatches(
        *(buckets(options.tokens), options.batch_size, phase.seed, clips.aspects),
        *(rank, world),
        *(earlier, options.earlier_share),
    )
    return batches(islice(draws, start, None), clips, phase.seed, phase.masks, options.noises_per_clip)


def to_device(batch: Batch, device: torch.device) -> Batch:
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}


class Trainer:
    """A run of a phase in ``folder``, taken up where its checkpoint says.

    Args:
        task: a module whose forward is the loss of a `Batch`; what requires a gradient is trained.
        accelerator: accelerate's.
    """

    def __init__(self, phase: Phase, task: torch.nn.Module, accelerator, folder: Path):
        self.phase, self.task, self.accelerator, self.folder = phase, task, accelerator, Path(folder)
        task.to(accelerator.device)
        self.parameters = {name: p for name, p in task.named_parameters() if p.requires_grad}
        options = phase.optimizer
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=options.learning_rate,
            betas=tuple(options.betas),
            weight_decay=options.weight_decay,
        )
        self.ema = EMA(self.parameters.values(), options.ema_decay)
        self.step = load_state(self.folder, self.parameters, self.optimizer, self.ema)
        self.wrapped = accelerator.prepare_model(task)

    def train_step(self, batch: Batch) -> torch.Tensor:
        """One step; returns the loss, of all processes together."""
        lr = learning_rate(self.phase.optimizer, self.step, self.phase.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        with self.accelerator.autocast():
            loss = self.wrapped(to_device(batch, self.accelerator.device))
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.parameters.values(), self.phase.optimizer.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.parameters.values())
        self.step += 1
        return self.accelerator.reduce(loss.detach(), "mean")

    def save(self) -> None:
        if self.accelerator.is_main_process:
            save_state(self.folder, self.parameters, self.optimizer, self.ema, self.step)

    def run(self, until: int | None = None) -> None:
        """Train up to ``until`` steps (default: all of the phase), saving as often as the phase says.

        Raises:
            FloatingPointError: the loss is not finite; the last checkpoint stays as it is.
        """
        until = self.phase.steps if until is None else min(until, self.phase.steps)
        main = self.accelerator.is_main_process
        self.folder.mkdir(parents=True, exist_ok=True)
        table = LossTable(self.folder / "loss.csv", self.step) if main else None
        clips = open_clips(self.phase.data)
        shared = self.accelerator.process_index, self.accelerator.num_processes
        started = time.monotonic()
        progress = tqdm(initial=self.step, total=self.phase.steps, unit="step", disable=not main)
        with progress:
            for batch in phase_batches(self.phase, clips, *shared, start=self.step):
                if self.step >= until:
                    break
                loss = float(self.train_step(batch))
                if not math.isfinite(loss):
                    raise FloatingPointError(f"the loss of step {self.step} is {loss}: lower the learning rate")
                if main:
                    lr = self.optimizer.param_groups[0]["lr"]
                    table.add(self.step - 1, loss, lr, time.monotonic() - started)
                    progress.update()
                    progress.set_postfix(loss=f"{loss:.4f}", refresh=False)
                if self.step % self.phase.save_every == 0 or self.step == until:
                    self.save()
        if main and until:
            plot_losses(self.folder / "loss.png", {self.phase.task: read_losses(self.folder / "loss.csv")})

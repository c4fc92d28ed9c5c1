"""What a run reports at every step: two tables in its folder, and the trackers of accelerate."""

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ...sampling.geometry import SPATIAL_COMPRESSION, latent_t_to_frames
from ..data.samples import Batch
from .config import OF_THE_VAE, ConfigError, Phase
from .progress import LOSS_COLUMNS, PART_COLUMNS, Table

BANDS = 10  # of timesteps, equally wide


def check_trackers(names: Iterable[str]) -> None:
    """Raise a ConfigError unless accelerate knows each tracker and its package is installed."""
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    known = sorted(set(LoggerType.list()) - {"all"})
    installed = {str(tracker) for tracker in get_available_trackers()}
    for name in names:
        if name not in known:
            raise ConfigError(f"logging.trackers has {name!r}, expected some of {known}")
        if name not in installed:
            raise ConfigError(f"logging.trackers has {name!r}, but its package is not installed: pip install {name}")


def flat(values: dict, prefix: str = "") -> dict[str, str | int | float | bool]:
    """Nested values under names such as ``batches.tokens``, as trackers take them; lists as JSON."""
    result = {}
    for name, value in values.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value if isinstance(value, str | int | float) else json.dumps(value)
    return result


def memory_gb(device: torch.device) -> float:
    """GPU: the most that tensors took since the start. CPU: what the process takes now. In 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import psutil

    return psutil.Process().memory_info().rss / 1e9


def tokens_of(batch: Batch, task: str) -> int:
    """Tokens of 16 x 16 pixels and four frames that a batch gives to the model. The VAE sees every clip once."""
    clips, noises, _, t, h, w = batch["noise"].shape
    return clips * (1 if task in OF_THE_VAE else noises) * t * h * w // 4


def bucket_of(batch: Batch) -> str:
    """The batch's width, height and frames, such as ``512x512x49``."""
    t, h, w = batch["noise"].shape[3:]
    return f"{w * SPATIAL_COMPRESSION}x{h * SPATIAL_COMPRESSION}x{latent_t_to_frames(t)}"


def band_of(time: float) -> str:
    """The timesteps of the band in which ``time`` (0..1) lies, such as ``300-399``."""
    low = min(int(time * BANDS), BANDS - 1) * 1000 // BANDS
    return f"{low:03d}-{low + 1000 // BANDS - 1:03d}"


class Monitor:
    """The tables ``loss.csv`` and ``losses.csv`` of a run, and its trackers; made and called on every process.

    Args:
        accelerator: its trackers are started.
        folder: of the run.
        first: the first step that will be recorded. Rows of later steps are removed from the tables.
    """

    def __init__(self, phase: Phase, accelerator, folder: Path, first: int):
        self.accelerator, self.task = accelerator, phase.task
        self.tables = None
        if accelerator.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            self.tables = (
                Table(folder / "loss.csv", LOSS_COLUMNS, first),
                Table(folder / "losses.csv", PART_COLUMNS, first),
            )
            self.before = float(self.tables[0].last.get("seconds", 0.0))
        accelerator.init_trackers(
            phase.logging.project, flat(dataclasses.asdict(phase)), {"tensorboard": {"purge_step": first}}
        )
        self.begin = self.started = time.monotonic()
        self.waited = 0.0

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *error) -> None:
        for tracker in self.accelerator.trackers:  # accelerate's end_training would also leave the process group
            tracker.finish()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches, with the time of each step and of the wait for its batch."""
        iterator = iter(batches)
        while True:
            self.started = time.monotonic()
            batch = next(iterator, None)
            if batch is None:
                return
            self.waited = time.monotonic() - self.started
            yield batch

    def parts(self, batch: Batch, losses: list[torch.Tensor]) -> dict[str, tuple[int, float]]:
        """How many losses of the step, of all processes together, are in each band of timesteps, and their mean.

        The VAE has no timesteps: one band without a name.

        Args:
            batch: of this process.
            losses: of this process, a tensor of [B R] for each micro-batch; [1] of the VAE.
        """
        device = self.accelerator.device
        values = torch.cat([loss.flatten().float().to(device) for loss in losses])
        times = batch["time"].flatten() if self.task not in OF_THE_VAE else torch.full((len(values),), torch.nan)
        if self.task == "few_steps":  # counts from the noisy end
            times = 1 - times
        bands = defaultdict(list)
        for value, at in self.accelerator.gather(torch.stack([values, times.to(values)], dim=1)).tolist():
            bands["" if self.task in OF_THE_VAE else band_of(at)].append(value)
        return {name: (len(found), sum(found) / len(found)) for name, found in sorted(bands.items())}

    def record(
        self,
        # which step
        step: int,
        batch: Batch,
        # what was measured
        losses: list[torch.Tensor],
        loss: float,
        learning_rate: float,
        gradient_norm: float,
    ) -> None:
        """Add a step to the tables and send it to the trackers.

        Args:
            losses: see `parts`.
            loss: of all processes together.
            gradient_norm: before it was limited.
        """
        now = time.monotonic()
        parts = self.parts(batch, losses)
        if self.tables is None:
            return
        seconds = now - self.started
        values = {
            "loss": loss,
            "learning_rate": learning_rate,
            "step_seconds": seconds,
            "gradient_norm": gradient_norm,
            "tokens_per_second": tokens_of(batch, self.task) * self.accelerator.num_processes / seconds,
            "data_share": self.waited / seconds,
            "memory_gb": memory_gb(self.accelerator.device),
        }
        bucket = bucket_of(batch)
        whole, by_part = self.tables
        whole.add({"step": step, **values, "seconds": self.before + now - self.begin})
        rows = {name: {"count": count, "loss": mean} for name, (count, mean) in parts.items()}
        by_part.add(*({"step": step, "bucket": bucket, "timesteps": name, **row} for name, row in rows.items()))
        bands = {f"loss by timestep/{name}": row["loss"] for name, row in rows.items() if name}
        self.accelerator.log({**values, f"loss by bucket/{bucket}": loss, **bands}, step=step)

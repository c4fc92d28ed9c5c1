"""Training from clips and from encoded clips: steps a second, and how long a step waits for its data.

Both train on the same clips in the same order, one after the other, for several rounds.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from statistics import median

from accelerate import Accelerator

from ..training.loop.config import Phase
from ..training.loop.encode import Amount, Encoding
from ..training.loop.phase import make_parts
from ..training.loop.source import open_clips, phase_batches
from ..training.loop.trainer import Trainer

WARM_UP, ROUNDS = 2, 3  # steps that are not measured; how often each is run


@dataclasses.dataclass
class Times:
    """Seconds of each step: all of it, of that the wait for its data, and CPU seconds of this process."""

    steps: list[float]
    waits: list[float]
    cpu: list[float]

    def row(self, name: str, workers: int) -> str:
        seconds, share = median(self.steps), sum(self.waits) / sum(self.steps)
        return f"| {name} | {workers} | {1 / seconds:.2f} | {share:.1%} | {median(self.cpu):.2f} |"


def time_steps(phase: Phase, accelerator: Accelerator, steps: int, times: Times) -> None:
    """Train for some steps, and add their times."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(phase, make_parts(phase, accelerator.device), accelerator, folder)
        batches = phase_batches(phase, open_clips(phase.data), config=trainer.parts.config)
        for step in range(WARM_UP + steps):
            started, busy = time.perf_counter(), time.process_time()
            batch = next(batches)
            waited = time.perf_counter() - started
            trainer.train_step(batch)
            if step >= WARM_UP:
                times.steps.append(time.perf_counter() - started)
                times.waits.append(waited)
                times.cpu.append(time.process_time() - busy)


def measure(phase: Phase, workers: tuple[int, ...], steps: int, cpu: bool = False) -> str:
    """A Markdown table: a phase with and without a cache, with each number of DataLoader workers.

    CPU seconds are those of the training process. They stay the same on a machine that does other work, too.
    """
    accelerator = Accelerator(cpu=cpu, mixed_precision=phase.mixed_precision)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        sizes = len(phase.batches.sizes) * (1 + len(phase.batches.earlier_tokens))
        clips = (WARM_UP + steps + sizes) * phase.batches.batch_size  # the last ones wait for others of their bucket
        Encoding(phase, folder, Amount(clips), accelerator.state).run()
        seconds, size = time.perf_counter() - started, sum(path.stat().st_size for path in Path(folder).iterdir())
        lines = [
            "| trained from | workers | steps a second | wait for data | CPU seconds a step |",
            "|---|---|---|---|---|",
        ]
        for count in workers:
            data = dataclasses.replace(phase.data, workers=count)
            sources = {"clips": data, "a cache": dataclasses.replace(data, cache=folder)}
            times = {name: Times([], [], []) for name in sources}
            for _ in range(ROUNDS):
                for name, source in sources.items():
                    time_steps(dataclasses.replace(phase, data=source), accelerator, steps, times[name])
            lines += [found.row(name, count) for name, found in times.items()]
    made = f"Encoding took {seconds / clips:.3f} s and {size / clips / 1e3:.1f} kB a clip."
    return "\n".join([*lines, "", made, ""])

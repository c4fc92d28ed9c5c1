"""A comparison of position tables: interpolated from the trained one, or generated anew for each size.

A model is trained at the size of its table. From there the same second phase, at larger sizes and other shapes of the
frame, is trained with each table and several seeds. With one seed both tables see the same clips, masks, noises and
timesteps, so that their difference has a much smaller error than either value.
"""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch

from ...model_loading.files.safetensors_files import read_json
from ...model_loading.standalone import Pipeline, load_transformer
from ..data import scenes
from ..data.buckets import Bucket, Draw
from ..data.clips import SceneClips
from ..data.samples import Samples, load
from ..loop.config import Phase
from ..loop.phase import run_phase
from ..loop.progress import plot_losses, read_losses
from ..loop.source import phase_buckets
from ..tasks.encoders import Encoded, Encoders
from ..tasks.hub import write_json
from ..tasks.transformer import TransformerTask
from .generate import Evaluation, Options
from .report import mean_and_error
from .rows import directions as directions_of

TABLES = {"interpolated": "fun", "generated": "generated"}  # the modes of `sampling.positions.PositionOptions`
LAST_STEPS = 500  # the training loss is their mean
CACHED = 4000  # clips of the second phase that are encoded once
NOISES = 8  # for each held-out clip
STUDENT_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # half of a 95 % interval, in standard errors of n values


def compare_positions(
    # what to train
    phase: Phase,
    seeds: Sequence[int],
    # what to measure
    options: Options,
    # where to write
    output: Path,
    cpu: bool = False,
) -> str:
    """Train ``phase`` with both tables and every seed, and measure each on held-out clips.

    Writes ``positions.png`` (the loss curves), ``positions.json`` and ``positions.md`` to ``output`` after each seed.
    An interrupted run continues.

    Args:
        phase: the second phase. Its ``output`` gets a folder for every run.
        options: ``count`` clips of each size are measured.
        cpu: do not use a GPU.

    Returns:
        The table as markdown.
    """
    buckets = sorted(phase_buckets(phase.batches, phase.batches.tokens))
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=phase.mixed_precision == "bf16")  # as in training
    with bf16:
        held_out = encode_held_out(phase, buckets, options.count)
    results: dict[str, list[dict[str, float]]] = {table: [] for table in TABLES}
    curves = {}
    for seed in seeds:
        for table, mode in TABLES.items():
            folder = Path(phase.output) / f"{table}_{seed}"
            run_phase(dataclasses.replace(phase, positions=mode, seed=seed, output=str(folder)), cpu)
            losses = read_losses(folder / "run" / "loss.csv")
            curves.setdefault(table, []).append([row["loss"] for row in losses])
            training = statistics.fmean(row["loss"] for row in losses[-LAST_STEPS:])
            measured = {f"training loss, last {LAST_STEPS} steps": training}
            with bf16:
                results[table].append({**measured, **measured_once(folder, mode, held_out, options)})
        write_results(output, phase, seeds[: len(results["generated"])], options, results, curves)
    return markdown(results)


def write_results(output: Path, phase: Phase, seeds: Sequence[int], options: Options, results: dict, curves: dict):
    output.mkdir(parents=True, exist_ok=True)
    means = {table: [statistics.fmean(step) for step in zip(*runs, strict=True)] for table, runs in curves.items()}
    steps = {table: [{"step": i, "loss": loss} for i, loss in enumerate(mean)] for table, mean in means.items()}
    plot_losses(output / "positions.png", steps, window=100)
    about = {"steps_trained": phase.steps, "seeds": list(seeds), **dataclasses.asdict(options), "results": results}
    write_json(output / "positions.json", about)
    (output / "positions.md").write_text(markdown(results), encoding="utf-8")


@torch.no_grad()
def encode_held_out(phase: Phase, buckets: Sequence[Bucket], count: int) -> dict[Bucket, list[Encoded]]:
    """``count`` held-out clips of every size with fixed masks, noises and timesteps, in batches of up to eight."""
    pipeline = Pipeline.from_folder(phase.model)
    checkpoint = pipeline.checkpoint
    encoders = Encoders(checkpoint.config, pipeline.vae, pipeline.text_encoder, checkpoint.scale_factor, 0.0)
    encoded = {}
    for part, bucket in enumerate(buckets):
        samples = Samples(SceneClips(scenes.HELD_OUT + 20 + part), scenes.HELD_OUT, phase.masks, NOISES)
        draws = [Draw(i, i, bucket) for i in range(count)]
        encoded[bucket] = [encoders(b) for b in load(samples, [draws[i : i + 8] for i in range(0, count, 8)])]
    return encoded


def measured_once(folder: Path, mode: str, held_out: dict, options: Options) -> dict[str, float]:
    """What `measure` finds for a run's model. It is kept in the run's folder, so that it is not measured again."""
    path, asked = folder / "measured.json", dataclasses.asdict(options)
    if path.is_file() and (kept := read_json(path))["options"] == asked:
        return kept["values"]
    values = measure(folder / "model", mode, held_out, options)
    write_json(path, {"options": asked, "values": values})
    return values


@torch.no_grad()
def measure(folder: Path, mode: str, held_out: dict[Bucket, list[Encoded]], options: Options) -> dict[str, float]:
    """The loss of held-out clips, and how often the direction of the prompt is right, of each size and of all."""
    pipeline = Pipeline.from_folder(folder)
    pipeline.transformer = load_transformer(pipeline.checkpoint, position_mode=mode)
    task = TransformerTask(pipeline.transformer, pipeline.checkpoint.schedule.alphas_cumprod())
    losses, directions = {}, {}
    for part, (bucket, batches) in enumerate(held_out.items()):
        losses[size_of(bucket)] = float(torch.cat([task(batch).mean(1) for batch in batches]).mean())
        right = directions_of(Evaluation(pipeline, options), part, bucket.width, bucket.height, bucket.length)
        directions[size_of(bucket)] = statistics.fmean(right)
    values = {}
    for name, found in (("held-out loss", losses), ("direction", directions)):
        values |= {f"{name}, all sizes": statistics.fmean(found.values())}
        values |= {f"{name}, {size}": value for size, value in found.items()}
    return values


def size_of(bucket: Bucket) -> str:
    return f"{bucket.width} x {bucket.height} x {bucket.length}"


def markdown(results: dict[str, list[dict[str, float]]]) -> str:
    """A row for every measure: both tables, and their difference seed by seed, with standard errors over the seeds."""
    first, second = results.values()
    names = list(results)
    lines = [
        f"| measure | {names[0]} | {names[1]} | {names[1]} minus {names[0]} | 95 % interval without 0 |",
        "|---" * 5 + "|",
    ]
    for name in first[0]:
        one, other = ([run[name] for run in runs] for runs in (first, second))
        differences = [b - a for a, b in zip(one, other, strict=True)]
        cells = [format_mean(name, *mean_and_error(values)) for values in (one, other, differences)]
        mean, error = mean_and_error(differences)
        clear = "yes" if abs(mean) > STUDENT_95.get(len(differences), math.inf) * error else "no"
        lines.append(f"| {name} | {' | '.join(cells)} | {clear} |")
    return "\n".join(lines) + "\n"


def format_mean(name: str, mean: float, error: float) -> str:
    return f"{mean:.1%} ± {error:.1%}" if name.startswith("direction") else f"{mean:.5f} ± {error:.5f}"

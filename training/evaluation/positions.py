"""A comparison of position tables: the same phase is trained with each of them and measured."""

import dataclasses
from pathlib import Path

from ...model_loading.standalone import Pipeline, load_transformer
from ...sampling.positions import POSITION_MODES
from ..loop.config import Phase
from ..loop.phase import run_phase
from ..loop.progress import plot_losses, read_losses, smooth
from ..tasks.hub import write_json
from .rows import Evaluation, Options, share

NAMES = {"fun": "interpolated", "generated": "generated", "cut": "cut"}
LAST_STEPS = 100  # the table shows their mean loss


def compare_positions(
    # what to train
    phase: Phase,
    # what to measure
    sizes: list[tuple[int, int, bool]],
    options: Options,
    # where to write
    output: Path,
    cpu: bool = False,
) -> str:
    """Train ``phase`` with every position table, with the same seeds and steps, and measure each.

    Writes ``positions.png`` (the loss curves), ``positions.json`` and ``positions.md`` to ``output``. An interrupted
    run continues.

    Args:
        phase: its ``output`` gets a folder for every table.
        sizes: (width, height, whether the phase trains on it), none larger than the trained table, which can
            be cut but not extended.
        cpu: do not use a GPU.

    Returns:
        The table as markdown.
    """
    curves, rows = {}, []
    for mode in POSITION_MODES:
        trained = dataclasses.replace(phase, positions=mode, output=str(Path(phase.output) / mode))
        run_phase(trained, cpu)
        losses = read_losses(Path(trained.output) / "run" / "loss.csv")
        curves[NAMES[mode]] = losses
        pipeline = Pipeline.from_folder(Path(trained.output) / "model")
        pipeline.transformer = load_transformer(pipeline.checkpoint, position_mode=mode)
        evaluation = Evaluation(pipeline, options)
        row = {"table": NAMES[mode], "loss": smooth([step["loss"] for step in losses], LAST_STEPS)[-1]}
        for part, (width, height, seen) in enumerate(sizes):
            name = f"{width} x {height}" + ("" if seen else ", never trained")
            row[name] = share(evaluation.directions(part, width, height, start=True))
        rows.append(row)
    output.mkdir(parents=True, exist_ok=True)
    plot_losses(output / "positions.png", curves)
    about = {"steps": phase.steps, **dataclasses.asdict(options), "results": rows}
    write_json(output / "positions.json", about)
    text = markdown(rows)
    (output / "positions.md").write_text(text, encoding="utf-8")
    return text


def markdown(rows: list[dict]) -> str:
    """A row for every position table: the final loss, and how often the direction is right at each size."""
    names = [name for name in rows[0] if name not in ("table", "loss")]
    head = ["table", f"loss, last {LAST_STEPS} steps", *(f"direction at {name}" for name in names)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["table"], f"{row['loss']:.4f}", *(f"{row[name]:.1%}" for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

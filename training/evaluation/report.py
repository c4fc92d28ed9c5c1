"""The evaluation's results as a table, as JSON, and as a picture."""

import dataclasses
from pathlib import Path

import torch

from ..tasks.hub import write_json
from .rows import Result

COLUMNS = ("what", "measure", "goal", "measured", "reached")


def cells(result: Result) -> tuple[str, ...]:
    mark = {True: "yes", False: "no", None: ""}[result.met]
    return result.row, result.what, result.goal, result.measured, mark


def markdown(results: list[Result]) -> str:
    """The results as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(result))} |" for result in results)]) + "\n"


def write_report(path: Path, results: list[Result], about: dict) -> None:
    write_json(path, {**about, "results": [dataclasses.asdict(result) for result in results]})


def table_picture(path: Path, results: list[Result]) -> None:
    """The table as a picture; goals that were not reached are red."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 0.27 * (len(results) + 2)), layout="constrained")
    axes.axis("off")
    widths = [0.15, 0.4, 0.13, 0.24, 0.08]
    table = axes.table([cells(r) for r in results], colLabels=COLUMNS, colWidths=widths, cellLoc="left", loc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for row, result in enumerate(results, start=1):
        if result.met is not None:
            table[row, len(COLUMNS) - 1].set_facecolor("#cde8cd" if result.met else "#f2c9c9")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def picture(path: Path, clips: dict[str, torch.Tensor], frames: int = 5) -> None:
    """Write a picture with a row for each clip: its name, and ``frames`` of its frames side by side.

    Args:
        clips: name -> a clip, F H W 3 of 0..1.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (frames * 1.5, len(clips) * 1.75)
    figure, axes = pyplot.subplots(len(clips), 1, figsize=size, layout="constrained", squeeze=False)
    for axis, (name, clip) in zip(axes[:, 0], clips.items(), strict=True):
        picked = clip[torch.linspace(0, len(clip) - 1, frames).round().long()]
        axis.imshow(torch.cat(list(picked), dim=1).clamp(0, 1).numpy())
        axis.set_title(name, fontsize=8, loc="left")
        axis.axis("off")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)

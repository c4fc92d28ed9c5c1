"""The evaluation's results as a table, as JSON, and as a picture."""

import dataclasses
import json
from pathlib import Path

import torch

from .rows import Result

COLUMNS = ("what", "measure", "goal", "measured", "")


def cells(result: Result) -> tuple[str, ...]:
    mark = {True: "yes", False: "no", None: ""}[result.met]
    return result.row, result.what, result.goal, result.measured, mark


def markdown(results: list[Result]) -> str:
    """The table as it stands in the README."""
    lines = ["| what | measure | goal | measured | reached |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(result))} |" for result in results)]) + "\n"


def write_json(path: Path, results: list[Result], about: dict) -> None:
    value = {**about, "results": [dataclasses.asdict(result) for result in results]}
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def picture(path: Path, clips: dict[str, torch.Tensor], frames: int = 5) -> None:
    """Rows of clips, each as ``frames`` of its frames side by side under the row's name.

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

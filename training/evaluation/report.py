"""The evaluation's results as a table, as JSON, and as pictures."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..tasks.hub import write_json

COLUMNS = ("what", "measure", "goal", "measured", "VAE alone", "reached")
UNITS = {"": "{:.3f}", "dB": "{:.2f}", "px": "{:.2f}", "levels": "{:.2f}", "share": "{:.1%}"}
AFTER = {"dB": " dB", "px": " px", "levels": " of 255"}  # what is written after a value
FRAMES = 5  # of a clip in the picture
CLIPS, ACROSS = 12, 3  # in the picture, and side by side
GAP = 3  # pixels below a row of frames


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean and its standard error; with one value the error is unknown (NaN)."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


@dataclasses.dataclass(frozen=True)
class Value:
    """The mean over clips, its standard error, and the smallest value of all where that matters."""

    mean: float
    error: float
    worst: float | None = None

    @classmethod
    def of(cls, values: Sequence[float], worst: bool = False) -> "Value":
        return cls(*mean_and_error(values), min(values) if worst else None)

    def text(self, unit: str) -> str:
        number, after = UNITS[unit].format, AFTER.get(unit, "")
        error = "" if math.isnan(self.error) else f" ± {number(self.error)}"
        worst = "" if self.worst is None else f" (worst of all {number(self.worst)})"
        return f"{number(self.mean)}{error}{after}{worst}"


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a mean has to be: "at least" or "at most" a value, or "within" so much of what the VAE alone gives."""

    kind: str
    value: float

    def text(self, unit: str) -> str:
        value = UNITS[unit].format(self.value).removesuffix(".0%") + ("%" if unit == "share" else "")
        return f"{self.kind} {value}{AFTER.get(unit, '')}" + (" of the VAE" if self.kind == "within" else "")

    def met(self, value: Value, vae: Value | None) -> bool:
        if self.kind == "at most":
            return value.mean <= self.value
        least = self.value if self.kind == "at least" else vae.mean - self.value
        return value.mean >= least


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table."""

    row: str
    what: str
    unit: str  # of `UNITS`
    goal: Goal | None
    value: Value
    vae: Value | None = None  # the same measure of the true clip after the VAE

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        return self.goal and self.goal.met(self.value, self.vae)


@dataclasses.dataclass(frozen=True)
class Example:
    """A clip of the picture: the truth, the truth after the VAE, and what the model made, F H W 3 each."""

    row: str
    caption: str
    videos: tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def cells(result: Result) -> tuple[str, ...]:
    goal, vae = (part.text(result.unit) if part else "" for part in (result.goal, result.vae))
    mark = {True: "yes", False: "no", None: ""}[result.met]
    return result.row, result.what, goal, result.value.text(result.unit), vae, mark


def markdown(results: list[Result]) -> str:
    """The results as a Markdown table."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(cells(result))} |" for result in results)]) + "\n"


def write_report(path: Path, results: list[Result], about: dict) -> None:
    listed = [{**dataclasses.asdict(result), "met": result.met} for result in results]
    write_json(path, {**about, "results": listed})


def table_picture(path: Path, results: list[Result]) -> None:
    """The table as a picture; goals that were not reached are red."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(14, 0.25 * (len(results) + 2)), layout="constrained")
    axes.axis("off")
    widths = [0.22, 0.22, 0.13, 0.2, 0.2, 0.06]
    table = axes.table([cells(r) for r in results], colLabels=COLUMNS, colWidths=widths, cellLoc="left", loc="center")
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    for row, result in enumerate(results, start=1):
        if result.met is not None:
            table[row, len(COLUMNS) - 1].set_facecolor("#cde8cd" if result.met else "#f2c9c9")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def chosen(examples: list[Example], count: int = CLIPS) -> list[Example]:
    """The first example of every row, then the second of every row, and so on, up to ``count``."""
    places: dict[str, int] = {}
    ranked = []
    for number, example in enumerate(examples):
        place = places[example.row] = places.get(example.row, -1) + 1
        ranked.append((place, number, example))
    return [example for _, _, example in sorted(ranked, key=lambda item: item[:2])[:count]]


def strip(videos: Sequence[torch.Tensor], frames: int = FRAMES) -> np.ndarray:
    """Frames of clips side by side, from the first to the last; a row for each clip, H W 3 of 0..255."""
    rows = []
    for video in videos:
        picked = video[torch.linspace(0, len(video) - 1, frames).round().long()]
        rows.append(F.pad(torch.cat(list(picked), dim=1), (0, 0, 0, 0, 0, GAP), value=1.0))
    return (torch.cat(rows) * 255).round().clamp(0, 255).byte().numpy()


def picture(path: Path, examples: list[Example]) -> None:
    """Write a picture of up to twelve clips: the truth, the truth after the VAE, and what the model made.

    Each clip has a row of frames for each of the three, and its caption below.
    """
    from PIL import Image, ImageDraw, ImageFont

    shown = chosen(examples)
    strips = [Image.fromarray(strip(example.videos)) for example in shown]
    label, text, gap = 40, 22, 14
    width = label + max(image.width for image in strips) + gap
    height = max(image.height for image in strips) + text + gap
    sheet = Image.new("RGB", (width * min(ACROSS, len(shown)), height * -(-len(shown) // ACROSS)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (example, image) in enumerate(zip(shown, strips, strict=True)):
        left, top = number % ACROSS * width, number // ACROSS * height
        sheet.paste(image, (left + label, top))
        for row, name in enumerate(("truth", "VAE", "model")):
            draw.text((left + 2, top + image.height * (2 * row + 1) // 6 - 8), name, fill="black", font=font)
        draw.text((left + label, top + image.height + 2), f"{example.row}: {example.caption}", fill="black", font=font)
    sheet.save(path, quality=90)

"""The losses of a run as tables and as a picture."""

import csv
from math import nan
from pathlib import Path
from statistics import fmean

LOSS_COLUMNS = (
    *("step", "loss", "learning_rate", "seconds"),
    *("step_seconds", "gradient_norm", "tokens_per_second", "data_share", "memory_gb"),
)
PART_COLUMNS = ("step", "bucket", "timesteps", "count", "loss")  # of the losses of a step, by bucket and timestep


class Table:
    """A CSV file that a run adds rows to, step by step, and continues after an interruption.

    Args:
        columns: the first is ``step``. Rows of an older version of the file get empty values for new columns.
        first: the first step of this run. Rows of later steps are removed.
    """

    def __init__(self, path: Path, columns: tuple[str, ...], first: int):
        self.path, self.columns = path, columns
        rows = [row for row in read_rows(path) if int(row["step"]) < first] if path.is_file() else []
        self.last = rows[-1] if rows else {}  # of the runs before
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(path)

    def add(self, *rows: dict) -> None:
        shown = [{name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows]
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns).writerows(shown)


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file. A row that is shorter than the header was cut off by an interruption and is left out."""
    with Path(path).open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


def read_losses(path: Path) -> list[dict[str, float]]:
    """The rows of a ``loss.csv``, without the values that it lacks."""
    return [{name: float(value) for name, value in row.items() if value} for row in read_rows(path)]


def shorten(source: Path, target: Path, steps: int) -> None:
    """Write a ``loss.csv`` with the means of every ``steps`` rows; ``step`` and ``seconds`` are those of the last."""
    rows = read_losses(source)
    target.unlink(missing_ok=True)
    table = Table(target, LOSS_COLUMNS, 0)
    for start in range(0, len(rows), steps):
        some = rows[start : start + steps]
        means = {name: fmean(row.get(name, nan) for row in some) for name in LOSS_COLUMNS}
        table.add({**means, "step": int(some[-1]["step"]), "seconds": some[-1]["seconds"]})


def smooth(values: list[float], window: int) -> list[float]:
    """Means over the last ``window`` values."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def plot_losses(path: Path, runs: dict[str, list[dict[str, float]]], window: int = 50) -> None:
    """Draw the loss curves of one or several runs, named, smoothed over ``window`` steps.

    The scale is logarithmic unless a loss is a logarithm itself, as that of the VAE is.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, rows in runs.items():
        steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
        if len(runs) == 1:
            axes.plot(steps, losses, color="0.8", linewidth=0.6)
        axes.plot(steps, smooth(losses, window), label=name, linewidth=1.2)
    scale = "log" if all(row["loss"] > 0 for rows in runs.values() for row in rows) else "linear"
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} rows", yscale=scale)
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)

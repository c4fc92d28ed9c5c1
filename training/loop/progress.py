"""The losses of a run as a table and as a picture."""

import csv
from pathlib import Path

COLUMNS = ("step", "loss", "learning_rate", "seconds")


class LossTable:
    """``loss.csv``: a row per step.

    Args:
        first: the first step of this run; later rows of an interrupted run are removed.
    """

    def __init__(self, path: Path, first: int):
        self.path = path
        rows = [row for row in read_losses(path) if row["step"] < first] if path.is_file() else []
        self.seconds = rows[-1]["seconds"] if rows else 0.0  # of the runs before
        temporary = path.with_suffix(".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows([f"{row[name]:.6g}" for name in COLUMNS] for row in rows)
        temporary.replace(path)

    def add(self, step: int, loss: float, learning_rate: float, seconds: float) -> None:
        with self.path.open("a", newline="") as file:
            csv.writer(file).writerow([step, f"{loss:.6g}", f"{learning_rate:.6g}", f"{self.seconds + seconds:.6g}"])


def read_losses(path: Path) -> list[dict[str, float]]:
    """The rows of a ``loss.csv``."""
    with Path(path).open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def smooth(values: list[float], window: int) -> list[float]:
    """Means over the last ``window`` values."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def plot_losses(path: Path, runs: dict[str, list[dict[str, float]]], window: int = 50) -> None:
    """Draw the loss curves of one or several runs, named, smoothed over ``window`` steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for name, rows in runs.items():
        steps, losses = [row["step"] for row in rows], [row["loss"] for row in rows]
        if len(runs) == 1:
            axes.plot(steps, losses, color="0.8", linewidth=0.6)
        axes.plot(steps, smooth(losses, window), label=name, linewidth=1.2)
    axes.set(xlabel="step", ylabel=f"loss, mean of {window} steps", yscale="log")
    axes.legend()
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)

"""``make evaluate``: run the rows, and print and write the table."""

import dataclasses
import time
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from ...model_loading.standalone import Pipeline
from ..tasks.lora import apply_lora
from .generate import Evaluation, Options
from .report import Result, markdown, picture, table_picture, write_report
from .rows import ROWS as MAKING
from .tiny_decoder import tiny_decoder

ROWS = {**MAKING, "tiny_decoder": tiny_decoder}


def evaluate(
    # what to measure
    model: Path,
    lora: Path | None,
    control: Path | None,
    rows: Iterable[str],
    # how, and where to write
    options: Options,
    output: Path,
    device: str = "cpu",
    everywhere: Path | None = None,
) -> list[Result]:
    """Run rows of the evaluation.

    Writes to ``output``: the table as ``evaluation.md``, ``.json`` and ``.png``, and clips as ``evaluation.jpg``. They
    are written after every row, so that an interrupted run leaves the rows that it finished.

    Args:
        model: a folder in hub layout.
        lora: a LoRA file; the row "lora" asks for its shape with and without it.
        control: the folder of a Control model; the row "control" gives it the edges of clips.
        rows: keys of `ROWS`.
        device: where clips are made.
        everywhere: a LoRA file that is added to the model first, for all rows but "control", which has its own model.

    Raises:
        CheckpointError: a model can't be loaded.
        ValueError: the LoRA belongs to another model.
    """
    started = time.monotonic()
    pipeline = Pipeline.from_folder(model)
    if everywhere:
        apply_lora(pipeline.transformer, everywhere)
    pipeline.to(device)
    output.mkdir(parents=True, exist_ok=True)
    results, examples = [], []
    for name in rows:
        with tqdm(desc=name, unit="clip") as bar:
            evaluation = Evaluation(pipeline, options, bar.update, lora, control)
            results += ROWS[name](evaluation)
        examples += evaluation.examples
        about = {"seconds": round(time.monotonic() - started), "device": device, **dataclasses.asdict(options)}
        write_report(output / "evaluation.json", results, about)
        if results:
            table_picture(output / "evaluation.png", results)
        (output / "evaluation.md").write_text(markdown(results), encoding="utf-8")
        if examples:
            picture(output / "evaluation.jpg", examples)
    return results

"""``make evaluate``: run the rows, and print and write the table."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from ...model_loading.standalone import Pipeline
from ..tasks.lora import apply_lora
from .report import markdown, picture, table_picture, write_report
from .rows import Evaluation, Options, Result

# (width, height, whether the nano model was trained on it)
SIZES = [(64, 64, True), (96, 96, True), (128, 128, True), (144, 112, True), (112, 144, True), (160, 80, False)]
ROWS: dict[str, Callable[[Evaluation], list[Result]]] = {
    "vae": Evaluation.vae,
    "text": Evaluation.text_to_video,
    "image": Evaluation.image_to_video,
    "start_end": Evaluation.start_and_end,
    "region": Evaluation.region,
    "video": Evaluation.video_to_video,
    "sizes": lambda evaluation: evaluation.resolutions(SIZES),
    "lora": Evaluation.new_shape,
}


def evaluate(
    # what to measure
    model: Path,
    lora: Path | None,
    rows: Iterable[str],
    # how, and where to write
    options: Options,
    output: Path,
) -> list[Result]:
    """Run rows of the evaluation.

    Writes to ``output``: the table as ``evaluation.md``, ``.json`` and ``.png``, and clips as ``evaluation.jpg``.

    Args:
        model: a folder in hub layout.
        lora: a LoRA file; the row "lora" asks for its shape with and without it.
        rows: keys of `ROWS`.

    Raises:
        CheckpointError: the model can't be loaded.
        ValueError: the LoRA belongs to another model.
    """
    started = time.monotonic()
    pipeline = Pipeline.from_folder(model)
    results, clips = [], {}
    for name in rows:
        with tqdm(desc=name, unit="clip") as bar:
            evaluation = Evaluation(pipeline, options, bar.update)
            results += ROWS[name](evaluation)
            clips |= evaluation.shown
            if name == "lora" and lora is not None:
                changed = Evaluation(Pipeline.from_folder(model), options, bar.update)
                apply_lora(changed.pipeline.transformer, lora)
                results += changed.new_shape(lora.stem)
                clips |= changed.shown
    about = {"seconds": round(time.monotonic() - started), **dataclasses.asdict(options)}
    output.mkdir(parents=True, exist_ok=True)
    write_report(output / "evaluation.json", results, about)
    table_picture(output / "evaluation.png", results)
    (output / "evaluation.md").write_text(markdown(results), encoding="utf-8")
    if clips:
        picture(output / "evaluation.jpg", clips)
    return results

"""``make evaluate``: run the rows, print the table, and write it down."""

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tqdm import tqdm

from ...model_loading.pipeline import Pipeline
from ..lora import apply_lora
from .report import markdown, picture, write_json
from .rows import Evaluation, Options, Result

# (width, height, whether a phase of the nano model's training has it)
SIZES = [(64, 64, True), (96, 96, True), (128, 128, True), (144, 112, True), (112, 144, True), (160, 80, False)]
# The same for the comparison of position tables, within the trained table
POSITION_SIZES = [(64, 64, True), (96, 96, True), (96, 64, False)]
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
    """Run rows of the evaluation; writes ``evaluation.json``, ``evaluation.md`` and ``evaluation.jpg`` to ``output``.

    Args:
        model: a folder in hub layout.
        lora: the file whose new shape the row "lora" asks for, with and without it.
        rows: keys of `ROWS`.

    Raises:
        CheckpointError: the model can't be loaded.
        ValueError: the LoRA is of another model.
    """
    started = time.monotonic()
    pipeline = Pipeline.from_folder(model)
    results, clips = [], {}
    for name in rows:
        with tqdm(desc=name, unit="clip") as bar:
            evaluation = Evaluation(pipeline, options, bar.update)
            results += ROWS[name](evaluation)
            if name == "lora" and lora is not None:
                apply_lora(pipeline.transformer, lora)
                results += evaluation.new_shape(lora.stem)
        clips |= evaluation.shown
    about = {"seconds": round(time.monotonic() - started), **dataclasses.asdict(options)}
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "evaluation.json", results, about)
    (output / "evaluation.md").write_text(markdown(results), encoding="utf-8")
    if clips:
        picture(output / "evaluation.jpg", clips)
    return results

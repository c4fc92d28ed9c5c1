"""How a video of many rounds drifts: its colours, its sharpness and its shape, as Long Video and as a plain chain.

A shape moves back and forth over a background that stands still. So every frame should have the colours, the
sharpness and the shape of the first one, and what changes steadily is drift.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ...model_loading.standalone import Pipeline
from ...sampling.anchor import anchored
from ...sampling.geometry import FRAMES_PER_SECOND
from ...sampling.masks import build_start_end
from ...sampling.rounds import join_rounds, start_frames
from ..data.scenes import NEGATIVE, OPPOSITE, PATH_FRAMES, Scene
from .generate import Evaluation, Options
from .measure import Seen, truth_of
from .report import mean_and_error

LEVELS = 255
SHOWN = 10  # frames of a video in the picture
PART = 40_000  # for the seed of a scene's first round, so that no two scenes share noise


@dataclasses.dataclass(frozen=True)
class Method:
    """How rounds continue each other: the frames that two share, and how far they are matched to the first."""

    title: str
    overlap: int
    match_colors: float


def methods_of(overlap: int) -> dict[str, Method]:
    """A plain chain, and what Long Video does with and without matching to the first round; ``overlap`` in frames."""
    return {
        "chain": Method("plain chain: overlap 1", 1, 0.0),
        "overlap": Method(f"overlap {overlap}", overlap, 0.0),
        "matched": Method(f"Long Video: overlap {overlap}, matched to the first round", overlap, 1.0),
    }


def background_drift(video: torch.Tensor) -> np.ndarray:
    """The colour difference of every frame's background to that of the first frame, CIEDE2000, F.

    It is the median over the pixels: a shape covers less than half of them in two frames together.
    """
    from skimage.color import deltaE_ciede2000, rgb2lab

    first = rgb2lab(video[0].numpy())
    return np.array([np.median(deltaE_ciede2000(first, rgb2lab(frame.numpy()))) for frame in video])


def sharpness(video: torch.Tensor) -> np.ndarray:
    """The root mean square of the difference of neighbouring pixels of every frame, in levels of 255, F.

    Not the mean, which is the same for a sharp and for a soft edge.
    """
    grey = video.mean(-1) * LEVELS
    squares = (f.diff(dim=axis).square().mean() for f in grey for axis in (0, 1))
    return torch.stack(list(squares)).view(-1, 2).mean(1).sqrt().numpy()


def per_minute(values: Sequence[float]) -> float:
    """The slope of the straight line that fits a value of each frame best, per minute."""
    return float(np.polyfit(np.arange(len(values)) / FRAMES_PER_SECOND / 60, values, 1)[0])


def of_minutes(values: Sequence[float]) -> list[float]:
    """The mean of a value of each frame over every minute; the last one may be shorter."""
    minute = 60 * FRAMES_PER_SECOND
    return [float(part.mean()) for part in np.split(np.asarray(values), range(minute, len(values), minute))]


def long_video(
    # what
    pipeline: Pipeline,
    image: torch.Tensor,
    prompts: Sequence[str],
    length: int,
    # how
    method: Method,
    options: Options,
    seed: int,
    progress: Callable[[int], None] = lambda n: None,
) -> torch.Tensor:
    """What the node Long Video makes of a start image, F H W 3 on the CPU.

    Args:
        image: 1 H W 3.
        prompts: those of the rounds, from the first one again after the last.
        seed: of the first round.
        progress: called with 1 after each round.
    """
    _, height, width, _ = image.shape
    device = next(pipeline.transformer.parameters()).device
    noise_augmentation = pipeline.checkpoint.config.reference_noise
    negative = pipeline.text_encoder(NEGATIVE)
    rounds: list[torch.Tensor] = []
    for i, known in enumerate(start_frames(length, PATH_FRAMES, method.overlap)):
        start = rounds[-1][-known:] if rounds else image
        video, mask = (one.to(device) for one in build_start_end(width, height, PATH_FRAMES, start))
        condition = pipeline.condition(video, mask, noise_augmentation, seed + i)
        noise = pipeline.noise(width, height, PATH_FRAMES, seed + i).to(device)
        positive = pipeline.text_encoder(prompts[i % len(prompts)])
        latent = pipeline.sample(noise, positive, negative, condition, steps=options.steps, cfg=options.cfg)
        made = pipeline.decode(latent).cpu()
        rounds.append(anchored(made, rounds[0], method.match_colors) if rounds else made)
        progress(1)
    return join_rounds(rounds, method.overlap, length)


def prompts_of(scene: Scene) -> list[str]:
    """To and fro."""
    return [dataclasses.replace(scene, way=way).caption() for way in (scene.way, OPPOSITE[scene.way])]


def rounds_of(length: int, methods: Sequence[Method]) -> int:
    """How many rounds one scene takes, with all methods together."""
    return sum(len(start_frames(length, PATH_FRAMES, method.overlap)) for method in methods)


def shapes_seen(video: torch.Tensor, scene: Scene) -> list[Seen]:
    """A video in parts that are as long as a round, each beside its scene. Where the shape should be is not known."""
    _, height, width, _ = video.shape
    truth = truth_of(scene, PATH_FRAMES, height, width)
    return [Seen(part, truth) for part in video.split(PATH_FRAMES) if len(part) == PATH_FRAMES]


def measured(video: torch.Tensor, scene: Scene) -> dict[str, float | list[float]]:
    """Colours in CIEDE2000, sharpness in % of the first frame's, identity in %: per minute, and in the last second.

    The first frame is sharper than nearly all others. So there are the first second and the mean of each minute, too,
    to compare later ones with.
    """
    colours, sharp = background_drift(video), sharpness(video)
    begin, last = slice(FRAMES_PER_SECOND), slice(-FRAMES_PER_SECOND, None)  # a second each
    parts, colour, shape = shapes_seen(video, scene), scene.subject.colour, scene.subject.shape
    return {
        "colour": per_minute(colours),
        "colour_at_end": float(colours[last].mean()),
        "sharpness": 100 * per_minute(sharp) / float(sharp[0]),
        "sharpness_at_start": 100 * float(sharp[begin].mean()) / float(sharp[0]) - 100,
        "sharpness_at_end": 100 * float(sharp[last].mean()) / float(sharp[0]) - 100,
        "sharpness_of_minutes": [100 * mean / float(sharp[0]) for mean in of_minutes(sharp)],
        "shape": float(np.mean([float(part.template_iou(shape).mean()) for part in parts])),
        "identity": 100 * float(np.mean([(part.colour, part.shape) == (colour, shape) for part in parts])),
    }


def row(video: torch.Tensor) -> np.ndarray:
    """Frames from the first to the last, beside each other, H W 3 of 0..255."""
    frames = video[torch.linspace(0, len(video) - 1, SHOWN).round().long()]
    return (frames.clamp(0, 1) * LEVELS).round().byte().numpy().swapaxes(0, 1).reshape(video.shape[1], -1, 3)


def compare_drift(evaluation: Evaluation, seconds: float, output: Path, methods: Sequence[Method]) -> str:
    """Make a video of every scene with every method, and measure it.

    Writes ``drift.md``, ``drift.json`` and ``drift.jpg`` (frames of the first scene, a row for each method) to
    ``output`` after each scene.

    Args:
        evaluation: its options say how many scenes there are.
        seconds: how long each video is, at 8 frames a second.

    Raises:
        ValueError: a video is shorter than a round.
    """
    output.mkdir(parents=True, exist_ok=True)
    length = round(seconds * FRAMES_PER_SECOND)
    found: dict[str, list[dict]] = {method.title: [] for method in methods}
    rows, text = [], ""
    for number, scene in enumerate(evaluation.scenes(0)):
        size = evaluation.options.size
        image = truth_of(scene, 1, size, size).video
        for method in methods:
            how = method, evaluation.options, PART * (number + 1), evaluation.progress
            video = long_video(evaluation.pipeline, image, prompts_of(scene), length, *how)
            found[method.title].append(measured(video, scene))
            if number == 0:
                rows.append(row(video))
        text = markdown(found, seconds)
        Image.fromarray(np.concatenate(rows)).save(output / "drift.jpg", quality=90)
        (output / "drift.md").write_text(text, encoding="utf-8")
        about = {"seconds": seconds, **dataclasses.asdict(evaluation.options)}
        (output / "drift.json").write_text(json.dumps({"about": about, "scenes": found}, indent=2), encoding="utf-8")
    return text


def markdown(found: dict[str, list[dict]], seconds: float) -> str:
    """A table: a row for each method, with means over the scenes and their standard errors."""
    columns = {
        "colour": "background, CIEDE2000 a minute",
        "colour_at_end": f"after {seconds:g} seconds",
        "sharpness": "sharpness, % a minute",
        "sharpness_at_end": f"after {seconds:g} seconds",
        "shape": "shape IoU",
        "identity": "right colour and shape, % of the rounds",
    }
    lines = [f"| method | {' | '.join(columns.values())} |", "|---" * (len(columns) + 1) + "|"]
    for name, scenes in found.items():
        cells = []
        for key in columns:
            mean, error = mean_and_error([one[key] for one in scenes])
            sign = "+" if key.startswith("sharpness") else ""
            cells.append(f"{mean:{sign}.2f}" + (f" ± {error:.2f}" if len(scenes) > 1 else ""))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"

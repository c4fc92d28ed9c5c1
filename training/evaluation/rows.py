"""The rows of the evaluation: each asks the model for clips of held-out scenes and measures them.

The goals are those of the nano model at 128 x 128 pixels.
"""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from ...model_loading.errors import CheckpointError
from ...model_loading.standalone import Pipeline
from ..data import backgrounds
from ..data.scenes import DIRECTIONS, NAMES, OPPOSITE, REACH, SPEEDS, Scene
from ..data.shapes import COLOURS, NEW_SHAPE
from ..tasks.lora import apply_lora
from .edges import best_f_score, edges_of, outlined
from .generate import LENGTH, Choice, Evaluation
from .measure import WHOLE, Seen, Truth, cross_fade, psnr
from .report import Example, Goal, Result, Value

EXAMPLES = 3  # clips of a row for the picture
MIDDLE = slice(1, -1)  # frames between a given start and a given end
AFTER_START = slice(1, None)
LAST = slice(-1, None)
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)  # of video to video

# (width, height, whether the nano model was trained on it)
SIZES = [(64, 64, True), (96, 96, True), (128, 128, True), (144, 112, True), (112, 144, True), (160, 80, False)]
MOVES = Choice()
KINDS = {
    "moves over gradients": MOVES,
    "moves over textures": Choice(backgrounds=tuple(backgrounds.TEXTURES)),
    "moves over photographs": Choice(backgrounds=tuple(backgrounds.PHOTOS)),
    "one passes before another": Choice(("pass",), NAMES),
    "turns and grows": Choice(("turn", "grow"), NAMES),
}
CAMERA = {
    "camera, trained photographs": Choice(("pan", "zoom"), tuple(backgrounds.PHOTOS)),
    "camera, a new photograph": Choice(("pan", "zoom"), tuple(backgrounds.HELD_OUT_PHOTO)),
}


@dataclasses.dataclass(frozen=True)
class Line:
    """One measure of a row. ``worst``: also show the smallest value of all clips."""

    what: str
    of: Callable[[Seen], float]
    unit: str = ""
    goal: Goal | None = None
    worst: bool = False


def at_least(value: float | None) -> Goal | None:
    return None if value is None else Goal("at least", value)


def iou_lines(frames: slice, mean: float | None = None, worst: float | None = None) -> list[Line]:
    """Shape IoU of some frames: the mean of all, and of each clip's worst, with their goals."""
    return [
        Line("shape IoU", lambda seen: float(seen.iou[frames].nanmean()), goal=at_least(mean)),
        Line(
            "shape IoU, each clip's worst frame",
            lambda seen: float(seen.iou[frames].nan_to_num(1).min()),
            goal=at_least(worst),
            worst=True,
        ),
    ]


def pixel_lines(frames: slice) -> list[Line]:
    """How close the pixels of some frames are to the truth."""
    return [
        Line("edge error", lambda seen: seen.edge_error(frames), "px"),
        Line("PSNR of the frames made", lambda seen: seen.psnr(frames), "dB"),
        Line("background PSNR", Seen.background_psnr, "dB"),
        Line("flicker of the background", Seen.flicker, "levels"),
    ]


def identity_lines() -> list[Line]:
    return [
        Line("right shape", lambda seen: seen.shape == seen.truth.scene.subject.shape, "share"),
        Line("right colour", lambda seen: seen.colour == seen.truth.scene.subject.colour, "share"),
    ]


def motion_lines() -> list[Line]:
    return [
        Line("direction of the prompt", lambda seen: seen.direction == seen.truth.scene.way, "share"),
        Line("speed of the prompt", lambda seen: seen.speed == seen.truth.scene.speed, "share"),
        Line("error of the path's length", lambda seen: seen.speed_error, "share"),
    ]


def template_lines(goal: float | None) -> list[Line]:
    """How much the found shape is one of the asked kind, wherever it is."""

    def iou(seen: Seen) -> torch.Tensor:
        return seen.template_iou(seen.truth.scene.subject.shape)

    return [
        Line("IoU with the asked shape, at any place", lambda seen: float(iou(seen).mean()), goal=at_least(goal)),
        Line("the same, each clip's worst frame", lambda seen: float(iou(seen).min()), worst=True),
    ]


def kept(what: str, frames: slice, goal: float | None = None, where: Callable[[Seen], torch.Tensor] | None = None):
    """The PSNR of what was given. The goal is how far it may be below the VAE alone, in dB."""
    within = None if goal is None else Goal("within", goal)
    return Line(f"PSNR of {what}", lambda seen: seen.psnr(frames, where and where(seen)), "dB", within)


def compare(
    evaluation: Evaluation,
    row: str,
    lines: list[Line],
    made: Iterable[tuple[Truth, torch.Tensor]],
    examples: list[Example] | None = None,
    vae: bool = True,
) -> list[Result]:
    """Measure clips against their truth, and beside them the truth after the VAE.

    Args:
        examples: the first clips are added to it.
        vae: False leaves the VAE out.
    """
    found: list[tuple[list[float], list[float]]] = [([], []) for _ in lines]
    for number, (truth, video) in enumerate(made):
        versions = [Seen(video, truth)]
        if vae:
            versions.append(Seen(evaluation.restored(truth.video), truth))
        for line, lists in zip(lines, found, strict=True):
            for seen, values in zip(versions, lists, strict=False):
                if not math.isnan(value := float(line.of(seen))):
                    values.append(value)
        if examples is not None and number < EXAMPLES:
            videos = truth.video, versions[-1].video, video
            examples.append(Example(row, truth.scene.caption(number), videos))
    return [
        Result(row, line.what, line.unit, line.goal, *(Value.of(part, line.worst) for part in lists if part))
        for line, lists in zip(lines, found, strict=True)
        if lists[0]
    ]


# the rows


def chosen_kinds(evaluation: Evaluation, kinds: Mapping[str, Choice]) -> dict[str, Choice]:
    goals_only = evaluation.options.goals_only
    return {name: choice for name, choice in kinds.items() if choice is MOVES or not goals_only}


def vae(evaluation: Evaluation, kinds: Mapping[str, Choice] = KINDS | CAMERA) -> list[Result]:
    """The true clips after the VAE."""
    results = []
    for part, (name, choice) in enumerate(chosen_kinds(evaluation, kinds).items()):
        main, shapes = choice is MOVES, name in KINDS
        lines = [Line("PSNR", Seen.psnr, "dB", at_least(34 if main else None))]
        if shapes:
            lines += iou_lines(WHOLE, *((0.97, 0.93) if main else ()))
        if main:
            lines += [line for line in pixel_lines(WHOLE) if not line.what.startswith("PSNR")] + identity_lines()
        truths = evaluation.truths(evaluation.scenes(part, choice))
        made = ((truth, evaluation.restored(truth.video)) for truth in truths)
        results += compare(evaluation, f"VAE, {name}", lines, counted(evaluation, made), vae=False)
    return results


def counted(evaluation: Evaluation, made: Iterable) -> Iterable:
    for item in made:
        yield item
        evaluation.progress(1)


def start_and_end(evaluation: Evaluation, kinds: Mapping[str, Choice] = KINDS) -> list[Result]:
    results = []
    for part, (name, choice) in enumerate(chosen_kinds(evaluation, kinds).items()):
        main = choice is MOVES
        lines = iou_lines(MIDDLE, *((0.93, 0.85) if main else ())) + pixel_lines(MIDDLE) + identity_lines()
        if main:
            lines += [*motion_lines(), kept("the first frame", slice(1)), kept("the last frame", LAST, 0.5)]
        scenes = evaluation.scenes(10 + part, choice)
        made = evaluation.make(scenes, lambda truth: evaluation.start_end(truth.video), seed=10_000 + 1000 * part)
        results += compare(evaluation, f"start and end, {name}", lines, made, evaluation.examples)
    return results


def start(evaluation: Evaluation) -> list[Result]:
    scenes = evaluation.scenes(20, dataclasses.replace(MOVES, wanted=open_start))
    lines = [*iou_lines(AFTER_START, 0.9), *motion_lines(), *pixel_lines(AFTER_START), *identity_lines()]
    made = evaluation.make(scenes, lambda truth: evaluation.start_end(truth.video, end=False), seed=20_000)
    lines.append(kept("the first frame", slice(1)))
    return compare(evaluation, "start", lines, made, evaluation.examples)


def text(evaluation: Evaluation) -> list[Result]:
    lines = [*template_lines(0.9), *identity_lines(), *motion_lines()]
    made = evaluation.make(evaluation.scenes(30), seed=30_000)
    return compare(evaluation, "text", lines, made, evaluation.examples)


def region(evaluation: Evaluation) -> list[Result]:
    """The band in which a shape moves is regenerated, with the colour and direction of another prompt."""

    def known(seen: Seen) -> torch.Tensor:
        return band(seen.truth) == 0

    def condition(truth: Truth) -> torch.Tensor | None:
        given = next(evaluation.truths([opposite(truth.scene)])).video
        return evaluation.masked(given, band(truth))

    lines = [
        kept("the known part", WHOLE, 0.5, known),
        kept("the known part, last frame", LAST, 0.5, known),
        Line("error of the steps across the seam", lambda seen: seen.seam(band(seen.truth)), "levels"),
        *template_lines(None),
        *identity_lines(),
        *motion_lines(),
    ]
    made = evaluation.make(evaluation.scenes(40), condition, seed=40_000)
    return compare(evaluation, "region", lines, made, evaluation.examples)


def video_to_video(evaluation: Evaluation) -> list[Result]:
    """The prompt asks for another colour, so a higher strength gives a larger difference from the source."""
    scenes = evaluation.scenes(50, count=max(evaluation.options.count // 4, 1))
    captions = [recoloured(scene).caption(i) for i, scene in enumerate(scenes)]
    results: list[Result] = []
    for strength in STRENGTHS:
        steps = max(round(evaluation.options.steps * strength), 1)  # VideoX-Fun's steps at a strength
        lines = [Line(f"PSNR to the source at strength {strength}", Seen.psnr, "dB")]
        lines.append(Line(f"new colour at strength {strength}", lambda s: s.colour == next_colour(s.truth), "share"))
        how = {"denoise": steps / evaluation.options.steps, "steps": steps}
        made = evaluation.make(
            scenes, start=lambda truth: evaluation.encode(truth.video), captions=captions, seed=50_000, **how
        )
        source, colour = compare(evaluation, "video to video", lines, made, vae=not results)
        goal = Goal("at most", results[-2].value.mean) if results else Goal("within", 2.0)  # it falls steadily
        results += [dataclasses.replace(source, goal=goal), dataclasses.replace(colour, vae=None)]
    return results


def camera(evaluation: Evaluation) -> list[Result]:
    """Camera moves over a photograph, of which the first and the last view are given."""

    def gain(seen: Seen) -> float:
        truth = seen.truth.video
        return seen.psnr(MIDDLE) - psnr(cross_fade(truth)[MIDDLE], truth[MIDDLE])

    lines = [
        Line("PSNR of the frames made", lambda seen: seen.psnr(MIDDLE), "dB"),
        Line("PSNR of the frames made, above a cross-fade of the given images", gain, "dB", at_least(3)),
        kept("the first frame", slice(1)),
        kept("the last frame", LAST),
    ]
    results = []
    for part, (name, choice) in enumerate(CAMERA.items()):
        scenes = evaluation.scenes(60 + part, choice)
        made = evaluation.make(scenes, lambda truth: evaluation.start_end(truth.video), seed=60_000 + 1000 * part)
        results += compare(evaluation, name, lines, made, evaluation.examples)
    return results


def sizes(evaluation: Evaluation, listed: Sequence[tuple[int, int, bool]] = SIZES) -> list[Result]:
    """Start and end at other sizes and shapes of the frame."""
    results = []
    for part, (width, height, trained) in enumerate(listed):
        name = f"start and end, {width} x {height}" + ("" if trained else ", never trained")
        lines = [*iou_lines(MIDDLE), Line("PSNR of the frames made", lambda seen: seen.psnr(MIDDLE), "dB")]
        made = evaluation.make(
            evaluation.scenes(70 + part),
            lambda truth: evaluation.start_end(truth.video),
            seed=70_000 + 1000 * part,
            size=(width, height, LENGTH),
        )
        results += compare(evaluation, name, lines, made)
    return results


def lora(evaluation: Evaluation) -> list[Result]:
    """The shape on which only the LoRA was trained, asked for without the LoRA and with it."""
    models = {"without a LoRA": evaluation}
    if evaluation.lora:
        changed = copy.deepcopy(evaluation.pipeline.transformer)
        apply_lora(changed, evaluation.lora)
        pipeline = dataclasses.replace(evaluation.pipeline, transformer=changed)
        models[f"LoRA {evaluation.lora.stem}"] = Evaluation(pipeline, evaluation.options, evaluation.progress)
    results = []
    for name, model in models.items():
        lines = [*template_lines(None), *identity_lines(), *motion_lines()]
        made = model.make(model.scenes(80, Choice(shapes=(NEW_SHAPE,))), seed=80_000)
        last = name == list(models)[-1]
        results += compare(model, name, lines, made, evaluation.examples if last else None, vae=last)
    return results


def control(evaluation: Evaluation, kinds: Mapping[str, Choice] = KINDS) -> list[Result]:
    """A Control model gets the edges of the true clip. Without one there are no rows.

    Scenes whose edges hardly show the outline are left out: nothing could follow them.

    Raises:
        CheckpointError: the model is no Control model.
    """
    if not evaluation.control:
        return []
    pipeline = Pipeline.from_folder(evaluation.control).to(evaluation.device)
    config = pipeline.checkpoint.config
    if config.conditioning != "control":
        raise CheckpointError(
            f"{evaluation.control} has {config.in_channels} input channels ({config.conditioning}), expected 32 "
            "(control): give the folder of a Control model"
        )
    model = Evaluation(pipeline, evaluation.options, evaluation.progress)
    results = []
    for part, (name, choice) in enumerate(chosen_kinds(evaluation, kinds).items()):
        main = choice is MOVES
        lines = [Line("F-score of the edges", edge_score, goal=at_least(0.9 if main else None))]
        lines += [*iou_lines(WHOLE), *identity_lines(), *(motion_lines() if main else ())]
        scenes = model.scenes(100 + part, dataclasses.replace(choice, wanted=outlined))
        made = model.make(scenes, lambda truth: model.encode(edges_of(truth.video)), seed=100_000 + 1000 * part)
        results += compare(model, f"control, {name}", lines, made, evaluation.examples)
    return results


def edge_score(seen: Seen) -> float:
    return best_f_score(seen.video, edges_of(seen.truth.video))


ROWS: dict[str, Callable[[Evaluation], list[Result]]] = {
    "vae": vae,
    "start_end": start_and_end,
    "start": start,
    "text": text,
    "region": region,
    "video": video_to_video,
    "camera": camera,
    "sizes": sizes,
    "lora": lora,
    "control": control,
}


def directions(evaluation: Evaluation, part: int, width: int, height: int, length: int = LENGTH) -> list[bool]:
    """Whether the shape moves in the prompt's direction, from text alone."""
    scenes = evaluation.scenes(90 + part)
    made = evaluation.make(scenes, seed=90_000 + 1000 * part, size=(width, height, length))
    return [Seen(video, truth).direction == truth.scene.way for truth, video in made]


# what the rows ask for


def open_start(scene: Scene) -> bool:
    """Whether the start leaves more than one direction possible, so that only the prompt decides."""
    place, distance = scene.subject.start, SPEEDS[scene.speed]
    margin = REACH.get(scene.subject.shape, 1.0) * scene.subject.radius[0]
    ends = ([s + step * distance for s, step in zip(place, way, strict=True)] for way in DIRECTIONS.values())
    low, high = margin - 1e-9, 1 - margin + 1e-9
    return sum(all(low <= at <= high for at in end) for end in ends) > 1


def next_colour(truth: Truth) -> str:
    """The colour that `recoloured` gives."""
    return recoloured(truth.scene).subject.colour


def recoloured(scene: Scene) -> Scene:
    """The same scene with its subject in the palette's next colour."""
    names = list(COLOURS)
    colour = names[(names.index(scene.subject.colour) + 1) % len(names)]
    return dataclasses.replace(scene, things=(*scene.things[:-1], dataclasses.replace(scene.subject, colour=colour)))


def opposite(scene: Scene) -> Scene:
    """The same scene in the opposite direction and another colour."""
    subject = recoloured(scene).subject
    back = dataclasses.replace(subject, start=subject.end, end=subject.start)
    return dataclasses.replace(scene, way=OPPOSITE[scene.way], things=(*scene.things[:-1], back))


def band(truth: Truth) -> torch.Tensor:
    """The band across the frame in which a scene's shape moves, F H W, 1 = generate."""
    mask = torch.zeros_like(truth.cover)
    subject = truth.scene.subject
    axis = 1 if subject.start[0] != subject.end[0] else 0  # 1: it moves sideways, so the band is a run of rows
    size, shorter = mask.shape[2 - axis], min(mask.shape[1:])
    reach = 1.5 * subject.radius[0] * shorter
    middle = subject.start[axis] * size
    inside = slice(max(int(middle - reach), 0), min(int(middle + reach) + 1, size))
    mask[(slice(None), inside) if axis else (slice(None), slice(None), inside)] = 1
    return mask

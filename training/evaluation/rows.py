"""The rows of the evaluation: each asks the model for clips of held-out scenes and measures them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import torch

from ...model_loading.standalone import Pipeline
from ...sampling.masks import build_start_end
from ..data import shapes
from ..data.shapes import DIRECTIONS
from .measure import MAX_SPREAD, centres_of, direction_of, has_hole, look, psnr, spread_of

LENGTH = 17
BATCH = 8
SHOWN = 2  # clips of a row in the picture


@dataclasses.dataclass(frozen=True)
class Options:
    """How clips are made: how many for each row, their size, and the sampler's steps and guidance."""

    count: int = 64
    size: int = 128
    steps: int = 20
    cfg: float = 2.0


@dataclasses.dataclass(frozen=True)
class Result:
    """One line of the table."""

    row: str
    what: str
    goal: str
    measured: str
    met: bool | None  # None: there is no goal


def share(flags: list[bool]) -> float:
    return sum(flags) / len(flags)


def percent(row: str, what: str, flags: list[bool], goal: float | None) -> Result:
    value = share(flags)
    text = "" if goal is None else f"at least {goal:.0%}"
    return Result(row, what, text, f"{value:.1%}", None if goal is None else value >= goal)


def within(row: str, what: str, differences: list[float], goal: float) -> Result:
    """A mean loss in dB below a reference."""
    value = sum(differences) / len(differences)
    return Result(row, what, f"within {goal} dB", f"{value:.2f} dB below", value <= goal)


class Evaluation:
    """A model and the held-out clips that it must make.

    Args:
        progress: called with the number of clips made.
    """

    def __init__(self, pipeline: Pipeline, options: Options, progress: Callable[[int], None] = lambda n: None):
        self.pipeline, self.options, self.progress = pipeline, options, progress
        self.shown: dict[str, torch.Tensor] = {}  # the first clips of every row, for the picture

    # what is asked for

    def scenes(
        self,
        part: int,
        kinds: tuple[str, ...] = shapes.SHAPES,
        wanted: Callable[[shapes.Scene], bool] = lambda s: True,
    ) -> list[shapes.Scene]:
        """The first wanted scenes of one row. Each row has another ``part``, and so other scenes."""
        drawn = (shapes.random_scene(shapes.HELD_OUT + part, i, kinds) for i in itertools.count())
        return list(itertools.islice(filter(wanted, drawn), self.options.count))

    def clip(self, scene: shapes.Scene) -> torch.Tensor:
        return shapes.render(scene, LENGTH, self.options.size, self.options.size)

    def restored(self, video: torch.Tensor) -> torch.Tensor:
        """A video after the VAE: no result can be closer to the video than this."""
        return self.pipeline.decode(self.pipeline.encode(video))

    def start_end(self, clip: torch.Tensor, start: bool, end: bool) -> torch.Tensor | None:
        """The conditioning of a clip's first and last frame."""
        length, height, width, _ = clip.shape
        images = (clip[:1] if start else None), (clip[-1:] if end else None)
        return self.pipeline.condition(*build_start_end(width, height, length, *images))

    def make(
        self,
        # what
        row: str,
        captions: list[str],
        extras: list,
        # how
        seed: int,
        width: int | None = None,
        height: int | None = None,
        length: int = LENGTH,
        **run,
    ) -> Iterator[torch.Tensor]:
        """Make clips for captions, in batches. Noise seeds start at ``seed``.

        Args:
            row: the name of the first clips in the picture.
            extras: conditioning for each caption, None for none.
            run: for `Pipeline.sample`; ``starts`` holds a latent for each caption.
        """
        options, pipeline = self.options, self.pipeline
        starts = run.pop("starts", None)
        negative = pipeline.text_encoder(shapes.NEGATIVE)
        size = (width or options.size, height or options.size, length)
        for at in range(0, len(captions), BATCH):
            some = range(at, min(at + BATCH, len(captions)))
            noise = torch.cat([pipeline.noise(*size, seed + i) for i in some])
            texts = torch.cat([pipeline.text_encoder(captions[i]) for i in some])
            extra = None if extras[at] is None else torch.cat([extras[i] for i in some])
            start = None if starts is None else torch.cat([starts[i] for i in some])
            latents = pipeline.sample(
                noise, texts, negative, extra, start, **{"steps": options.steps, "cfg": options.cfg, **run}
            )
            for i, latent in zip(some, latents, strict=True):
                video = pipeline.decode(latent[None])
                if i < SHOWN:
                    self.shown[f"{row}: {captions[i]}"] = video
                yield video
                self.progress(1)

    # the rows

    def vae(self) -> list[Result]:
        values = []
        for scene in self.scenes(0):
            clip = self.clip(scene)
            values.append(psnr(self.restored(clip), clip))
            self.progress(1)
        value = sum(values) / len(values)
        return [Result("VAE", "reconstruction", "at least 28 dB", f"{value:.2f} dB", value >= 28)]

    def text_to_video(self) -> list[Result]:
        scenes = self.scenes(1)
        seen = [look(v) for v in self.make("text to video", captions_of(scenes), [None] * len(scenes), 1000)]
        pairs = list(zip(scenes, seen, strict=True))
        return [
            percent("text to video", "colour", [s.colour == m.colour for s, m in pairs], 0.95),
            percent("text to video", "direction", [s.direction == m.direction for s, m in pairs], 0.9),
            percent("text to video", "background", [s.background == m.background for s, m in pairs], None),
        ]

    def image_to_video(self) -> list[Result]:
        scenes = self.scenes(2, wanted=open_start)
        clips = [self.clip(scene) for scene in scenes]
        extras = [self.start_end(clip, True, False) for clip in clips]
        videos = self.make("image to video", captions_of(scenes), extras, 2000)
        lost, kept, direction = [], [], []
        for scene, clip, video in zip(scenes, clips, videos, strict=True):
            seen = look(video)
            lost.append(psnr(self.restored(clip[:1]), clip[:1]) - psnr(video[0], clip[0]))
            kept.append(seen.colour == scene.colour and seen.background == scene.background)
            direction.append(seen.direction == scene.direction)
        return [
            within("image to video", "first frame, to its reconstruction", lost, 1.0),
            percent("image to video", "colour and background kept", kept, 0.95),
            percent("image to video", "direction of the prompt (half by the image alone)", direction, 0.85),
        ]

    def start_and_end(self) -> list[Result]:
        scenes = self.scenes(3)
        clips = [self.clip(scene) for scene in scenes]
        extras = [self.start_end(clip, True, True) for clip in clips]
        videos = self.make("start and end image", captions_of(scenes), extras, 3000)
        first, last, straight = [], [], []
        for scene, clip, video in zip(scenes, clips, videos, strict=True):
            restored = self.restored(clip)
            first.append(psnr(restored[0], clip[0]) - psnr(video[0], clip[0]))
            last.append(psnr(restored[-1], clip[-1]) - psnr(video[-1], clip[-1]))
            middle = video[LENGTH // 2 :][:1]
            off = (centres_of(middle)[0] - shapes.centres(scene, LENGTH)[LENGTH // 2]).norm()
            straight.append(bool(off <= 0.1 and spread_of(middle) <= MAX_SPREAD))
        return [
            within("start and end image", "first frame, to its reconstruction", first, 2.0),
            within("start and end image", "last frame, to its reconstruction", last, 2.0),
            percent("start and end image", "middle frame: one shape within 0.1 of the path", straight, 0.85),
        ]

    def region(self) -> list[Result]:
        """The band in which a shape moves is regenerated, with the colour and direction of another prompt."""
        scenes = self.scenes(4)
        asked, clips, masks, extras = [], [], [], []
        for i, scene in enumerate(scenes):
            clip = self.clip(scene)
            mask = band(scene, *clip.shape[:3])
            asked.append(dataclasses.replace(reversed_scene(scene), colour=other(scene.colour, i)))
            clips.append(clip)
            masks.append(mask)
            extras.append(self.pipeline.condition(clip, mask))
        videos = self.make("region inpaint", captions_of(asked), extras, 4000)
        lost, follows = [], []
        for scene, clip, mask, video in zip(asked, clips, masks, videos, strict=True):
            seen, known = look(video), mask == 0
            lost.append(psnr(self.restored(clip), clip, known) - psnr(video, clip, known))
            follows.append(seen.colour == scene.colour and seen.direction == scene.direction)
        return [
            within("region inpaint", "known part, to its reconstruction", lost, 1.5),
            percent("region inpaint", "new part: colour and direction of the prompt", follows, 0.85),
        ]

    def video_to_video(self) -> list[Result]:
        """The prompt describes another clip, so a higher strength gives a larger difference from the source."""
        strengths = (0.2, 0.4, 0.6, 0.8, 1.0)
        scenes = self.scenes(5)[: max(self.options.count // 4, 1)]
        prompts = [dataclasses.replace(s, colour=other(s.colour, i)).caption(i) for i, s in enumerate(scenes)]
        clips = [self.clip(scene) for scene in scenes]
        starts = [self.pipeline.encode(clip) for clip in clips]
        ceiling = [psnr(self.pipeline.decode(start), clip) for start, clip in zip(starts, clips, strict=True)]
        means = []
        for strength in strengths:
            steps = max(round(self.options.steps * strength), 1)  # VideoX-Fun's steps at a strength
            videos = self.make(
                f"video to video {strength}",
                prompts,
                [None] * len(scenes),
                5000,
                starts=starts,
                denoise=steps / self.options.steps,
                steps=steps,
            )
            values = [psnr(video, clip) for video, clip in zip(videos, clips, strict=True)]
            means.append(sum(values) / len(values))
        falls = all(a > b for a, b in zip(means, means[1:], strict=False))
        listed = ", ".join(f"{mean:.1f}" for mean in means)
        lost = sum(ceiling) / len(ceiling) - means[0]
        return [
            Result("video to video", "PSNR at strength 0.2 to 1.0", "falls steadily", f"{listed} dB", falls),
            within("video to video", "at 0.2, to the reconstruction", [lost], 2.0),
        ]

    def directions(self, part: int, width: int, height: int, length: int = LENGTH) -> list[bool]:
        """Whether the shape moves in the prompt's direction, from text alone."""
        scenes = self.scenes(10 + part)
        name = f"text to video, {width} x {height}"
        extras = [None] * len(scenes)
        videos = self.make(name, captions_of(scenes), extras, 10_000 + 1000 * part, width, height, length)
        return [direction_of(centres_of(v)) == s.direction for v, s in zip(videos, scenes, strict=True)]

    def resolutions(self, sizes: list[tuple[int, int, bool]]) -> list[Result]:
        """Text to video at (width, height, whether it was trained)."""
        results = []
        for part, (width, height, trained) in enumerate(sizes):
            name = f"{width} x {height}" + ("" if trained else ", never trained")
            right = self.directions(part, width, height)
            results.append(percent("sizes", f"{name}: direction", right, 0.85))
        return results

    def new_shape(self, lora: str = "") -> list[Result]:
        """How often the model makes a shape on which it was not trained."""
        scenes = self.scenes(6, (shapes.NEW_SHAPE,))
        captions = captions_of(scenes)
        rings = [
            has_hole(v)
            for v in self.make(f"LoRA {lora}" if lora else "without a LoRA", captions, [None] * len(scenes), 6000)
        ]
        what = f"{shapes.NEW_SHAPE}s made, of those asked for"
        return [percent(f"LoRA {lora}" if lora else "without a LoRA", what, rings, None)]


def open_start(scene: shapes.Scene) -> bool:
    """Whether the start leaves more than one direction possible, so that only the prompt decides."""
    distance = max(abs(e - s) for s, e in zip(scene.start, scene.end, strict=True))
    ends = ([s + step * distance for s, step in zip(scene.start, way, strict=True)] for way in DIRECTIONS.values())
    low, high = scene.radius - 1e-9, 1 - scene.radius + 1e-9
    return sum(all(low <= place <= high for place in end) for end in ends) > 1


def captions_of(scenes: list[shapes.Scene]) -> list[str]:
    """A caption for each scene, with alternating forms of the grammar."""
    return [scene.caption(i) for i, scene in enumerate(scenes)]


def other(colour: str, i: int) -> str:
    """Another colour."""
    names = [name for name in shapes.COLOURS if name != colour]
    return names[i % len(names)]


def reversed_scene(scene: shapes.Scene) -> shapes.Scene:
    """The same scene in the opposite direction."""
    opposite = {"left": "right", "right": "left", "up": "down", "down": "up"}
    return dataclasses.replace(scene, direction=opposite[scene.direction], start=scene.end, end=scene.start)


def band(scene: shapes.Scene, length: int, height: int, width: int) -> torch.Tensor:
    """The band across the frame in which a scene's shape moves, F H W, 1 = generate."""
    mask = torch.zeros(length, height, width)
    axis = 1 if scene.start[0] != scene.end[0] else 0  # 1: it moves sideways, so the band is a run of rows
    size = height if axis else width
    middle = scene.start[axis]
    low = max(int((middle - 1.35 * scene.radius) * size), 0)
    high = min(int((middle + 1.35 * scene.radius) * size) + 1, size)
    if axis:
        mask[:, low:high] = 1
    else:
        mask[:, :, low:high] = 1
    return mask

"""Held-out scenes, and the clips that a model makes of them."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from ...model_loading.standalone import Pipeline
from ...sampling.masks import build_start_end
from ..data.backgrounds import GRADIENTS
from ..data.scenes import HELD_OUT, NEGATIVE, PATH_FRAMES, Scene, random_scene
from ..data.shapes import SHAPES
from .measure import Truth, truth_of
from .report import Example

LENGTH = PATH_FRAMES
BATCH = 8


@dataclasses.dataclass(frozen=True)
class Options:
    """How clips are made: how many for each row, their size, and the sampler's steps, guidance and spacing.

    ``goals_only`` leaves out the kinds of clips that have no goal.
    """

    count: int = 64
    size: int = 128
    steps: int = 20
    cfg: float = 2.0
    spacing: str = "auto"
    goals_only: bool = False


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which scenes are drawn: see `random_scene`. Those that are not ``wanted`` are left out."""

    kinds: tuple[str, ...] = ("move",)
    backgrounds: tuple[str, ...] = tuple(GRADIENTS)
    shapes: tuple[str, ...] = SHAPES
    wanted: Callable[[Scene], bool] = lambda scene: True


class Evaluation:
    """A model and the held-out clips that it must make.

    Args:
        pipeline: its parts may be on a GPU. Clips are measured on the CPU.
        progress: called with the number of clips made.
        lora, control: a LoRA file and the folder of a Control model, for the rows that measure them.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        options: Options,
        progress: Callable[[int], None] = lambda n: None,
        lora: Path | None = None,
        control: Path | None = None,
    ):
        self.pipeline, self.options, self.progress = pipeline, options, progress
        self.lora, self.control = lora, control
        self.examples: list[Example] = []  # for the picture
        self.device = next(pipeline.transformer.parameters()).device

    def scenes(self, part: int, choice: Choice = Choice(), count: int = 0) -> list[Scene]:  # noqa: B008 - frozen
        """The first scenes of a choice. Each row has another ``part``, and so other scenes."""
        seed, chosen = HELD_OUT + part, (choice.shapes, choice.kinds, choice.backgrounds)
        drawn = (random_scene(seed, i, *chosen) for i in itertools.count())
        return list(itertools.islice(filter(choice.wanted, drawn), count or self.options.count))

    def truths(self, scenes: Sequence[Scene]) -> Iterator[Truth]:
        return (truth_of(scene, LENGTH, self.options.size, self.options.size) for scene in scenes)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        return self.pipeline.encode(video.to(self.device))

    def restored(self, video: torch.Tensor) -> torch.Tensor:
        """A video after the VAE."""
        return self.pipeline.decode(self.encode(video)).cpu()

    def masked(self, video: torch.Tensor, mask: torch.Tensor) -> torch.Tensor | None:
        """The conditioning of a video in which a mask is generated."""
        noise = self.pipeline.checkpoint.config.reference_noise
        return self.pipeline.condition(video.to(self.device), mask.to(self.device), noise)

    def start_end(self, video: torch.Tensor, start: bool = True, end: bool = True) -> torch.Tensor | None:
        """The conditioning of a video's first and last frame."""
        length, height, width, _ = video.shape
        images = (video[:1] if start else None), (video[-1:] if end else None)
        return self.masked(*build_start_end(width, height, length, *images))

    def make(
        self,
        # what
        scenes: Sequence[Scene],
        condition: Callable[[Truth], torch.Tensor | None] = lambda truth: None,
        start: Callable[[Truth], torch.Tensor] | None = None,
        captions: Sequence[str] = (),
        # how
        seed: int = 0,
        size: tuple[int, int, int] | None = None,
        **run,
    ) -> Iterator[tuple[Truth, torch.Tensor]]:
        """Make a clip of every scene, in batches, and give each with its truth. Noise seeds start at ``seed``.

        Args:
            condition: what the model gets beside the noise, for all scenes or for none.
            start: the latent that video to video starts from.
            captions: by default those of the scenes, with alternating forms of the grammar.
            size: width, height and length.
            run: for `Pipeline.sample`.
        """
        options, pipeline = self.options, self.pipeline
        width, height, length = size or (options.size, options.size, LENGTH)
        captions = captions or [scene.caption(i) for i, scene in enumerate(scenes)]
        negative = pipeline.text_encoder(NEGATIVE)
        for first in range(0, len(scenes), BATCH):
            some = range(first, min(first + BATCH, len(scenes)))
            truths = [truth_of(scenes[i], length, height, width) for i in some]
            noise = torch.cat([pipeline.noise(width, height, length, seed + i) for i in some]).to(self.device)
            texts = torch.cat([pipeline.text_encoder(captions[i]) for i in some])
            extras = [condition(truth) for truth in truths]
            extra = None if extras[0] is None else torch.cat(extras)
            begin = None if start is None else torch.cat([start(truth) for truth in truths])
            how = {"steps": options.steps, "cfg": options.cfg, "spacing": options.spacing, **run}
            latents = pipeline.sample(noise, texts, negative, extra, begin, **how)
            for truth, latent in zip(truths, latents, strict=True):
                yield truth, pipeline.decode(latent[None]).cpu()
                self.progress(1)

"""Clips that the model makes while it is trained, always from the same seeds."""

import dataclasses
import logging
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from ...model_loading.networks.config import TransformerConfig
from ...model_loading.networks.vae import CogVideoXVAE
from ...model_loading.standalone import Pipeline, TextEncoder, load_vae, open_whole
from ...sampling.geometry import FRAMES_PER_SECOND, check_size, legal_length
from ..data.buckets import Bucket, Draw
from ..data.clips import Clips
from ..data.scenes import HELD_OUT, NEGATIVE
from ..tasks.parts import Parts
from .config import OF_THE_VAE, ConfigError, Data, Phase
from .pictures import write_picture, write_video
from .source import as_config_error, length_limits, open_clips, phase_buckets, phase_samples

log = logging.getLogger(__name__)

HELD_OUT_SEED = HELD_OUT + 500_000  # of the shapes; the evaluation has others
ROWS_OF = {"inpaint": ("start", "start_end", "region", "text"), "control": ("control",), "text": ("text",)}


def rows_of(phase: Phase, config: TransformerConfig) -> tuple[str, ...]:
    """The rows that a phase asks for; by default all that its model can make.

    Raises:
        ConfigError: the model can't make one of them.
    """
    possible = ("restored",) if phase.task in OF_THE_VAE else ROWS_OF[config.conditioning]
    for row in phase.validation.rows:
        if row not in possible:
            raise ConfigError(f"validation.rows has {row!r}, expected some of {list(possible)} for this model")
    return phase.validation.rows or possible


@as_config_error()
def bucket_for(phase: Phase, config: TransformerConfig | None) -> Bucket:
    """The size and length of the clips: ``validation.size``, or the phase's first bucket."""
    if not phase.validation.size:
        return phase_buckets(phase.batches, phase.batches.tokens, config)[0]
    width, height, length = phase.validation.size
    check_size(width, height)
    return Bucket(width, height, legal_length(length, *length_limits(config)))


def validation_data(phase: Phase) -> Data:
    """Where the clips come from: the given folders, held-out shapes, or the clips of the training."""
    data = dataclasses.replace(phase.data, cache="")
    if phase.validation.folders:
        return dataclasses.replace(data, manifest="", folders=phase.validation.folders)
    if data.folders or data.manifest:
        log.warning("validation has no folders of its own: it shows clips that are trained on")
        return data
    return dataclasses.replace(data, seed=HELD_OUT_SEED, count=0)


def mask_of(row: str, length: int, height: int, width: int) -> torch.Tensor:
    """What is generated in a row (1), F H W: a rectangle of half the width and height, or all but the known frames."""
    mask = torch.ones(length, height, width)
    if row == "region":
        mask.zero_()[:, height // 4 : height - height // 4, width // 4 : width - width // 4] = 1
    if row in ("start", "start_end"):
        mask[0] = 0
    if row == "start_end":
        mask[-1] = 0
    return mask


@contextmanager
def kept_random(device: torch.device) -> Iterator[None]:
    """Leave the random generators of Python, numpy and torch as they were."""
    import numpy as np

    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    random.setstate(state)
    np.random.set_state(numpy_state)


@contextmanager
def exchanged(task: torch.nn.Module, values: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """A task with other values of its parameters. They get their own back, the same tensors as before."""
    parameters = {name: p for name, p in task.named_parameters() if name in values}
    own = {name: p.data for name, p in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.data = values[name].to(parameter)
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def is_whole(task: torch.nn.Module, values: Mapping[str, torch.Tensor]) -> bool:
    """Whether a task's parameters have the shapes of ``values``, and no shards of them."""
    parameters = dict(task.named_parameters())
    return all(parameters[n].shape == v.shape and not hasattr(parameters[n], "full_tensor") for n, v in values.items())


class Validator:
    """Makes the clips of a phase's ``validation``; made on every process, and called by all of them.

    Args:
        parts: if its task is in shards, the whole model is loaded for each validation. If it has no encoders, the VAE
            is, and T5 for the first one alone.
        accelerator: its main process makes the clips, while the others wait, and its trackers get the picture.
        folder: of the run.

    Raises:
        ConfigError: the model can't make what the phase asks for.
        CheckpointError: the model's folder has no VAE or no T5.
        ValueError: the size does not suit the model.
    """

    def __init__(self, phase: Phase, parts: Parts, accelerator, folder: Path):
        self.phase, self.parts, self.accelerator = phase, parts, accelerator
        self.options, self.folder = phase.validation, folder / "validation"
        if parts.encoders is None:
            open_whole(phase.model)
        self.rows = rows_of(phase, parts.checkpoint.config)
        self.bucket = bucket_for(phase, parts.config)
        self.samples: list[dict] | None = None  # the clips, made once
        self.features: dict[str, torch.Tensor] | None = None  # of their captions, where clips are trained from a cache

    def due(self, step: int) -> bool:
        """Whether the clips are to be made after ``step`` steps. Step 0 shows the model before training."""
        return step % self.options.every == 0

    def forget(self, step: int) -> None:
        """Remove the clips that an earlier run in this folder made after ``step``, from which this one goes on."""
        if self.accelerator.is_main_process:
            for path in self.folder.glob(f"step_{'[0-9]' * 7}.*"):
                if int(path.stem.removeprefix("step_")) > step or step == 0:
                    path.unlink()

    def picture(self, step: int) -> Path:
        return self.folder / f"step_{step:07d}.png"

    def __call__(self, step: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Make the clips, unless they exist.

        Args:
            step: how many steps are done.
            weights: the trained parameters, whole, by their names in the task. Other processes may give any.
        """
        if self.accelerator.is_main_process and not self.picture(step).is_file():
            with kept_random(self.accelerator.device):
                self.make(step, weights)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def make(self, step: int, weights: Mapping[str, torch.Tensor]) -> None:
        if self.samples is None:
            self.samples = self.read(open_clips(validation_data(self.phase)))
        parts = self.parts
        if not is_whole(parts.task, weights):
            parts = Parts(self.phase, parts.dtype, parts.attention)
            parts.task.to(self.accelerator.device)
        bf16 = self.phase.mixed_precision == "bf16"
        with (
            exchanged(parts.task, weights),
            torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=bf16),
        ):
            table = self.restored(parts) if self.phase.task in OF_THE_VAE else self.generated(parts)
        self.write(step, table)

    def read(self, clips: Clips) -> list[dict]:
        """The clips and captions, from the validation's seed. Where there are fewer clips, they come again."""
        samples = phase_samples(dataclasses.replace(self.phase, seed=self.options.seed), clips)
        count = self.options.clips
        different = count if clips.lengths is None else len(clips.lengths)
        found = [samples[Draw(i, i % different, self.bucket)] for i in range(count)]
        prompts = self.options.prompts
        return [{**s, "captions": prompts[i % len(prompts)]} if prompts else s for i, s in enumerate(found)]

    def restored(self, parts: Parts) -> list[list[torch.Tensor]]:
        """The clips after the VAE, F H W 3 of 0..1, in one row."""
        made = []
        for sample in self.samples:
            pixels = sample["video"].to(self.accelerator.device).movedim(-1, 0)[None] * 2 - 1  # FHWC -> 1CFHW
            made.append((parts.task.restore(pixels)[0].movedim(0, -1) + 1) / 2)
        return [made]

    def generated(self, parts: Parts) -> list[list[torch.Tensor]]:
        """A list of clips F H W 3 of 0..1 for every row."""
        device = self.accelerator.device
        if parts.encoders is None:
            vae, texts = self.loaded(parts)
        else:
            parts.encoders.to(device)
            vae, texts = parts.encoders.vae, parts.encoders.text_encoder
        pipeline = Pipeline(parts.checkpoint, parts.task.transformer, vae, texts)
        return [[self.clip(pipeline, row, i, sample) for i, sample in enumerate(self.samples)] for row in self.rows]

    def loaded(self, parts: Parts) -> tuple[CogVideoXVAE, Callable[[str], torch.Tensor]]:
        """The VAE, and the kept features of the captions: T5-XXL does not fit beside all that sampling needs."""
        device = self.accelerator.device
        if self.features is None:
            encoder = TextEncoder(parts.texts.text_encoder, parts.texts.tokenizer, parts.dtype)
            encoder.model.requires_grad_(False).to(device)  # autocast would keep copies of what is trained
            self.features = {text: encoder(text) for text in (*(s["captions"] for s in self.samples), NEGATIVE)}
        vae = load_vae(parts.checkpoint.vae, parts.dtype).to(device)
        return vae, self.features.__getitem__

    def clip(self, pipeline: Pipeline, row: str, number: int, sample: dict) -> torch.Tensor:
        """One clip by the pack's own pipeline. All rows of a sample start from the same noise."""
        options, device = self.options, self.accelerator.device
        video, size = sample["video"].to(device), (self.bucket.width, self.bucket.height, self.bucket.length)
        seed = options.seed + number
        extra = None
        if row == "control":
            if "control" not in sample:
                raise ValueError("the model takes a control video, and the clips have none: set control in [data]")
            extra = pipeline.encode(sample["control"].to(device))
        elif row != "text":
            mask = mask_of(row, *video.shape[:3])
            extra = pipeline.condition(video, mask, pipeline.checkpoint.config.reference_noise, seed)
        texts = (pipeline.text_encoder(text) for text in (sample["captions"], NEGATIVE))
        noise = pipeline.noise(*size, seed).to(device)
        spacing = "trailing" if self.phase.task == "few_steps" else "auto"  # whose LoRA knows no other timesteps
        how = {"steps": options.steps, "cfg": options.cfg, "spacing": spacing}
        return pipeline.decode(pipeline.sample(noise, *texts, extra, **how))

    def write(self, step: int, table: list[list[torch.Tensor]]) -> None:
        """Write the picture and the video: for each clip the source, then its rows."""
        table = [[clip.float().cpu() for clip in row] for row in table]
        lines, sources = [], []
        for i, sample in enumerate(self.samples):
            sources.append(sample["control" if "control" in self.rows else "video"])
            lines.append((f"clip: {sample['captions']}", sources[-1]))
            lines += [(row, clips[i]) for row, clips in zip(self.rows, table, strict=True)]
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.bucket.length > 1:
            write_video(
                self.picture(step).with_suffix(".mp4"), [sources, *table], self.phase.data.fps or FRAMES_PER_SECOND
            )
        picture = write_picture(self.picture(step), lines)
        log.info("%s: written", self.picture(step))
        for tracker in self.accelerator.trackers:
            if tracker.name == "tensorboard":
                tracker.log_images({"validation": picture[None]}, step=step, dataformats="NHWC")
            elif hasattr(tracker, "log_images"):
                tracker.log_images({"validation": [picture]}, step=step)

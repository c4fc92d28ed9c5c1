"""What ``make demo`` asks the nano model for, and how it is made without a ComfyUI."""

import dataclasses
from pathlib import Path

import torch
from tqdm import tqdm

from ..model_loading.standalone import Pipeline
from ..sampling.masks import build_start_end
from ..training.data import scenes
from ..training.data.backgrounds import View
from ..training.tasks.lora import apply_lora
from .pack import ROOT

MODEL = ROOT / "models" / "nano"
CIRCLE = scenes.Thing("red", "circle", (0.26, 0.6), (0.64, 0.6), (0.18, 0.18))
CUP = View(0.37, 0.5, 0.55), View(0.579, 0.5, 0.55)  # what the camera sees of the photograph, first and last
SCENES = {
    "shape": scenes.Scene("move", "night", "right", things=(CIRCLE,)),
    "camera": scenes.Scene("pan", "coffee", "right", "quickly", path=CUP),
}
LORA = MODEL / "lora" / "few_steps.safetensors"
STEPS, CFG = 4, 1.0  # what the LoRA is for


@dataclasses.dataclass(frozen=True)
class Request:
    """A start and an end image, and the prompts."""

    truth: torch.Tensor  # the clip of which only the first and the last frame are given, F H W 3 of 0..1
    prompt: str
    negative: str
    model: Path
    lora: Path
    cfg: float

    @property
    def start(self) -> torch.Tensor:
        return self.truth[:1]

    @property
    def end(self) -> torch.Tensor:
        return self.truth[-1:]


def request(name: str, width: int, height: int) -> Request:
    """Both ends of a clip like those that the nano model was trained on; ``name`` is a key of `SCENES`."""
    scene = SCENES[name]
    clip = scenes.render(scene, scenes.PATH_FRAMES, height, width)
    return Request(clip, scene.caption(), scenes.NEGATIVE, MODEL, LORA, CFG)


def run(request: Request, args) -> torch.Tensor:
    """Sample and decode a video without a ComfyUI, F H W 3 of 0..1, with a progress bar."""
    pipeline = Pipeline.from_folder(request.model)
    apply_lora(pipeline.transformer, request.lora)
    video, mask = build_start_end(args.width, args.height, args.length, request.start, request.end)
    extra = pipeline.condition(video, mask)
    noise = pipeline.noise(args.width, args.height, args.length, args.seed)
    texts = pipeline.text_encoder(request.prompt), pipeline.text_encoder(request.negative)
    with tqdm(total=args.steps, desc="sampling", unit="step", disable=None) as bar:
        latent = pipeline.sample(
            noise, *texts, extra, steps=args.steps, cfg=request.cfg, callback=lambda *_: bar.update()
        )
    return pipeline.decode(latent)

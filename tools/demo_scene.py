"""What ``make demo`` asks the nano model for, and how it is made without a ComfyUI."""

import dataclasses
from pathlib import Path

import torch
from tqdm import tqdm

from ..model_loading.standalone import Pipeline
from ..sampling.masks import build_start_end
from ..training.data import shapes
from .pack import ROOT

MODEL = ROOT / "models" / "nano"
SCENE = shapes.Scene("red", "circle", "right", "night", 0.2, (0.26, 0.6), (0.74, 0.6))
CFG = 2.0  # as in the evaluation of the nano model


@dataclasses.dataclass(frozen=True)
class Request:
    """A start and an end image, 1 H W 3 of 0..1, and the prompts."""

    start: torch.Tensor
    end: torch.Tensor
    prompt: str
    negative: str
    model: Path
    cfg: float


def shape_that_moves(width: int, height: int) -> Request:
    """The first and the last frame of a clip like those that the nano model was trained on."""
    clip = shapes.render(SCENE, shapes.PATH_FRAMES, height, width)
    return Request(clip[:1], clip[-1:], SCENE.caption(), shapes.NEGATIVE, MODEL, CFG)


def run(request: Request, args) -> torch.Tensor:
    """Sample and decode a video without a ComfyUI, F H W 3 of 0..1, with a progress bar."""
    pipeline = Pipeline.from_folder(request.model)
    video, mask = build_start_end(args.width, args.height, args.length, request.start, request.end)
    extra = pipeline.condition(video, mask)
    noise = pipeline.noise(args.width, args.height, args.length, args.seed)
    texts = pipeline.text_encoder(request.prompt), pipeline.text_encoder(request.negative)
    with tqdm(total=args.steps, desc="sampling", unit="step", disable=None) as bar:
        latent = pipeline.sample(
            noise, *texts, extra, steps=args.steps, cfg=request.cfg, callback=lambda *_: bar.update()
        )
    return pipeline.decode(latent)

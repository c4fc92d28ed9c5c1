"""Start and end image to video without a host."""

from pathlib import Path

import torch
from tqdm import tqdm

from ..model_loading.pipeline import Pipeline
from ..sampling.masks import build_start_end
from . import media

PROMPT = "a woman looks at the camera, then a cup of coffee on a table"
NEGATIVE = "blurry, distorted, low quality"


def run(model: Path, args) -> torch.Tensor:
    """Sample and decode a video, F H W 3 of 0..1, with a progress bar."""
    pipeline = Pipeline.from_folder(model)
    start, end = media.photographs()
    video, mask = build_start_end(args.width, args.height, args.length, start, end)
    extra = pipeline.condition(video, mask)
    noise = pipeline.noise(args.width, args.height, args.length, args.seed)
    texts = pipeline.text_encoder(PROMPT), pipeline.text_encoder(NEGATIVE)
    with tqdm(total=args.steps, desc="sampling", unit="step") as bar:
        latent = pipeline.sample(noise, *texts, extra, steps=args.steps, callback=lambda *_: bar.update())
    return pipeline.decode(latent)

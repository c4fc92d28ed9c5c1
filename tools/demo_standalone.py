"""Start and end image to video without a host."""

import torch
from tqdm import tqdm

from ..model_loading.standalone import Pipeline
from ..sampling.masks import build_start_end
from .demo_request import Request


def run(wanted: Request, args) -> torch.Tensor:
    """Sample and decode a video, F H W 3 of 0..1, with a progress bar."""
    pipeline = Pipeline.from_folder(wanted.model)
    video, mask = build_start_end(args.width, args.height, args.length, wanted.start, wanted.end)
    extra = pipeline.condition(video, mask)
    noise = pipeline.noise(args.width, args.height, args.length, args.seed)
    texts = pipeline.text_encoder(wanted.prompt), pipeline.text_encoder(wanted.negative)
    with tqdm(total=args.steps, desc="sampling", unit="step", disable=None) as bar:
        latent = pipeline.sample(
            noise, *texts, extra, steps=args.steps, cfg=wanted.cfg, callback=lambda *_: bar.update()
        )
    return pipeline.decode(latent)

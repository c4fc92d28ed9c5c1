"""Where the time of one guided call of the 5B goes."""

from pathlib import Path

import torch

from . import models
from .measure import Scale, kernels, trace


def measure(scale: Scale, path: Path) -> dict:
    call = models.Call(scale, path)
    with torch.inference_mode():
        run = call.runner(scale.first, 2)
        run()
        return kernels(trace(run, scale.device), count=30)

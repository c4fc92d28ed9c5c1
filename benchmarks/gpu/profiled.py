"""Where the time goes of one guided call of the 5B, and of decoding a video."""

from pathlib import Path

import torch

from ...model_loading.comfyui.vae import load_vae
from . import models
from .measure import Scale, kernels, trace


def measure(scale: Scale, path: Path, folder: Path) -> dict:
    """Args:
    path: of the 5B's file.
    folder: for the VAE's.
    """
    call = models.Call(scale, path)
    vae = load_vae(models.write_vae(scale, folder))
    latent = torch.randn(1, 16, *scale.first)
    found = {}
    with torch.inference_mode():
        for name, run in {"call": call.runner(scale.first, 2), "decode": lambda: vae.decode(latent)}.items():
            run()
            found[name] = kernels(trace(run, scale.device))
    return found

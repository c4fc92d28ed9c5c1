"""Whole runs through the nodes: an InP model, guidance, and the sampler's loop with its previews and checks."""

import contextlib
import logging
import time
from pathlib import Path

import torch

from ...model_loading.networks.config import TEXT_TOKENS
from . import models
from .calls import fp8_products
from .host import run_node
from .measure import Scale, synchronize

log = logging.getLogger(__name__)


class Run:
    """Start and end image to video with a MODEL, random text and random reference latents."""

    def __init__(self, scale: Scale, model):
        self.scale, self.model = scale, model
        generator = torch.Generator().manual_seed(0)
        width = model.model.config.text_embed_dim
        prompts = [[[torch.randn(1, TEXT_TOKENS, width, generator=generator), {}]] for _ in range(2)]
        t, h, w = scale.first
        mask = torch.ones(t, h, w)
        mask[0] = mask[-1] = 0
        reference = {"samples": torch.randn(1, 16, t, h, w, generator=generator)}
        self.positive, self.negative, self.latent = run_node(
            "CogVideoXFunInpaintConditioning",
            positive=prompts[0], negative=prompts[1], masked_latent=reference, mask=mask,
        )  # fmt: skip

    def seconds(self, steps: int) -> float:
        """Seconds of the Sampler node: placing the model, the loop, and the result in the host's memory."""
        begun = time.perf_counter()
        run_node(
            "CogVideoXFunSampler",
            model=self.model, positive=self.positive, negative=self.negative, latent=self.latent, seed=1, steps=steps,
        )  # fmt: skip
        synchronize(self.scale.device)
        return time.perf_counter() - begun


def measure(scale: Scale, path: Path, kinds: tuple[str, ...], write) -> dict:
    """Seconds of whole runs of the 5B.

    Args:
        path: of its file.
        kinds: of "eager", "compiled", "fp8" and "fp8 compiled".
        write: called with the result so far after each.
    """
    import comfy.model_management

    found: dict = {"steps": scale.steps}
    for kind in kinds:
        label = f"{kind}, --fast fp8_matrix_mult" if "fp8" in kind else kind
        with fp8_products() if "fp8" in kind else contextlib.nullcontext():
            call = models.Call(scale, path, weight_dtype="fp8_e4m3fn" if "fp8" in kind else "default")
            model = call.patcher
            if "compiled" in kind:
                model = models.compiled(model)
            run = Run(scale, model)
            first = run.seconds(1)
            found[label] = {"a run of one step before": first, "seconds": run.seconds(scale.steps)}
        log.info("%s: %s", kind, found[label])
        write(found)
        del call, model, run
        comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()
    return found

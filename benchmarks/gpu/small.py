"""The 5B with less GPU memory than it needs: the rest is taken by one large tensor, so that ComfyUI must offload."""

import gc
import logging
from pathlib import Path

import torch

from . import models
from .measure import GB, Scale, seconds, trace, uploaded

log = logging.getLogger(__name__)


def measure(scale: Scale, path: Path, write) -> dict:
    """Seconds of a call of one prompt and bytes uploaded for it, for each budget, with dynamic VRAM and without."""
    found: dict = {}
    for dynamic in (True, False):
        for budget in sorted(scale.budgets, reverse=True):
            name = f"{budget / GB:.0f} GB, {'dynamic VRAM' if dynamic else 'the older patcher'}"
            try:
                found[name] = one(scale, path, budget, dynamic)
            except torch.OutOfMemoryError as error:
                found[name] = {"error": str(error)[:300]}
            log.info("%s: %s", name, found[name])
            write(found)
    return found


def one(scale: Scale, path: Path, budget: float, dynamic: bool) -> dict:
    import comfy.model_management

    comfy.model_management.unload_all_models()
    gc.collect()
    comfy.model_management.soft_empty_cache()
    ballast = free = None
    if scale.device.type != "cpu":
        torch.cuda.empty_cache()  # what the allocator keeps would be taken before free memory is
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(0, int(free - budget)), dtype=torch.uint8, device=scale.device)
        free, _ = torch.cuda.mem_get_info()
    call = models.Call(scale, path, **({} if dynamic else {"disable_dynamic": True}))
    with torch.inference_mode():
        run = call.runner(scale.first, 1)
        run()
        taken = seconds(run, scale.device, repeats=1, warm_up=0)
        events = trace(run, scale.device)
    result = {"free": free, "seconds": taken, "uploaded": uploaded(events)}
    if not dynamic:
        result["loaded"] = call.patcher.loaded_size()
    del call, run, ballast
    comfy.model_management.unload_all_models()
    return result

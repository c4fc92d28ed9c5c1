"""One call of the 2B and the 5B at their real size, beside diffusers' class and ComfyUI's: seconds and peak bytes."""

import gc
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file

from ...model_loading.checkpoint import SAVED_CONFIG
from . import models
from .measure import Scale, timed

log = logging.getLogger(__name__)


def free() -> None:
    """Take every model off the GPU."""
    import comfy.model_management

    gc.collect()
    comfy.model_management.unload_all_models()
    comfy.model_management.soft_empty_cache()


def measure(scale: Scale, folder: Path, write) -> dict:
    """Args:
    folder: for the models' files.
    write: called with the result so far after each row.
    """
    found: dict = {}
    small, large = scale.sizes

    def row(name: str, size: str, batch: int, run, repeats: int = 2) -> None:
        with torch.inference_mode():
            found[f"{name}, {size}, batch {batch}"] = timed(run, scale.device, repeats)
        log.info("%s, %s, batch %d: %s", name, size, batch, found[f"{name}, {size}, batch {batch}"])
        write(found)

    path = models.write_transformer(scale, "5B", folder)
    ours(scale, path, row, found)
    in_fp8(scale, path, row)
    peers(scale, "5B", path, row)
    plain = models.Call(scale, path, disable_dynamic=True)
    row("5B without dynamic VRAM", small, 2, plain.runner(scale.sizes[small], 2))
    del plain
    free()
    path = models.write_transformer(scale, "2B", folder)
    call = models.Call(scale, path)
    row("2B", small, 2, call.runner(scale.sizes[small], 2))
    row("2B", large, 1, call.runner(scale.sizes[large], 1))
    return found


def ours(scale: Scale, path: Path, row, found: dict) -> None:
    """The 5B in bf16, both prompts in one call and in two."""
    small, large = scale.sizes
    call = models.Call(scale, path)
    for batch in (2, 1):
        row("5B", small, batch, call.runner(scale.sizes[small], batch))
    row("5B", large, 1, call.runner(scale.sizes[large], 1), repeats=1)
    for size, batch in ((small, 1), (small, 2), (large, 1)):
        declared = call.patcher.model.memory_required([batch, 16, *scale.sizes[size]])
        found[f"declared, {size}, batch {batch}"] = declared
    del call
    free()


def peers(scale: Scale, name: str, path: Path, row) -> None:
    small, large = scale.sizes
    state = load_file(path, device=str(scale.device))
    state.pop(SAVED_CONFIG)
    row("diffusers", small, 2, models.diffusers_runner(scale, name, state, scale.sizes[small], 2))
    row("diffusers", large, 1, models.diffusers_runner(scale, name, state, scale.sizes[large], 1), repeats=1)
    del state
    free()
    row("ComfyUI's own class", small, 2, models.native_runner(scale, name, scale.sizes[small], 2))
    free()


def in_fp8(scale: Scale, path: Path, row) -> None:
    """Stored in fp8 and computed in bf16, and with ComfyUI's ``--fast fp8_matrix_mult``."""
    from comfy.cli_args import PerformanceFeature, args

    small, _ = scale.sizes
    call = models.Call(scale, path, weight_dtype="fp8_e4m3fn")
    row("5B in fp8", small, 2, call.runner(scale.sizes[small], 2))
    del call
    free()
    args.fast.add(PerformanceFeature.Fp8MatrixMultiplication)
    try:
        call = models.Call(scale, path, weight_dtype="fp8_e4m3fn")
        row("5B in fp8, --fast fp8_matrix_mult", small, 2, call.runner(scale.sizes[small], 2))
    finally:
        args.fast.discard(PerformanceFeature.Fp8MatrixMultiplication)
    del call
    free()

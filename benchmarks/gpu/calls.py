"""One call of the 2B and the 5B at their real size, beside diffusers' class and ComfyUI's: seconds and peak bytes."""

import contextlib
import gc
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file

from ...model_loading.files.checkpoint import SAVED_CONFIG
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

    def row(name: str, size: str, batch: int, run, repeats: int = 2, **more: float) -> None:
        with torch.inference_mode():
            result = found[f"{name}, {size}, batch {batch}"] = {**timed(run, scale.device, repeats), **more}
        log.info("%s, %s, batch %d: %s", name, size, batch, result)
        write(found)

    def rows(name: str, call: models.Call, *cases: tuple[str, int]) -> None:
        """Calls of ours, each of a size and a batch, beside the memory that ComfyUI was told."""
        for size, batch in cases:
            declared = call.patcher.model.memory_required([batch, 16, *scale.sizes[size]])
            row(name, size, batch, call.runner(scale.sizes[size], batch), declared=declared)
        free()

    path = models.write_transformer(scale, "5B", folder)
    rows("5B", models.Call(scale, path), (small, 2), (small, 1), (large, 1))
    rows("5B in fp8", models.Call(scale, path, weight_dtype="fp8_e4m3fn"), (small, 2))
    with fp8_products():
        rows("5B in fp8, --fast fp8_matrix_mult", models.Call(scale, path, weight_dtype="fp8_e4m3fn"), (small, 2))
    peers(scale, "5B", path, row)
    rows("5B without dynamic VRAM", models.Call(scale, path, disable_dynamic=True), (small, 2))
    path = models.write_transformer(scale, "2B", folder)
    rows("2B", models.Call(scale, path), (small, 2), (large, 1))
    return found


@contextlib.contextmanager
def fp8_products():
    """ComfyUI with its option ``--fast fp8_matrix_mult``."""
    from comfy.cli_args import PerformanceFeature, args

    args.fast.add(PerformanceFeature.Fp8MatrixMultiplication)
    try:
        yield
    finally:
        args.fast.discard(PerformanceFeature.Fp8MatrixMultiplication)


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

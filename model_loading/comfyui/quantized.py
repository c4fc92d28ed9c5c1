"""Quantised files in the layout that ComfyUI reads: fp8 with scales, in its older layout and in its newer one."""

import json

import comfy.utils
import torch

from ..errors import CheckpointError
from ..files.safetensors_files import LAYERS, SCALED_FP8, is_quantization
from .compat import convert_old_quants

READ = ("float8_e4m3fn", "float8_e5m2")  # formats of a layer; others pack several weights into a byte


def check_format(state: dict) -> None:
    """Raise a CheckpointError for a layer in a format that is not read, by its ``comfy_quant`` tensor."""
    for key in (key for key in state if key.endswith(".comfy_quant")):
        layout = json.loads(bytes(state[key].tolist()))["format"]
        if layout not in READ:
            raise CheckpointError(
                f"{key} says {layout}, expected {' or '.join(READ)}: take a file in fp8, fp16 or bf16"
            )


def renamed_layers(metadata: dict, rename) -> dict:
    """A header's metadata with its quantised layers named as the tensors are.

    Args:
        rename: from a tensor's name in the file to its name here.
    """
    if LAYERS not in metadata:
        return metadata
    described = json.loads(metadata[LAYERS])
    layers = {rename(f"{layer}.weight").removesuffix(".weight"): how for layer, how in described["layers"].items()}
    return {**metadata, LAYERS: json.dumps({**described, "layers": layers})}


def read_quantization(state: dict, metadata: dict) -> tuple[dict, dict]:
    """Bring a quantised state into ComfyUI's layout.

    Returns:
        The state, and what describes it: ``quant_config`` if ComfyUI has mixed precision, ``scaled_fp8`` (a dtype) if
        it is older, or nothing for a file that isn't quantised.

    Raises:
        CheckpointError: scales without a description, a format that is not read, or this ComfyUI is too old.
    """
    state = dict(state)
    check_format(state)
    newer = LAYERS in metadata or any(key.endswith(".comfy_quant") for key in state)
    if not newer and SCALED_FP8 not in state:
        if any(map(is_quantization, state)):
            raise CheckpointError(
                f"the file holds scales, but neither {SCALED_FP8} nor which layers they are for: take a file with "
                "either, or an fp16 one"
            )
        return state, {}
    if convert_old_quants() is not None:
        state, _ = convert_old_quants()(state, "", metadata=metadata)
        check_format(state)
        return state, {"quant_config": comfy.utils.detect_layer_quantization(state, "")}
    if newer:
        raise CheckpointError("this ComfyUI is too old for the file's quantisation: update it, or take an fp16 file")
    dtype = state[SCALED_FP8].dtype
    return state, {SCALED_FP8: torch.float8_e4m3fn if dtype == torch.float32 else dtype}

"""Quantised files as each host reads them: scaled fp8, and the layouts that newer hosts add."""

import json

import comfy.utils
import torch

from .config import CheckpointError

SCALED_FP8 = "scaled_fp8"  # a tensor whose dtype is that of every quantised weight in the file
LAYERS = "_quantization_metadata"  # in a file's header, JSON: which layers are quantised, and how
# What a quantised layer has beside its weight and bias.
ENDINGS = (
    *(".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant"),
    *(".weight_scale_2", ".pre_quant_scale"),
)


def is_quantization(key: str) -> bool:
    """Whether a tensor describes how others are quantised."""
    return key == SCALED_FP8 or key.endswith(ENDINGS)


def without_quantization(keys) -> list[str]:
    return [key for key in keys if not is_quantization(key)]


def renamed_layers(metadata: dict, rename) -> dict:
    """A header's metadata with its quantised layers named as the tensors are.

    Args:
        rename: from a tensor's name in the file to its name here.

    Raises:
        CheckpointError: the header's entry is no JSON of the host's layout.
    """
    if LAYERS not in metadata:
        return metadata
    try:
        described = json.loads(metadata[LAYERS])
        layers = {rename(f"{layer}.weight").removesuffix(".weight"): how for layer, how in described["layers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"the header's {LAYERS} can't be read ({error!r}): download the file again") from error
    return {**metadata, LAYERS: json.dumps({**described, "layers": layers})}


def read_quantization(state: dict, metadata: dict) -> tuple[dict, dict]:
    """Bring a quantised state into the host's layout.

    Returns:
        The state, and what describes it: ``quant_config`` on hosts with mixed precision, ``scaled_fp8`` (a dtype) on
        those before, or nothing for a file that isn't quantised.

    Raises:
        CheckpointError: this host is too old for the file.
    """
    state = dict(state)
    if hasattr(comfy.utils, "convert_old_quants"):
        state, metadata = comfy.utils.convert_old_quants(state, "", metadata=metadata)
        found = comfy.utils.detect_layer_quantization(state, "")
        return state, {} if found is None else {"quant_config": found}
    if LAYERS in metadata or any(key.endswith(".comfy_quant") for key in state):
        raise CheckpointError("this ComfyUI is too old for the file's quantisation: update it, or take an fp16 file")
    if SCALED_FP8 not in state:
        return state, {}
    dtype = state[SCALED_FP8].dtype
    return state, {SCALED_FP8: torch.float8_e4m3fn if dtype == torch.float32 else dtype}

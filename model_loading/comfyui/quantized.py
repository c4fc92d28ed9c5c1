"""Quantised files as each host reads them: fp8 with scales, in the old layout and in that of newer hosts."""

import json

import comfy.utils
import torch

from ..errors import CheckpointError
from ..files.safetensors_files import SCALED_FP8, is_quantization

LAYERS = "_quantization_metadata"  # in a file's header, JSON: which layers are quantised, and how
READ = ("float8_e4m3fn", "float8_e5m2")  # formats of a layer; others pack several weights into a byte


def check_format(state: dict) -> None:
    """Raise a CheckpointError for a layer in a format that is not read, by its ``comfy_quant`` tensor."""
    for key, tensor in state.items():
        if not key.endswith(".comfy_quant"):
            continue
        try:
            layout = json.loads(bytes(tensor.flatten().tolist()))["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{key} can't be read ({error!r}): download the file again") from error
        if layout not in READ:
            raise CheckpointError(
                f"{key} says {layout}, expected {' or '.join(READ)}: take a file in fp8, fp16 or bf16"
            )


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
    described = SCALED_FP8 in state or LAYERS in metadata or any(key.endswith(".comfy_quant") for key in state)
    if not described and any(map(is_quantization, state)):
        raise CheckpointError(
            f"the file holds scales, but neither {SCALED_FP8} nor which layers they are for: take a file with either, "
            "or an fp16 one"
        )
    if hasattr(comfy.utils, "convert_old_quants"):
        state, metadata = comfy.utils.convert_old_quants(state, "", metadata=metadata)
        check_format(state)
        found = comfy.utils.detect_layer_quantization(state, "")
        return state, {} if found is None else {"quant_config": found}
    if LAYERS in metadata or any(key.endswith(".comfy_quant") for key in state):
        raise CheckpointError("this ComfyUI is too old for the file's quantisation: update it, or take an fp16 file")
    if SCALED_FP8 not in state:
        return state, {}
    dtype = state[SCALED_FP8].dtype
    return state, {SCALED_FP8: torch.float8_e4m3fn if dtype == torch.float32 else dtype}

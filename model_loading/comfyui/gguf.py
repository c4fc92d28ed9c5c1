"""GGUF through the node pack ComfyUI-GGUF: its tensors, its operations, and its patcher for LoRAs."""

import importlib
import sys
from pathlib import Path

import torch

import nodes

from ..errors import CheckpointError
from ..files.safetensors_files import Weights

UNLAYERED = {"patch_embed.pos_embedding"}  # parameters of no layer, which nothing unpacks later
LOADER = "UnetLoaderGGUF"  # a node of ComfyUI-GGUF, by which an installed one is found


def find_pack(path: Path):
    """ComfyUI-GGUF's modules ``nodes`` and ``ops``.

    Args:
        path: the file, for the message.

    Raises:
        CheckpointError: it is not installed.
    """
    loader = nodes.NODE_CLASS_MAPPINGS.get(LOADER)
    if loader is None:
        raise CheckpointError(
            "is a GGUF file, whose weights the node pack ComfyUI-GGUF unpacks: install it, or take a safetensors file",
            path,
        )
    module = sys.modules[loader.__module__]
    return module, importlib.import_module(".ops", module.__package__)


def as_ggml(state: dict, weights: Weights, ops) -> dict:
    """A state's tensors as ComfyUI-GGUF's, which know their type and the shape they unpack to."""
    import gguf

    found = {}
    for key, tensor in state.items():
        info = weights.tensors[key]
        kind = gguf.GGMLQuantizationType(info.ggml_type)
        if key in UNLAYERED:
            found[key] = torch.from_numpy(gguf.quants.dequantize(tensor.numpy(), kind)).reshape(info.shape)
            continue
        found[key] = ops.GGMLTensor(tensor, tensor_type=kind, tensor_shape=torch.Size(info.shape))
    return found

"""Tensors read as ComfyUI reads them, so that its options count: --disable-mmap, and reading straight to the GPU."""

from pathlib import Path

import comfy.utils
import torch

from ..files import safetensors_files as weights


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file whose header was read before.

    By default they are mapped; if the file is shortened while they are in use, the system ends ComfyUI. With
    --disable-mmap they are copies. With dynamic VRAM they are always mapped, and know their place in the file.
    """
    if path.suffix.lower() != ".gguf":
        return comfy.utils.load_torch_file(str(path))
    found = weights.read_file(path)
    return {key: tensor.clone() for key, tensor in found.items()} if comfy.utils.DISABLE_MMAP else found

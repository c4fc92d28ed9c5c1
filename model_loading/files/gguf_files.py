"""GGUF files, read with the gguf library."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import CheckpointError

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # fields in which ComfyUI-GGUF's converter keeps reshaped tensors' shapes


def read_gguf(path: Path) -> Iterator[tuple[str, torch.Tensor, tuple[int, ...], int]]:
    """Every tensor's name, its data as stored, its shape in the model, and the number of its GGML type.

    The data are mapped: floats of 16 and 32 bits in the model's shape, other types as bytes.

    Raises:
        CheckpointError: no gguf library, or a broken file.
    """
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            "is a GGUF file, which needs the gguf library: install the node pack ComfyUI-GGUF, which brings it", path
        ) from error
    try:
        reader = gguf.GGUFReader(str(path))
    except Exception as error:  # the library trusts the file, so anything can go wrong in it
        raise CheckpointError(f"can't be read as GGUF ({error}): download it again", path) from error
    for tensor in reader.tensors:
        with warnings.catch_warnings():  # the mapped file can't be written to, and nothing here does
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            data = torch.from_numpy(tensor.data)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        field = reader.get_field(ORIGINAL_SHAPE + tensor.name)
        if field is not None:
            shape = tuple(int(field.parts[index][0]) for index in field.data)
        yield tensor.name, data.view(shape) if data.is_floating_point() else data, shape, int(tensor.tensor_type)

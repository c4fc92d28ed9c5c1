"""GGUF files, read with the gguf library."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import CheckpointError

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # fields in which ComfyUI-GGUF's converter keeps reshaped tensors' shapes


def open_reader(path: Path):
    """The gguf library's reader of a file.

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
        return gguf.GGUFReader(str(path))
    except Exception as error:  # the library trusts the file, so anything can go wrong in it
        raise CheckpointError(f"can't be read as GGUF ({error}): download it again", path) from error


def tensor_shape(reader, tensor) -> tuple[int, ...]:
    """The shape that a tensor has in the model."""
    field = reader.get_field(ORIGINAL_SHAPE + tensor.name)
    if field is not None:
        return tuple(int(field.parts[index][0]) for index in field.data)
    return tuple(int(n) for n in reversed(tensor.shape))


def describe(path: Path) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, int]]:
    """Every tensor's name, its shape in the model, its stored dtype (uint8 if in blocks) and its GGML type."""
    reader = open_reader(path)
    dtypes = {"float32": torch.float32, "float16": torch.float16}
    for tensor in reader.tensors:
        stored = dtypes.get(tensor.data.dtype.name, torch.uint8)
        yield tensor.name, tensor_shape(reader, tensor), stored, int(tensor.tensor_type)


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors with their names, mapped: floats of 16 and 32 bits in the model's shape, other types as bytes."""
    reader = open_reader(path)
    for tensor in reader.tensors:
        with warnings.catch_warnings():  # the mapped file can't be written to, and nothing here does
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            data = torch.from_numpy(tensor.data)
        yield tensor.name, data.view(tensor_shape(reader, tensor)) if data.is_floating_point() else data

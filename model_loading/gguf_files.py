"""GGUF files, read with the gguf library: what lies where, and the tensors as they are stored. No host, no model."""

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from .config import CheckpointError

MAGIC = b"GGUF"
SEARCHED = 1 << 20  # bytes of the beginning in which a tensor's name is looked for
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # fields in which ComfyUI-GGUF's converter keeps reshaped tensors' shapes


def names_tensor(path: Path, key: str) -> bool:
    """Whether a GGUF file names a tensor, without parsing it."""
    try:
        with path.open("rb") as file:
            start = file.read(SEARCHED)
    except OSError:
        return False
    return start.startswith(MAGIC) and key.encode() in start


def open_reader(path: Path):
    """The gguf library's reader of a file.

    Raises:
        CheckpointError: no gguf library, or a broken file.
    """
    try:
        import gguf
    except ImportError as error:
        raise CheckpointError(
            f"{path} is a GGUF file, which needs the gguf library: install the node pack ComfyUI-GGUF, which brings it"
        ) from error
    try:
        return gguf.GGUFReader(str(path))
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise CheckpointError(f"{path} can't be read as GGUF ({error}): download it again") from error


def stored_dtype(tensor) -> torch.dtype:
    """The dtype of what is stored: uint8 for every type that packs values in blocks."""
    return {"float32": torch.float32, "float16": torch.float16}.get(tensor.data.dtype.name, torch.uint8)


def tensor_shape(reader, tensor) -> tuple[int, ...]:
    """The shape that a tensor has in the model."""
    field = reader.get_field(ORIGINAL_SHAPE + tensor.name)
    if field is not None:
        return tuple(int(field.parts[index][0]) for index in field.data)
    return tuple(int(n) for n in reversed(tensor.shape))


def read_tensors(path: Path, names: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors by name, mapped: floats of 16 and 32 bits in the model's shape, every other type as bytes."""
    reader = open_reader(path)
    wanted = set(names)
    for tensor in reader.tensors:
        if tensor.name in wanted:
            with warnings.catch_warnings():  # the mapped file can't be written to, and nobody does
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                data = torch.from_numpy(tensor.data)
            yield tensor.name, data.view(tensor_shape(reader, tensor)) if data.is_floating_point() else data

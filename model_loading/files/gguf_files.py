"""GGUF files, read with the gguf library: what lies where, and the tensors as they are stored. No host, no model."""

import math
import os
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import CheckpointError

MAGIC = b"GGUF"
SEARCHED = 1 << 20  # bytes of the beginning in which a tensor's name is looked for
# Fields, their elements and tensors: a T5's vocabulary takes half, and the library half a KB for each.
MAX_ENTRIES = 200_000
MAX_NAME = 1000  # bytes of a field's or tensor's name
MAX_DIMENSIONS = 8
# Bytes of a field's value by its type's number; 8 is a text, 9 an array.
FIELD_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
TEXT, ARRAY = 8, 9
ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # fields in which ComfyUI-GGUF's converter keeps reshaped tensors' shapes


def names_tensor(path: Path, key: str) -> bool:
    """Whether a GGUF file names a tensor, without parsing it."""
    if not os.path.isfile(path):
        return False
    try:
        with path.open("rb") as file:
            start = file.read(SEARCHED)
    except OSError:
        return False
    return start.startswith(MAGIC) and key.encode() in start


class _Head:
    """Walks over a GGUF file's head and counts what is in it.

    The library trusts every number that a head holds, so one that lies would cost it hours and all memory.
    """

    def __init__(self, file):
        self.file, self.size = file, os.fstat(file.fileno()).st_size
        self.entries = 0

    def number(self, kind: str) -> int:
        data = self.file.read(struct.calcsize(kind))
        if len(data) < struct.calcsize(kind):
            raise ValueError("it ends within its head")
        return struct.unpack(f"<{kind}", data)[0]

    def skip(self, count: int, limit: int | None = None) -> None:
        if limit is not None and count > limit:
            raise ValueError(f"a name of {count} bytes")
        if count > self.size - self.file.tell():
            raise ValueError("it ends within its head")
        self.file.seek(count, os.SEEK_CUR)

    def count(self, entries: int) -> int:
        self.entries += entries
        if self.entries > MAX_ENTRIES:
            raise ValueError(f"its head has {self.entries} entries, expected at most {MAX_ENTRIES}")
        return entries

    def value(self, kind: int) -> None:
        if kind == TEXT:
            self.skip(self.number("Q"))
        elif kind == ARRAY:
            of, length = self.number("I"), self.count(self.number("Q"))
            if of == TEXT:
                for _ in range(length):
                    self.skip(self.number("Q"))
            elif of in FIELD_BYTES:
                self.skip(length * FIELD_BYTES[of])
            else:
                raise ValueError(f"an array of type {of}")
        elif kind in FIELD_BYTES:
            self.skip(FIELD_BYTES[kind])
        else:
            raise ValueError(f"a field of type {kind}")

    def check(self) -> None:
        """Raise a ValueError unless the head is whole and of a size that a model's can be."""
        if self.file.read(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version, tensors, fields = self.number("I"), self.number("Q"), self.number("Q")
        if version not in (2, 3):
            raise ValueError(f"its version is {version}, expected 2 or 3")
        self.count(tensors)
        for _ in range(self.count(fields)):
            self.skip(self.number("Q"), MAX_NAME)
            self.value(self.number("I"))
        for _ in range(tensors):
            self.skip(self.number("Q"), MAX_NAME)
            dimensions = self.number("I")
            if dimensions > MAX_DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions} dimensions")
            self.skip(8 * dimensions + 12)  # the dimensions, the type, the place


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
        with Path(path).open("rb") as file:
            _Head(file).check()
        with warnings.catch_warnings():  # numpy's, of sizes that overflow
            warnings.simplefilter("ignore")
            return gguf.GGUFReader(str(path))
    except Exception as error:  # what the library raises is numpy's, whatever that stumbles over
        raise CheckpointError(f"{path} can't be read as GGUF ({error}): download it again") from error


def describe(path: Path) -> Iterator[tuple[str, tuple[int, ...], torch.dtype, int]]:
    """Every tensor's name, its shape in the model, the dtype that it is stored in and the number of its GGML type.

    Raises:
        CheckpointError: no gguf library, or a broken file.
    """
    reader = open_reader(path)
    for tensor in reader.tensors:
        try:
            shape = tensor_shape(reader, tensor)
        except (TypeError, ValueError, IndexError, OverflowError) as error:
            raise CheckpointError(
                f"{path}: the shape of {tensor.name} is broken ({error}): download it again"
            ) from error
        if math.prod(shape) != tensor.n_elements or any(n < 0 for n in shape):
            raise CheckpointError(
                f"{path}: {tensor.name} has {tensor.n_elements} elements, but is {list(shape)}: download it again"
            )
        yield tensor.name, shape, stored_dtype(tensor), int(tensor.tensor_type)


def stored_dtype(tensor) -> torch.dtype:
    """The dtype of what is stored: uint8 for every type that packs values in blocks."""
    return {"float32": torch.float32, "float16": torch.float16}.get(tensor.data.dtype.name, torch.uint8)


def tensor_shape(reader, tensor) -> tuple[int, ...]:
    """The shape that a tensor has in the model."""
    field = reader.get_field(ORIGINAL_SHAPE + tensor.name)
    if field is not None:
        return tuple(int(field.parts[index][0]) for index in field.data)
    return tuple(int(n) for n in reversed(tensor.shape))


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors with their names, mapped: floats of 16 and 32 bits in the model's shape, other types as bytes."""
    reader = open_reader(path)
    for tensor in reader.tensors:
        with warnings.catch_warnings():  # the mapped file can't be written to, and nobody does
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            data = torch.from_numpy(tensor.data)
        yield tensor.name, data.view(tensor_shape(reader, tensor)) if data.is_floating_point() else data

"""Weight files: what they hold, and their tensors. The safetensors and gguf libraries read them."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from ..errors import CheckpointError
from .gguf_files import read_gguf

LFS_POINTER = b"version https://git-lfs"
SAFETENSORS = (".safetensors", ".sft")  # in any case, as ComfyUI lists and reads them
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # as torch.save writes them
NO_PICKLES = "pickles can run code and are not read"
WHOLE = ("diffusion_pytorch_model.safetensors", "model.safetensors")  # a part of a hub folder in one file
SEARCHED = 5_000_000  # bytes of a file's beginning in which a tensor's name is looked for

LAYERS = "_quantization_metadata"  # in a file's header, JSON: which layers are quantised, and how
SCALED_FP8 = "scaled_fp8"  # a tensor whose dtype is that of every quantised weight in the file
# What a quantised layer has beside its weight and bias.
QUANTIZATION = (
    *(".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant"),
    *(".weight_scale_2", ".pre_quant_scale"),
)


def is_quantization(key: str) -> bool:
    """Whether a tensor describes how others are quantised."""
    return key == SCALED_FP8 or key.endswith(QUANTIZATION)


class TensorInfo(NamedTuple):
    """Where a tensor lies and what it is."""

    file: Path
    key: str  # its name in the file
    shape: tuple[int, ...]
    dtype: torch.dtype
    ggml_type: int | None = None  # GGUF: the number of the type that it is stored in


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        CheckpointError: unreadable, no JSON, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"can't be read as JSON ({error}): download it again", path) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"holds a {type(value).__name__}, expected an object: download it again", path)
    return value


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say what is wrong with a weight file that can't be read, and what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except CheckpointError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        try:
            with path.open("rb") as file:
                start, size = file.read(len(LFS_POINTER)), os.path.getsize(path)
        except OSError:
            problem = f"can't be read ({error}): check that it is there and may be read"
        else:
            problem = f"is truncated or broken (the file has {size} bytes; {error}): download it again"
            if start == LFS_POINTER:
                problem = "is a Git LFS pointer, not the file itself: git lfs pull, or download it"
            elif start.startswith(PICKLE_STARTS):
                problem = f"is a pickle with another name; {NO_PICKLES}: take a real .safetensors file"
        raise CheckpointError(problem, path) from error


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata of a safetensors or GGUF file, without reading the tensors.

    Raises:
        CheckpointError: another kind of file, or a broken one.
    """
    from safetensors import safe_open

    if path.suffix.lower() == ".gguf":
        found = read_gguf(path)
        return {name: TensorInfo(path, name, shape, data.dtype, kind) for name, data, shape, kind in found}, {}
    if path.suffix.lower() not in SAFETENSORS:
        kinds = ", ".join(PICKLES)
        raise CheckpointError(f"is no safetensors file: {NO_PICKLES} ({kinds}); take a .safetensors file", path)
    with reading(path), safe_open(str(path), framework="pt") as file:
        tensors = {key: TensorInfo(path, key, tuple(t.shape), t.dtype) for key, t in read_file(path).items()}
        return tensors, file.metadata() or {}


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors or GGUF file, mapped from disk; the default of `open_weights`."""
    from safetensors.torch import load_file

    if path.suffix.lower() == ".gguf":
        return {name: data for name, data, *_ in read_gguf(path)}
    return load_file(path)


def header_names(path: Path, key: str) -> bool:
    """Whether a file's header names a tensor. It is not parsed, which keeps folders full of other models cheap."""
    if path.suffix.lower() not in (*SAFETENSORS, ".gguf") or not os.path.isfile(path):
        return False
    try:
        with path.open("rb") as file:
            length = SEARCHED if path.suffix.lower() == ".gguf" else int.from_bytes(file.read(8), "little")
            return length <= SEARCHED and key.encode() in file.read(length)
    except OSError:
        return False


Reader = Callable[[Path], Mapping[str, torch.Tensor]]  # a file's tensors by their names in it


@dataclasses.dataclass(frozen=True)
class Weights:
    """The tensors of a file or a folder, which are read only when they are asked for."""

    path: Path  # the file or folder, for messages
    tensors: dict[str, TensorInfo]  # by their names in the model
    metadata: dict[str, str]  # of the files' headers
    reader: Reader = read_file  # gives the tensors of one file

    def __getitem__(self, key: str) -> torch.Tensor:
        """One tensor, as a copy."""
        info = self.tensors[key]
        with reading(info.file):
            return read_file(info.file)[info.key].clone()

    def load(self) -> dict[str, torch.Tensor]:
        """All tensors, as the reader gives them; each file is read once."""
        files, found = {}, {}
        for name, info in self.tensors.items():
            with reading(info.file):
                if info.file not in files:
                    files[info.file] = self.reader(info.file)
                found[name] = files[info.file][info.key]
        return found

    def renamed(self, prefix: str, rename: Callable[[str], str]) -> "Weights":
        """The tensors under ``prefix``, or all if there are none, without it and under other names."""
        under = {key: info for key, info in self.tensors.items() if key.startswith(prefix)} or self.tensors
        tensors = {rename(key.removeprefix(prefix)): info for key, info in under.items()}
        return dataclasses.replace(self, tensors=tensors)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: info.shape for key, info in self.tensors.items()}

    @property
    def is_gguf(self) -> bool:
        """Whether the tensors are GGML's, which need the operations of a GGUF loader."""
        return any(info.ggml_type is not None for info in self.tensors.values())

    @property
    def is_quantised(self) -> bool:
        """Whether only ComfyUI can unpack the tensors."""
        return self.is_gguf or any(map(is_quantization, self.tensors))

    def check_plain(self) -> None:
        """Raise a CheckpointError if the tensors are quantised: without their scales they are another model's."""
        if self.is_quantised:
            raise CheckpointError("is quantised, which only ComfyUI unpacks: take an fp16 file here", self.path)

    def check(self, expected: Mapping[str, torch.Tensor]) -> None:
        """Raise a CheckpointError if tensors are missing or one has another shape than expected."""
        missing = [key for key in expected if key not in self.tensors]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(f"lacks {', '.join(missing[:3])}{more}: download it again", self.path)
        for key, tensor in expected.items():
            found = self.tensors[key].shape
            if found != tuple(tensor.shape):
                raise CheckpointError(
                    f"does not fit: {key} has the shape {list(found)}, expected {list(tensor.shape)}: the "
                    "configuration is of another model, or the file of another layout",
                    self.path,
                )

    def assign_to(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        """Make the tensors a module's parameters, of ``dtype``: those that have it stay mapped and cost no memory.

        Args:
            module: on the meta device.

        Raises:
            CheckpointError: a tensor is missing or of another shape, or the file is quantised.
        """
        self.check_plain()
        expected = module.state_dict()
        self.check(expected)
        state = self.load()
        module.load_state_dict({key: state[key].to(dtype) for key in expected}, assign=True)


def open_weights(path: Path, reader: Reader = read_file) -> Weights:
    """The weights of a file, or of a folder that holds them whole or in shards.

    In a folder, the shards of an index are read, or the file that has the hub's name alone, as diffusers does: another
    one beside it may be a copy of an earlier version. Without either, all files are.

    Args:
        reader: how the tensors of one file are read, once its header is found to be right.

    Raises:
        CheckpointError: none found, a shard missing, or a broken file.
    """
    path = Path(path)
    if path.is_dir():
        index = sorted(path.glob("*.safetensors.index.json"))
        whole = [path / name for name in WHOLE if os.path.isfile(path / name)]
        files = _indexed(path, index[0]) if index else whole[:1] or sorted(path.glob("*.safetensors"))
    elif path.is_file():
        files = [path]
    else:
        raise CheckpointError("is not there: download it to this place, or choose another one", path)
    if not files:
        pickles = sorted(file.name for file in path.glob("*") if file.suffix in PICKLES)
        hint = f" (only {pickles[0]}, a pickle, which is not read)" if pickles else ""
        raise CheckpointError(f"holds no .safetensors file{hint}: download one that does", path)
    tensors, metadata = {}, {}
    for file in files:
        found, file_metadata = read_header(file)
        tensors.update(found)
        if LAYERS in metadata and LAYERS in file_metadata:
            file_metadata[LAYERS] = _joined(metadata[LAYERS], file_metadata[LAYERS], file)
        metadata.update(file_metadata)
    return Weights(path, tensors, metadata, reader)


def _joined(before: str, more: str, file: Path) -> str:
    """The quantised layers of several shards, each of which may list its own alone."""
    try:
        first, second = json.loads(before), json.loads(more)
        return json.dumps({**first, **second, "layers": {**first["layers"], **second["layers"]}})
    except (ValueError, TypeError, KeyError):
        raise CheckpointError(f"has {LAYERS} that can't be read: download it again", file) from None


def _indexed(folder: Path, index: Path) -> list[Path]:
    """The shards that an index names, all of them in its folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("has no weight_map: download it again", index)
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if Path(name).name != name or "\\" in name or ":" in name:
            raise CheckpointError(f"names the shard {name!r} outside its folder", index)
        if not os.path.isfile(folder / name):
            raise CheckpointError(f"lacks the shard {name} that {index.name} names: download it", folder)
    return [folder / name for name in names]

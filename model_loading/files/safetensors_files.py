"""Weight files: headers, shards, and tensors read when they are asked for. No host, no model."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ..errors import CheckpointError
from . import gguf_files

LFS_POINTER = b"version https://git-lfs"
# Bytes of a header or a configuration. The largest of a CogVideoX repository is below 1 MB, and as Python's objects
# JSON can take 25 times as much; safetensors itself allows 100 MB.
MAX_HEADER = 5_000_000
MAX_DIMENSIONS = 8
MAX_ELEMENTS = 2**48  # of a tensor, its empty dimensions not counted
MAX_NAME = 1000  # characters of a tensor's name
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # as torch.save writes them

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


if hasattr(torch, "float8_e8m0fnu"):  # scales of newer layouts; torch 2.7
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu

SCALED_FP8 = "scaled_fp8"  # a tensor whose dtype is that of every quantised weight in the file
# What a quantised layer has beside its weight and bias.
QUANTIZATION = (
    *(".scale_weight", ".scale_input", ".weight_scale", ".input_scale", ".comfy_quant"),
    *(".weight_scale_2", ".pre_quant_scale"),
)


def is_quantization(key: str) -> bool:
    """Whether a tensor describes how others are quantised."""
    return key == SCALED_FP8 or key.endswith(QUANTIZATION)


Reader = Callable[[Path], Mapping[str, torch.Tensor]]  # a file's tensors by their names there


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is, as its file's header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    key: str  # under which the file holds it
    ggml_type: int | None = None  # GGUF: the number of the type that it is stored in


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        CheckpointError: unreadable, no JSON, or no object.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise ValueError("it is no file")
        if size > MAX_HEADER:
            raise ValueError(f"it is {size} bytes long, expected at most {MAX_HEADER}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read as JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object: download it again")
    return value


def _read_head(path: Path) -> tuple[bytes, int]:
    """The header of a safetensors file, and the bytes of data behind it."""
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is no safetensors file: pickles ({', '.join(PICKLES)}) can run code and are not read; take a "
            ".safetensors file"
        )
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if start == LFS_POINTER[:8]:
                raise CheckpointError(
                    f"{path} is a Git LFS pointer, not the file itself: git lfs pull, or download it"
                )
            if size < 8 or length > size - 8:
                if start.startswith(PICKLE_STARTS):
                    raise CheckpointError(
                        f"{path} is no safetensors file but a pickle under its name, which can run code and is not "
                        "read: take a real .safetensors file"
                    )
                raise CheckpointError(
                    f"{path} is truncated or no safetensors file: its header should be {length} bytes long, "
                    f"but the file has {size}: download it again"
                )
            if length > MAX_HEADER:
                raise CheckpointError(
                    f"{path}: its header is {length} bytes long, expected at most {MAX_HEADER}: no CogVideoX model "
                    "has one as long"
                )
            return file.read(length), size - 8 - length
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error}): check that it is there and may be read") from error


def _unique(pairs: list[tuple[str, object]]) -> dict:
    """A JSON object's pairs as a dict; two readers of a file could take two values of one name for the true one."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it holds a name twice")
    return found


def _no_constant(name: str):
    raise ValueError(f"it holds {name}")


def _tensor_info(path: Path, key: str, entry) -> tuple[TensorInfo, int, int]:
    """What a header's entry says: the tensor, and where its bytes begin and end."""
    try:
        begin, end = entry["data_offsets"]
        shape, dtype = tuple(entry["shape"]), DTYPES[entry["dtype"]]
        if any(type(n) is not int or n < 0 for n in (begin, end, *shape)):
            raise ValueError(f"offsets {begin}, {end} and shape {list(shape)}, expected whole numbers from 0")
        if len(key) > MAX_NAME or len(shape) > MAX_DIMENSIONS or math.prod(n or 1 for n in shape) > MAX_ELEMENTS:
            raise ValueError(f"a name of {len(key)} characters, the shape {list(shape)}: no model has one like it")
        size = math.prod(shape) * dtype.itemsize
        if end - begin != size:
            raise ValueError(f"offsets {begin}, {end}, but the shape {list(shape)} takes {size} bytes")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: the header's entry for {key} is broken ({error!r}): download it again"
        ) from error
    return TensorInfo(path, shape, dtype, key), begin, end


def _check_layout(path: Path, places: Iterable[tuple[int, int, str]], payload: int) -> None:
    """Raise a CheckpointError unless the tensors, (begin, end, name), fill the file's data without gap or overlap."""
    expected = 0
    for begin, end, key in sorted(places):
        if end > payload:
            raise CheckpointError(
                f"{path} is truncated: {key} ends at byte {end} of {payload} in the file: download it again"
            )
        if begin != expected:
            raise CheckpointError(
                f"{path}: the header's entry for {key} is broken (it begins at byte {begin}, expected {expected}): "
                "download it again"
            )
        expected = end
    if expected != payload:
        raise CheckpointError(
            f"{path} has {payload} bytes of data, but its header names {expected} of them: download it again"
        )


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors and the metadata of a safetensors file, from its header alone.

    What is accepted is what safetensors reads: every tensor as large as its shape, none over another, no gap.

    Raises:
        CheckpointError: no safetensors file, empty, shorter than its header says, or a header that no model has.
    """
    path = Path(path)
    head, payload = _read_head(path)
    try:
        header = json.loads(head.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is no JSON ({error}): download it again") from error
    if not isinstance(header, dict) or not head.startswith(b"{"):
        raise CheckpointError(f"{path}: the header is no JSON object: download it again")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: the header's __metadata__ is broken, expected texts: download it again")
    found = [_tensor_info(path, key, entry) for key, entry in header.items()]
    _check_layout(path, ((begin, end, info.key) for info, begin, end in found), payload)
    return {info.key: info for info, _, _ in found}, metadata


def read_gguf_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a GGUF file; those in blocks have the dtype uint8.

    Raises:
        CheckpointError: no gguf library, or a broken file.
    """
    return {
        name: TensorInfo(path, shape, dtype, name, ggml_type)
        for name, shape, dtype, ggml_type in gguf_files.describe(path)
    }


def header_names(path: Path, key: str) -> bool:
    """Whether a file's header names a tensor, without parsing it: for folders full of other models."""
    if path.suffix == ".gguf":
        return gguf_files.names_tensor(path, key)
    if path.suffix != ".safetensors" or not os.path.isfile(path):
        return False
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return length <= MAX_HEADER and f'{key}"'.encode() in file.read(length)
    except OSError:
        return False


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Name the file in what goes wrong while tensors are read, after its header was found to be right."""
    from safetensors import SafetensorError

    try:
        yield
    except CheckpointError:
        raise
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be read ({error}): load it anew, or download it again") from error


def read_file(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors or GGUF file, mapped from disk; the default of `open_weights`."""
    from safetensors import safe_open

    if path.suffix == ".gguf":
        return dict(gguf_files.read_tensors(path))
    with safe_open(str(path), framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, it is no mapping


class Weights(Mapping):
    """Tensors of one or several files: `load` reads them all, a single one is read as a copy."""

    def __init__(
        self,
        tensors: Mapping[str, TensorInfo],
        metadata: Mapping | None = None,
        name: str = "",
        reader: Reader = read_file,
    ):
        self.tensors = dict(tensors)
        self.metadata = dict(metadata or {})
        self.name = name  # for messages: the file or folder
        self.reader = reader

    def __getitem__(self, key: str) -> torch.Tensor:
        """A tensor, of which the file may be changed afterwards: read on its own, without `reader`."""
        from safetensors import safe_open

        info = self.tensors[key]
        with _reading(info.file):
            if info.ggml_type is not None:
                return read_file(info.file)[info.key].clone()
            with safe_open(str(info.file), framework="pt") as file:
                return file.get_tensor(info.key).clone()

    def __contains__(self, key) -> bool:
        return key in self.tensors  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def _read(self) -> Iterator[tuple[str, torch.Tensor]]:
        by_file: dict[Path, list[str]] = {}
        for key, info in self.tensors.items():
            by_file.setdefault(info.file, []).append(key)
        for path, names in by_file.items():
            with _reading(path):
                found = self.reader(path)
                for name in names:
                    yield name, found[self.tensors[name].key]

    def load(self) -> dict[str, torch.Tensor]:
        """All tensors, read once.

        Raises:
            CheckpointError: names the first tensor that holds NaN or infinity.
        """
        found = {}
        for key, tensor in self._read():
            self._check_finite(key, tensor)
            found[key] = tensor
        return found

    def of(self, tensors: Mapping[str, TensorInfo]) -> "Weights":
        """Others of the same files."""
        return Weights(tensors, self.metadata, self.name, self.reader)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: info.shape for key, info in self.tensors.items()}

    def without_prefix(self, prefix: str) -> "Weights":
        """The tensors under ``prefix``, named without it; all of them if there is none."""
        if not any(key.startswith(prefix) for key in self.tensors):
            return self
        kept = {key[len(prefix) :]: info for key, info in self.tensors.items() if key.startswith(prefix)}
        return self.of(kept)

    def renamed(self, rename: Callable[[str], str]) -> "Weights":
        """The same tensors under other names."""
        return self.of({rename(key): info for key, info in self.tensors.items()})

    @property
    def is_gguf(self) -> bool:
        """Whether the tensors are GGML's, which need the operations of a GGUF loader."""
        return any(info.ggml_type is not None for info in self.tensors.values())

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise a CheckpointError that names the first tensors missing, or of another shape than expected."""
        missing = [key for key in expected if key not in self.tensors]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(f"{self.name} lacks {', '.join(missing[:3])}{more}: download it again")
        for key, shape in expected.items():
            if self.tensors[key].shape != tuple(shape):
                raise CheckpointError(
                    f"{self.name}: {key} has the shape {list(self.tensors[key].shape)}, expected {list(shape)}: the "
                    "configuration is of another model, or the file of another layout"
                )

    def load_for(self, module: torch.nn.Module) -> dict[str, torch.Tensor]:
        """The tensors of exactly a module's parameters, checked: all there, of the right shape, and finite.

        Args:
            module: may lie on the meta device.

        Raises:
            CheckpointError: names the first tensor that is missing, of another shape, or holds NaN or infinity.
        """
        expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        self.check(expected)
        return {key: tensor for key, tensor in self.load().items() if key in expected}

    def assign_to(self, module: torch.nn.Module, dtype: torch.dtype) -> None:
        """Make the tensors a module's parameters, of ``dtype``: those that have it stay mapped and cost no memory.

        Args:
            module: on the meta device.

        Raises:
            CheckpointError: as in `load_for`; or the tensors are quantised, which only a host unpacks.
        """
        if self.is_gguf or any(map(is_quantization, self.tensors)):
            raise CheckpointError(f"{self.name} is quantised, which only ComfyUI unpacks: take an fp16 file here")
        state = self.load_for(module)
        module.load_state_dict({key: tensor.to(dtype) for key, tensor in state.items()}, assign=True)

    def _check_finite(self, key: str, tensor: torch.Tensor) -> None:
        if tensor.is_floating_point() and tensor.element_size() > 1 and not torch.isfinite(tensor.sum()):
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{self.name}: {key} holds NaN or infinity: download it again")


def open_weights(path: Path, reader: Reader = read_file) -> Weights:
    """The weights of a file, or of a folder in which they lie whole or in shards.

    Args:
        reader: how the tensors of one file are read, once its header is found to be right.

    Raises:
        CheckpointError: none found, a shard missing, or a broken file.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return Weights(read_gguf_header(path), name=str(path), reader=reader)
    if path.is_file():
        tensors, metadata = read_header(path)
        return Weights(tensors, metadata, str(path), reader)
    if path.suffix in (".safetensors", ".gguf", *PICKLES) and not path.exists():
        raise CheckpointError(f"{path} is not there: refresh, or download it")
    index = sorted(path.glob("*.safetensors.index.json"))
    files = _indexed(path, index[0]) if index else sorted(path.glob("*.safetensors"))
    if not files:
        pickles = sorted(file.name for file in path.glob("*") if file.suffix in PICKLES)
        hint = f" (only {pickles[0]}, a pickle, which is not read)" if pickles else ""
        raise CheckpointError(f"{path} holds no .safetensors file{hint}: download one that does")
    tensors, metadata = {}, {}
    for file in files:
        found, file_metadata = read_header(file)
        tensors.update(found)
        metadata.update(file_metadata)
    return Weights(tensors, metadata, str(path), reader)


def _indexed(folder: Path, index: Path) -> list[Path]:
    """The shards that an index names, all of them in its folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map: download it again")
    if not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index} names a shard by no text: download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if Path(name).name != name or "\\" in name or ":" in name:
            raise CheckpointError(f"{index} names the shard {name!r} outside its folder")
        if Path(name).suffix != ".safetensors":
            raise CheckpointError(
                f"{index} names the shard {name!r}, which is no safetensors file: pickles can run code and are not "
                "read; download a repository with .safetensors shards"
            )
        if not os.path.isfile(folder / name):
            raise CheckpointError(f"{folder} lacks the shard {name} that {index.name} names: download it")
    return [folder / name for name in names]

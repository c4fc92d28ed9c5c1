"""Weight files: headers, shards, and tensors mapped from disk when they are asked for. No host, no model."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch

from . import gguf_files
from .config import CheckpointError

LFS_POINTER = b"version https://git-lfs"
MAX_HEADER = 100_000_000  # bytes, safetensors' own limit

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
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} can't be read as JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, expected an object: download it again")
    return value


def _tensor_info(path: Path, key: str, entry, payload: int) -> TensorInfo:
    try:
        begin, end = (int(n) for n in entry["data_offsets"])
        shape = tuple(int(n) for n in entry["shape"])
        dtype = DTYPES[entry["dtype"]]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the header's entry for {key} is broken ({error!r}): download it again"
        ) from error
    if not 0 <= begin <= end:
        raise CheckpointError(
            f"{path}: the header's entry for {key} is broken (offsets {begin}, {end}): download it again"
        )
    if end > payload:
        raise CheckpointError(
            f"{path} is truncated: {key} ends at byte {end} of the data, but the file has {payload}: download it again"
        )
    return TensorInfo(path, shape, dtype, key)


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict]:
    """The tensors and the metadata of a safetensors file, from its header alone.

    Raises:
        CheckpointError: no safetensors file, empty, or shorter than its header says.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is no safetensors file: pickles (.pt, .bin, .ckpt) can run code and are not read"
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
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise CheckpointError(
                    f"{path} is truncated or no safetensors file: its header should be {length} bytes long, "
                    f"but the file has {size}: download it again"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} can't be read ({error}): check that it is there and may be read") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: the header is no JSON ({error}): download it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is no JSON object: download it again")
    metadata = header.pop("__metadata__", None) or {}
    payload = size - 8 - length
    return {key: _tensor_info(path, key, entry, payload) for key, entry in header.items()}, metadata


def read_gguf_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of a GGUF file; those in blocks have the dtype uint8.

    Raises:
        CheckpointError: no gguf library, or a broken file.
    """
    reader = gguf_files.open_reader(path)
    found = {}
    for tensor in reader.tensors:
        shape, dtype = gguf_files.tensor_shape(reader, tensor), gguf_files.stored_dtype(tensor)
        found[tensor.name] = TensorInfo(path, shape, dtype, tensor.name, int(tensor.tensor_type))
    return found


def header_names(path: Path, key: str) -> bool:
    """Whether a file's header names a tensor, without parsing it: for folders full of other models."""
    if path.suffix == ".gguf":
        return gguf_files.names_tensor(path, key)
    if path.suffix != ".safetensors":
        return False
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            return length <= MAX_HEADER and f'{key}"'.encode() in file.read(length)
    except OSError:
        return False


class Weights(Mapping):
    """Tensors of one or several files, mapped from disk when they are asked for."""

    def __init__(self, tensors: Mapping[str, TensorInfo], metadata: Mapping | None = None, name: str = ""):
        self.tensors = dict(tensors)
        self.metadata = dict(metadata or {})
        self.name = name  # for messages: the file or folder

    def __getitem__(self, key: str) -> torch.Tensor:
        return next(self._read([key]))[1]

    def __contains__(self, key) -> bool:
        return key in self.tensors  # Mapping's own would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def _read(self, keys: Iterable[str]) -> Iterator[tuple[str, torch.Tensor]]:
        from safetensors import safe_open

        by_file: dict[Path, list[str]] = {}
        for key in keys:
            by_file.setdefault(self.tensors[key].file, []).append(key)
        for path, names in by_file.items():
            if path.suffix == ".gguf":
                by_key = {self.tensors[name].key: name for name in names}
                yield from ((by_key[key], tensor) for key, tensor in gguf_files.read_tensors(path, by_key))
                continue
            with safe_open(str(path), framework="pt") as file:
                for name in names:
                    yield name, file.get_tensor(self.tensors[name].key)

    def load(self) -> dict[str, torch.Tensor]:
        """All tensors, mapped."""
        return dict(self._read(self.tensors))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {key: info.shape for key, info in self.tensors.items()}

    def without_prefix(self, prefix: str) -> "Weights":
        """The tensors under ``prefix``, named without it; all of them if there is none."""
        if not any(key.startswith(prefix) for key in self.tensors):
            return self
        kept = {key[len(prefix) :]: info for key, info in self.tensors.items() if key.startswith(prefix)}
        return Weights(kept, self.metadata, self.name)

    def renamed(self, rename: Callable[[str], str]) -> "Weights":
        """The same tensors under other names."""
        return Weights({rename(key): info for key, info in self.tensors.items()}, self.metadata, self.name)

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
        """The mapped tensors of exactly a module's parameters, checked: all there, of the right shape, and finite.

        Args:
            module: may lie on the meta device.

        Raises:
            CheckpointError: names the first tensor that is missing, of another shape, or holds NaN or infinity.
        """
        expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        self.check(expected)
        found = {}
        for key, tensor in self._read(self.tensors):  # once: a file of gigabytes is read from disk here
            self._check_finite(key, tensor)
            if key in expected:
                found[key] = tensor
        return found

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

    def check_finite(self) -> None:
        """Raise a CheckpointError that names the first tensor with NaN or infinity."""
        for key, tensor in self._read(self.tensors):
            self._check_finite(key, tensor)

    def _check_finite(self, key: str, tensor: torch.Tensor) -> None:
        if tensor.is_floating_point() and tensor.element_size() > 1 and not torch.isfinite(tensor.sum()):
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{self.name}: {key} holds NaN or infinity: download it again")


def open_weights(path: Path) -> Weights:
    """The weights of a file, or of a folder in which they lie whole or in shards.

    Raises:
        CheckpointError: none found, a shard missing, or a broken file.
    """
    path = Path(path)
    if path.is_file() and path.suffix == ".gguf":
        return Weights(read_gguf_header(path), name=str(path))
    if path.is_file():
        tensors, metadata = read_header(path)
        return Weights(tensors, metadata, str(path))
    index = sorted(path.glob("*.safetensors.index.json"))
    if not index:
        files = sorted(path.glob("*.safetensors"))
        if not files:
            pickles = sorted(p.name for p in path.glob("*.bin"))
            hint = f" (only {pickles[0]}, a pickle, which is not read)" if pickles else ""
            raise CheckpointError(f"{path} holds no .safetensors file{hint}: download one that does")
    else:
        weight_map = read_json(index[0]).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index[0]} has no weight_map: download it again")
        files = []
        for name in sorted(set(map(str, weight_map.values()))):
            if Path(name).name != name:
                raise CheckpointError(f"{index[0]} names the shard {name!r} outside its folder")
            if not (path / name).is_file():
                raise CheckpointError(f"{path} lacks the shard {name} that {index[0].name} names: download it")
            files.append(path / name)
    tensors, metadata = {}, {}
    for file in files:
        found, file_metadata = read_header(file)
        tensors.update(found)
        metadata.update(file_metadata)
    return Weights(tensors, metadata, str(path))

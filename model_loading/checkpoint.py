"""Find models, read their headers and shards, and say what they are. No host and, but for torch's own types, no torch.

A model is a folder in hub layout (``transformer/``, ``vae/``, ``text_encoder/``, ``tokenizer/``, ``scheduler/``) or a
single safetensors file. What it is comes from its configuration and its shapes, never from its name.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ..sampling.schedule import NoiseSchedule
from .config import CheckpointError, TransformerConfig, detect
from .vae import VAEConfig

MODEL_FOLDERS = ("CogVideoX_Fun", "Fun_Models", "VideoX_Fun", "CogVideo")
HUB_EXAMPLE = "alibaba-pai/CogVideoX-Fun-V1.1-2b-InP"
SAVED_CONFIG = "cogvideox_fun_config"  # a uint8 tensor of JSON that ModelSave carries
SAVED_PREFIX = "model.diffusion_model."  # of ComfyUI's ModelSave
MAX_HEADER = 100_000_000  # bytes, safetensors' own limit
MAX_DEPTH = 3  # folders below a models folder in which a model is looked for

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


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies and what it is, as its file's header says."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    key: str  # under which the file holds it


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
        raise CheckpointError(f"{path}: the header's entry for {key} is broken (offsets {begin}, {end})")
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
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise CheckpointError(
                    f"{path} is truncated or no safetensors file: its header should be {length} bytes long, "
                    f"but the file has {size}: download it again"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: the header is no JSON ({error}): download it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is no JSON object: download it again")
    metadata = header.pop("__metadata__", None) or {}
    payload = size - 8 - length
    return {key: _tensor_info(path, key, entry, payload) for key, entry in header.items()}, metadata


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

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Raise a CheckpointError that names the first tensors missing, or of another shape than expected."""
        missing = [key for key in expected if key not in self.tensors]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(f"{self.name} lacks {', '.join(missing[:3])}{more}: download it again")
        for key, shape in expected.items():
            if self.tensors[key].shape != tuple(shape):
                raise CheckpointError(
                    f"{self.name}: {key} has the shape {list(self.tensors[key].shape)}, expected {list(shape)}"
                )

    def check_finite(self) -> None:
        """Raise a CheckpointError that names the first tensor with NaN or infinity."""
        for key, tensor in self._read(self.tensors):
            if tensor.is_floating_point() and tensor.element_size() > 1 and not torch.isfinite(tensor.sum()):
                if not torch.isfinite(tensor).all():
                    raise CheckpointError(f"{self.name}: {key} holds NaN or infinity: download it again")


def open_weights(path: Path) -> Weights:
    """The weights of a file, or of a folder in which they lie whole or in shards.

    Raises:
        CheckpointError: none found, a shard missing, or a broken file.
    """
    path = Path(path)
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


def is_hub_folder(path: Path) -> bool:
    return (path / "transformer" / "config.json").is_file()


def is_transformer_file(path: Path) -> bool:
    """Whether a file's header is that of a CogVideoX transformer, whatever its name."""
    try:
        tensors, _ = read_header(path)
    except CheckpointError:
        return False
    return any(key.endswith("patch_embed.text_proj.weight") for key in tensors)


def is_vae_file(path: Path) -> bool:
    """Whether a file's header is that of a CogVideoX VAE, whatever its name."""
    try:
        tensors, _ = read_header(path)
    except CheckpointError:
        return False
    return "decoder.mid_block.resnets.0.norm1.conv_y.conv.weight" in tensors


def hub_folders(root: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """Folders in hub layout below ``root``, symbolic links followed."""
    try:
        children = sorted(child for child in root.iterdir() if child.is_dir())
    except OSError:
        return
    for child in children:
        if is_hub_folder(child):
            yield child
        elif depth > 1:
            yield from hub_folders(child, depth - 1)


def find_models(hub_roots: Iterable[Path], files: Mapping[str, Path]) -> dict[str, Path]:
    """What a loader lists: hub folders by their path below their root, then single files by their name.

    Args:
        hub_roots: folders of repositories; where two hold the same name, the first wins.
        files: candidates for single-file transformers, name -> path.
    """
    found: dict[str, Path] = {}
    for root in hub_roots:
        for folder in hub_folders(Path(root)):
            found.setdefault(folder.relative_to(root).as_posix(), folder)
    for name, path in files.items():
        if Path(path).suffix == ".safetensors" and is_transformer_file(Path(path)):
            found.setdefault(name, Path(path))
    return found


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on disk, opened: its configuration, and its parts where it has them."""

    path: Path
    config: TransformerConfig
    weights: Weights
    schedule: NoiseSchedule
    scale_factor: float
    vae: Path | None = None
    text_encoder: Path | None = None
    tokenizer: Path | None = None

    @property
    def saved_config(self) -> dict:
        """What a single file needs to be opened again."""
        return {
            "transformer": dataclasses.asdict(self.config),
            "scheduler": dataclasses.asdict(self.schedule),
            "scale_factor": self.scale_factor,
        }


def encode_config(config: dict) -> torch.Tensor:
    """A configuration as the uint8 tensor that travels in a saved file."""
    return torch.tensor(list(json.dumps(config).encode()), dtype=torch.uint8)


def decode_config(tensor: torch.Tensor, name: str) -> dict:
    """The configuration in a saved file.

    Raises:
        CheckpointError: the tensor holds no such configuration.
    """
    try:
        config = json.loads(bytes(tensor.flatten().to(torch.uint8).tolist()))
        if not isinstance(config["transformer"], dict) or not isinstance(config["scheduler"], dict):
            raise ValueError("no transformer or scheduler")
        config["scale_factor"] = float(config["scale_factor"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name}: the saved configuration can't be read ({error!r})") from error
    return config


def tokenizer_beside(text_encoder: Path) -> Path | None:
    """The tokenizer folder of the model that a text_encoder folder belongs to, if it has one."""
    folder = text_encoder.parent / "tokenizer"
    return folder if any((folder / name).is_file() for name in ("spiece.model", "tokenizer.json")) else None


def _open_folder(folder: Path) -> Checkpoint:
    weights = open_weights(folder / "transformer").without_prefix(SAVED_PREFIX)
    config = detect(weights.shapes, read_json(folder / "transformer" / "config.json"))
    schedule = config.default_schedule
    if (folder / "scheduler" / "scheduler_config.json").is_file():
        schedule = NoiseSchedule.from_config(read_json(folder / "scheduler" / "scheduler_config.json"), schedule)
    scale_factor = config.default_scale_factor
    has_vae = (folder / "vae" / "config.json").is_file()
    if has_vae:
        scale_factor = VAEConfig.from_dict(read_json(folder / "vae" / "config.json")).scaling_factor
    has_text = (folder / "text_encoder" / "config.json").is_file()
    return Checkpoint(
        folder,
        config,
        weights,
        schedule,
        scale_factor,
        vae=folder / "vae" if has_vae else None,
        text_encoder=folder / "text_encoder" if has_text else None,
        tokenizer=tokenizer_beside(folder / "text_encoder"),
    )


def _open_file(path: Path) -> Checkpoint:
    weights = open_weights(path)
    saved = next((key for key in weights if key.endswith(SAVED_CONFIG)), None)
    written = decode_config(weights[saved], str(path)) if saved else None
    weights = weights.without_prefix(SAVED_PREFIX)
    weights.tensors.pop(SAVED_CONFIG, None)
    config = detect(weights.shapes, written["transformer"] if written else None)
    if written is None:
        return Checkpoint(path, config, weights, config.default_schedule, config.default_scale_factor)
    try:
        schedule = NoiseSchedule(**written["scheduler"])
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the saved configuration can't be read ({error})") from error
    return Checkpoint(path, config, weights, schedule, written["scale_factor"])


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Turn errors about a configuration or weights into CheckpointErrors that name the file or folder."""
    try:
        yield
    except CheckpointError as error:
        if str(path) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """Open a model folder in hub layout or a single file, also one that ComfyUI's ModelSave wrote.

    Reads headers and configurations only; weights are mapped when they are asked for.

    Raises:
        CheckpointError: what is wrong, where, and what to do.
    """
    path = Path(path)
    with naming(path):
        return _open_folder(path) if path.is_dir() else _open_file(path)


def load_vae_config(path: Path, weights: Weights) -> VAEConfig:
    """The configuration of a VAE: a folder's own, else what the shapes say and the published values.

    Raises:
        CheckpointError: no CogVideoX VAE.
    """
    if path.is_dir() and (path / "config.json").is_file():
        with naming(path):
            return VAEConfig.from_dict(read_json(path / "config.json"))
    try:
        widths = tuple(
            weights.tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.conv.weight"].shape[0] for i in range(4)
        )
        latent_channels = weights.tensors["decoder.conv_in.conv.weight"].shape[1]
        layers = 1 + max(int(k.split(".")[4]) for k in weights if k.startswith("encoder.down_blocks.0.resnets."))
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is no CogVideoX VAE: {error} is missing") from error
    config = VAEConfig(block_out_channels=widths, latent_channels=latent_channels, layers_per_block=layers)
    if any(width % config.norm_num_groups for width in widths):
        raise CheckpointError(
            f"{path}: the VAE is {list(widths)} channels wide, which a file without configuration can't be: load its "
            "folder with config.json"
        )
    return config


def no_model_message(name: str, what: str, found: Iterable[str], searched: Iterable[Path]) -> str:
    """What to say when a model can't be found: what there is, every folder looked in, and what to put there.

    Args:
        name: what was asked for, or "" for any.
        what: "model", "text encoder" or "VAE".
    """
    listed = ", ".join(found)
    problem = f"the {what} {name} is not among those found ({listed})" if listed else f"no CogVideoX-Fun {what} found"
    folders = ", ".join(dict.fromkeys(str(folder) for folder in searched))
    return (
        f"{problem}. Looked for hub folders and single files in {folders}. Download a repository, for example "
        f"{HUB_EXAMPLE} from Hugging Face, into one of them and refresh"
    )

"""Find models and say what they are. No host.

A model is a folder in hub layout (``transformer/``, ``vae/``, ``text_encoder/``, ``tokenizer/``, ``scheduler/``) or a
single safetensors file. What it is comes from its configuration and its shapes, never from its name.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ...sampling.preview import PUBLISHED, PreviewFactors
from ...sampling.schedule import NoiseSchedule
from ..errors import CheckpointError, listed, readable, shown
from ..networks.config import TransformerConfig, detect, hub_name
from ..networks.vae import VAEConfig
from .safetensors_files import MAX_HEADER, Reader, Weights, header_names, open_weights, read_file, read_json

MODEL_FOLDERS = ("CogVideoX_Fun", "Fun_Models", "VideoX_Fun", "CogVideo")
HUB_EXAMPLE = "alibaba-pai/CogVideoX-Fun-V1.1-2b-InP"
SAVED_CONFIG = "cogvideox_fun_config"  # a uint8 tensor of JSON that ModelSave carries
SAVED_PREFIX = "model.diffusion_model."  # of ComfyUI's ModelSave
MAX_DEPTH = 3  # folders below a models folder in which a model is looked for
SCALES = 1e-4, 1e4  # between which a VAE's scaling factor lies; the published ones are 0.7 and 1.15
MAX_SCHEDULE = 1e6  # of every number of a noise schedule; the published ones reach 1000
MAX_VAE_LAYERS = 16  # a block; the published VAE has 3


def is_hub_folder(path: Path) -> bool:
    """Whether a folder is a CogVideoX model in hub layout, by its transformer's configuration or weights."""
    config = path / "transformer" / "config.json"
    if not os.path.isfile(config):  # which is False, not an error, where it may not be read
        return False
    try:
        class_name = read_json(config).get("_class_name")
    except CheckpointError:
        return True  # listed, so that loading it says what is broken
    if class_name is not None:
        return class_name == "CogVideoXTransformer3DModel"
    return any(is_transformer_file(file) for file in sorted((path / "transformer").glob("*.safetensors")))


def is_transformer_file(path: Path) -> bool:
    """Whether a file's header is that of a CogVideoX transformer, whatever its name."""
    return header_names(path, "patch_embed.text_proj.weight")


def is_vae_file(path: Path) -> bool:
    """Whether a file's header is that of a CogVideoX VAE, whatever its name."""
    return header_names(path, "decoder.mid_block.resnets.0.norm1.conv_y.conv.weight")


def hub_folders(root: Path, depth: int = MAX_DEPTH, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """Folders in hub layout below ``root``, symbolic links followed, but not back into a folder that holds them.

    Args:
        above: the real paths of the folders that ``root`` was reached through.
    """
    above = (*above, os.path.realpath(root))
    try:
        children = sorted(root.iterdir())
    except OSError:
        return
    for child in children:
        if not os.path.isdir(child):  # which is False, not an error, where it may not be read
            continue
        if is_hub_folder(child):
            yield child
        elif depth > 1 and os.path.realpath(child) not in above:
            yield from hub_folders(child, depth - 1, above)


def find_models(hub_roots: Iterable[Path], files: Mapping[str, Path]) -> dict[str, Path]:
    """What a loader lists: hub folders by their path below their root, then single files by their name.

    Args:
        hub_roots: folders of repositories; where two hold the same name, the first wins.
        files: candidates for single-file transformers, name -> path.
    """
    found: dict[str, Path] = {}
    for root in map(Path, hub_roots):
        if is_hub_folder(root):  # the folder of models is itself a link to one
            found.setdefault(root.name, root)
            continue
        for folder in hub_folders(root):
            found.setdefault(folder.relative_to(root).as_posix(), folder)
    for name, path in files.items():
        if is_transformer_file(Path(path)):
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
    image_scale: float  # of the first frame's latent in CogVideoX's own image-to-video models
    preview: PreviewFactors = PUBLISHED
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
            "image_scale": self.image_scale,
            **self.preview.to_config(),
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
        config["scale_factor"] = check_scale(config["scale_factor"])
        config["image_scale"] = check_scale(config.get("image_scale", config["scale_factor"]))
        config["preview"] = PreviewFactors.from_config(config) or PUBLISHED
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{name}: the saved configuration can't be read ({error!r})") from error
    return config


def check_scale(value: float) -> float:
    """What latents are multiplied by, as a float. Raises a ValueError unless it is a number that can be."""
    if type(value) not in (int, float) or not SCALES[0] <= value <= SCALES[1]:
        raise ValueError(f"a scaling factor is {value!r}, expected a number from {SCALES[0]} to {SCALES[1]}")
    return float(value)


def check_schedule(schedule: NoiseSchedule) -> NoiseSchedule:
    """Raise a ValueError unless a schedule's noise grows from step to step."""
    numbers = [value for value in dataclasses.astuple(schedule) if type(value) in (int, float)]
    if all(abs(value) <= MAX_SCHEDULE for value in numbers) and 0 <= schedule.steps_offset < schedule.num_timesteps:
        alphas = schedule.alphas_cumprod()
        if torch.isfinite(alphas).all() and alphas[0] > 0 and (alphas.diff() <= 0).all():
            return schedule
    raise ValueError(f"no noise schedule can be made of {schedule}")


def tokenizer_beside(text_encoder: Path) -> Path | None:
    """The tokenizer folder of the model that a text_encoder folder belongs to, if it has one."""
    folder = text_encoder.parent / "tokenizer"
    return folder if any((folder / name).is_file() for name in ("spiece.model", "tokenizer.json")) else None


def _open_folder(folder: Path, reader: Reader) -> Checkpoint:
    weights = open_weights(folder / "transformer", reader).without_prefix(SAVED_PREFIX).renamed(hub_name)
    with naming(folder / "transformer") as part:
        config = detect(weights.shapes, read_json(part / "config.json"))
    schedule = config.default_schedule
    with naming(folder / "scheduler" / "scheduler_config.json") as file:
        if file.is_file():
            schedule = check_schedule(NoiseSchedule.from_config(read_json(file), schedule))
    scale_factor, image_scale, preview = config.default_scale_factor, config.default_image_scale, PUBLISHED
    with naming(folder / "vae" / "config.json") as file:
        has_vae = file.is_file()
        if has_vae:
            values = read_json(file)
            vae = VAEConfig.from_dict(values)
            scale_factor, image_scale = check_scale(vae.scaling_factor), check_scale(vae.image_scale)
            preview = PreviewFactors.from_config(values) or PUBLISHED
    has_text = (folder / "text_encoder" / "config.json").is_file()
    return Checkpoint(
        folder,
        config,
        weights,
        schedule,
        scale_factor,
        image_scale,
        preview,
        vae=folder / "vae" if has_vae else None,
        text_encoder=folder / "text_encoder" if has_text else None,
        tokenizer=tokenizer_beside(folder / "text_encoder"),
    )


def _open_file(path: Path, reader: Reader) -> Checkpoint:
    weights = open_weights(path, reader)
    saved = next((key for key in weights if key.endswith(SAVED_CONFIG)), None)
    if saved and math.prod(weights.tensors[saved].shape) > MAX_HEADER:
        raise CheckpointError(f"{path}: the saved configuration is {weights.tensors[saved].shape} long, which none is")
    written = decode_config(weights[saved], str(path)) if saved else None
    weights = weights.without_prefix(SAVED_PREFIX).renamed(hub_name)
    weights.tensors.pop(SAVED_CONFIG, None)
    config = detect(weights.shapes, written["transformer"] if written else None)
    if written is None:
        scales = config.default_scale_factor, config.default_image_scale
        return Checkpoint(path, config, weights, config.default_schedule, *scales)
    try:
        schedule = check_schedule(NoiseSchedule(**written["scheduler"]))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: the saved configuration can't be read ({error})") from error
    scales = written["scale_factor"], written["image_scale"]
    return Checkpoint(path, config, weights, schedule, *scales, written["preview"])


@contextlib.contextmanager
def naming(path: Path) -> Iterator[Path]:
    """Turn errors about a configuration or weights into CheckpointErrors that name the file or folder, ``path``."""
    try:
        yield path
    except RecursionError as error:
        raise CheckpointError(f"{path} is nested too deeply: download it again") from error
    except (ValueError, OverflowError) as error:
        if isinstance(error, CheckpointError) and readable(str(path)) in str(error):
            raise
        raise CheckpointError(f"{path}: {error}") from error


def open_checkpoint(path: str | os.PathLike, reader: Reader = read_file) -> Checkpoint:
    """Open a model folder in hub layout or a single file, also one that ComfyUI's ModelSave wrote.

    Reads headers and configurations only; weights are read when they are asked for.

    Args:
        reader: how they are read, see `weights.open_weights`.

    Raises:
        CheckpointError: what is wrong, where, and what to do.
    """
    path = Path(path)
    with naming(path):
        return _open_folder(path, reader) if path.is_dir() else _open_file(path, reader)


def load_vae_config(path: Path, weights: Weights) -> VAEConfig:
    """The configuration of a VAE: a folder's own, else what the shapes say and the published values.

    Raises:
        CheckpointError: no CogVideoX VAE.
    """
    written = None
    if path.is_dir() and (path / "config.json").is_file():
        with naming(path / "config.json") as file:
            written = VAEConfig.from_dict(read_json(file))
    try:
        shapes = {
            name: weights.tensors[f"{name}.conv.weight"].shape for name in ("encoder.conv_in", "decoder.conv_in")
        }
        shapes["decoder.conv_out"] = weights.tensors["decoder.conv_out.conv.weight"].shape
        widths = tuple(
            weights.tensors[f"encoder.down_blocks.{i}.resnets.0.conv1.conv.weight"].shape[0] for i in range(4)
        )
        latent_channels = shapes["decoder.conv_in"][1]
        layers = len({k.split(".")[4] for k in weights if k.startswith("encoder.down_blocks.0.resnets.")})
        shaped = VAEConfig(
            shapes["encoder.conv_in"][1], shapes["decoder.conv_out"][0], widths, latent_channels, layers
        )
    except (KeyError, IndexError) as error:
        raise CheckpointError(f"{path} is no CogVideoX VAE: {error} is missing") from error
    if not all(widths) or not latent_channels or layers > MAX_VAE_LAYERS:
        raise CheckpointError(
            f"{path} is no CogVideoX VAE: {list(widths)} channels, {latent_channels} of the latent, {layers} layers"
        )
    config = written or shaped
    for name in ("in_channels", "out_channels", "block_out_channels", "latent_channels", "layers_per_block"):
        if getattr(config, name) != getattr(shaped, name):
            raise CheckpointError(
                f"{path}: the configuration says {name} = {getattr(config, name)!r}, but the weights' shapes say "
                f"{getattr(shaped, name)!r}: the configuration belongs to another model"
            )
    if any(width % config.norm_num_groups for width in widths):
        raise CheckpointError(
            f"{path}: the VAE is {list(widths)} channels wide, "
            + (
                f"which {config.norm_num_groups} groups of its configuration do not divide"
                if written
                else "which a file without configuration can't be: load its folder with config.json"
            )
        )
    return config


def no_model_message(
    name: str, what: str, found: Iterable[str], folders: Iterable[Path], file_folders: Iterable[Path]
) -> str:
    """What to say when a model can't be found: what there is, every folder looked in, and what to put there.

    Args:
        name: what was asked for; "" or None for nothing.
        what: "model", "text encoder" or "VAE".
        folders: where repositories are looked for.
        file_folders: where single files are looked for.
    """
    names = listed(found)
    if not names:
        problem = f"no CogVideoX-Fun {what} found"
    elif not name:
        problem = f"no {what} is chosen, expected one of those found ({names})"
    else:
        problem = f"the {what} {shown(name)} is not among those found ({names})"
    return (
        f"{problem}. Download a whole repository, for example {HUB_EXAMPLE} of Hugging Face, into one of the folders "
        f"{', '.join(dict.fromkeys(map(str, folders)))}, or a single safetensors file into one of "
        f"{', '.join(dict.fromkeys(map(str, file_folders)))}; then refresh"
    )

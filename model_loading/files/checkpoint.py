"""Find models and say what they are.

A model is a folder in hub layout (``transformer/``, ``vae/``, ``text_encoder/``, ``tokenizer/``, ``scheduler/``) or a
single safetensors file. What it is comes from its configuration and its shapes, never from its name.

A folder can have a LoRA in place of the transformer's weights. Its ``transformer/config.json`` then names in `BASE`
the model folder that the LoRA was trained on. The LoRA is merged into that folder's weights. The VAE, T5 and schedule
come from there, too.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch

from ...sampling.preview import PUBLISHED, PreviewFactors
from ...sampling.schedule import NoiseSchedule
from ..errors import CheckpointError, naming, shown
from ..networks.config import TransformerConfig, VAEConfig
from .detect import detect, hub_name
from .merged import merge
from .safetensors_files import Reader, Weights, header_names, open_weights, read_file, read_json

MODEL_FOLDERS = ("CogVideoX_Fun", "Fun_Models", "VideoX_Fun", "CogVideo")
SAVED_CONFIG = "cogvideox_fun_config"  # a uint8 tensor of JSON that ModelSave carries
SAVED_PREFIX = "model.diffusion_model."  # of ComfyUI's ModelSave
TINY_DECODER = "tiny_decoder"  # the folder of a small decoder in a model folder: see `networks.tiny_decoder`
BASE = "lora_base"  # in a transformer's configuration: another model folder, relative to its own
FREE_OF_BASE = ("in_channels", "add_noise_in_inpaint_model")  # what may differ from the base's configuration
MAX_DEPTH = 3  # folders below a models folder in which a model is looked for


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
    """Folders in hub layout below ``root``, also those inside others. Symbolic links are followed, but not back into a
    folder that holds them.

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
        if depth > 1 and os.path.realpath(child) not in above:
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
    tiny_decoder: Path | None = None  # the file of the folder's own small decoder
    base: Path | None = None  # the folder that has the parts and most weights, if it is another one

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


def decode_config(tensor: torch.Tensor) -> dict:
    """The configuration in a saved file: `Checkpoint.saved_config`, with ``schedule`` and ``preview`` as objects.

    Raises:
        ValueError: the tensor holds no such configuration.
    """
    try:
        config = json.loads(bytes(tensor.to(torch.uint8).tolist()))  # GGUF holds it as floats
        schedule = NoiseSchedule(**config["scheduler"])
        preview = PreviewFactors.from_config(config)
        return {"image_scale": config["scale_factor"], **config, "schedule": schedule, "preview": preview}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the saved configuration can't be read ({error!r}): save the model again") from error


def tokenizer_beside(text_encoder: Path) -> Path | None:
    """The tokenizer folder of the model that a text_encoder folder belongs to, if it has one."""
    folder = text_encoder.parent / "tokenizer"
    return folder if any((folder / name).is_file() for name in ("spiece.model", "tokenizer.json")) else None


def tiny_decoder_of(folder: Path) -> Path | None:
    """The file of the small decoder that a model folder has for its own latents, if it has one."""
    return next(iter(sorted((folder / TINY_DECODER).glob("*.safetensors"))), None)


def base_of(folder: Path) -> Path | None:
    """The model folder whose weights a model folder changes, or None if it has weights of its own.

    Raises:
        CheckpointError: the configuration can't be read, or names no such folder.
    """
    named = read_json(folder / "transformer" / "config.json").get(BASE)
    if named is None:
        return None
    if not isinstance(named, str) or os.path.isabs(named):
        raise CheckpointError(f"has {BASE} = {shown(named)}, expected a folder relative to it, such as '..'", folder)
    base = Path(os.path.realpath(folder / named))
    if not is_hub_folder(base):
        raise CheckpointError(
            f"has a LoRA of the model in {shown(named)}, and {base} is no model folder: keep both as they were "
            "downloaded",
            folder,
        )
    return base


def _open_merged(folder: Path, base: Path, reader: Reader) -> Checkpoint:
    """A folder with a LoRA, as one model with its base."""
    if base_of(base) is not None:
        raise CheckpointError(
            f"has a LoRA of {base}, which has itself only a LoRA: set {BASE} to a whole model", folder
        )
    opened, values = _open_folder(base, reader), read_json(folder / "transformer" / "config.json")
    with naming(folder / "transformer"):
        expected = dataclasses.asdict(TransformerConfig.from_dict(values))
    for name, found in dataclasses.asdict(opened.config).items():
        if name not in FREE_OF_BASE and found != expected[name]:
            raise CheckpointError(
                f"has a LoRA of a model with {name} = {expected[name]!r}, but {base} has {found!r}: put the model "
                "that it was trained on there",
                folder,
            )
    weights = merge(opened.weights, folder / "transformer")
    with naming(folder / "transformer"):
        config = detect(weights.shapes, values)
    return dataclasses.replace(opened, path=folder, config=config, weights=weights, base=base)


def _open_folder(folder: Path, reader: Reader) -> Checkpoint:
    base = base_of(folder)
    if base is not None:
        return _open_merged(folder, base, reader)
    weights = open_weights(folder / "transformer", reader).renamed(SAVED_PREFIX, hub_name)
    with naming(folder / "transformer"):
        config = detect(weights.shapes, read_json(folder / "transformer" / "config.json"))
    found = {}
    scheduler, vae = folder / "scheduler" / "scheduler_config.json", folder / "vae" / "config.json"
    if scheduler.is_file():
        with naming(scheduler):
            found["schedule"] = NoiseSchedule.from_config(read_json(scheduler), config.default_schedule)
    if vae.is_file():
        with naming(vae):
            values = read_json(vae)
            scales = VAEConfig.from_dict(values)
            found["preview"] = PreviewFactors.from_config(values)
        found |= {"vae": vae.parent, "scale_factor": scales.scaling_factor, "image_scale": scales.image_scale}
    if (folder / "text_encoder" / "config.json").is_file():
        found["text_encoder"] = folder / "text_encoder"
    found["tiny_decoder"] = tiny_decoder_of(folder)
    return _checkpoint(folder, config, weights, tokenizer=tokenizer_beside(folder / "text_encoder"), **found)


def _open_file(path: Path, reader: Reader) -> Checkpoint:
    weights = open_weights(path, reader)
    key = next((key for key in weights.tensors if key.endswith(SAVED_CONFIG)), None)
    written = decode_config(weights[key]) if key else {}
    weights = weights.renamed(SAVED_PREFIX, hub_name)
    weights.tensors.pop(SAVED_CONFIG, None)
    found = {name: written[name] for name in ("schedule", "scale_factor", "image_scale", "preview") if written}
    return _checkpoint(path, detect(weights.shapes, written.get("transformer")), weights, **found)


def _checkpoint(path: Path, config: TransformerConfig, weights: Weights, **found) -> Checkpoint:
    """A checkpoint with the published values where nothing else was found."""
    published = {
        "schedule": config.default_schedule,
        "scale_factor": config.default_scale_factor,
        "image_scale": config.default_image_scale,
    }
    return Checkpoint(path, config, weights, **{**published, **found})


def open_checkpoint(path: str | os.PathLike, reader: Reader = read_file) -> Checkpoint:
    """Open a model folder in hub layout or a single file, also one that ComfyUI's ModelSave wrote.

    Reads headers and configurations only; weights are read when they are asked for.

    Args:
        reader: how they are read, see `open_weights`.

    Raises:
        CheckpointError: what is wrong, where, and what to do.
    """
    path = Path(path)
    with naming(path):
        return _open_folder(path, reader) if path.is_dir() else _open_file(path, reader)


def load_vae_config(path: Path, weights: Weights) -> VAEConfig:
    """The configuration of a VAE: a folder's own, else the published values with the sizes of the weights.

    Raises:
        CheckpointError: no CogVideoX VAE.
    """
    file = path / "config.json"
    if file.is_file():
        with naming(file):
            return VAEConfig.from_dict(read_json(file))
    shapes = weights.shapes
    try:
        widths = tuple(shapes[f"encoder.down_blocks.{i}.resnets.0.conv1.conv.weight"][0] for i in range(4))
        latent_channels = shapes["decoder.conv_in.conv.weight"][1]
    except KeyError as error:
        raise CheckpointError(f"is no CogVideoX VAE, {error} is missing: choose another file", path) from error
    layers = {name.split(".")[4] for name in shapes if name.startswith("encoder.down_blocks.0.resnets.")}
    return VAEConfig(block_out_channels=widths, latent_channels=latent_channels, layers_per_block=len(layers))

"""Start an InP or Control model from another model: with new input channels whose weights are zero.

So whatever it is conditioned on, its first step equals the model's that it starts from, and training moves away from
there. VideoX-Fun starts its own training likewise: it pads the weights of `patch_embed.proj` with zeros.
"""

import logging
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file

from ...model_loading.errors import CheckpointError
from ...model_loading.files.checkpoint import Checkpoint
from ...model_loading.files.safetensors_files import read_json
from ...model_loading.networks.config import TransformerConfig
from ...model_loading.standalone import open_whole
from .hub import PARTS, save_weights, write_json
from .lora import PROJECTION

log = logging.getLogger(__name__)

CHANNELS = {"inpaint": 33, "control": 32}
PIPELINES = {"inpaint": "CogVideoXFunInpaintPipeline", "control": "CogVideoXFunControlPipeline"}  # of VideoX-Fun
NOISE = "add_noise_in_inpaint_model"


def start_model(source: str | Path, output: str | Path, kind: str, reference_noise: bool = False) -> None:
    """Write a model folder in hub layout. Files that stay the same are hard links where the disk allows it.

    Positions need no change: the Fun models interpolate the 2B's table to each video's size, see `sampling.positions`.

    Args:
        source: a text model's folder, or an InP model's.
        kind: "inpaint" (33 channels) or "control" (32).
        reference_noise: the model is trained with noise on its known pixels, as V1.1's InP models are. From an InP
            model this changes the configuration alone.

    Raises:
        CheckpointError: the source can't become this kind of model.
        ValueError: the options don't fit together, or the output has a model.
    """
    source, output = Path(source), Path(output)
    if kind not in CHANNELS:
        raise ValueError(f"the model to make is {kind!r}, expected one of {list(CHANNELS)}")
    if reference_noise and kind != "inpaint":
        raise ValueError(f"reference noise is for InP models, not for {kind!r}: leave it out")
    if (output / "transformer").exists():
        raise ValueError(f"{output} has a model: give another folder, or remove it")
    checkpoint = open_whole(source)
    check_source(checkpoint, kind, reference_noise)
    config = checkpoint.config
    for path in files_of(source):
        link(path, output / path.relative_to(source))
    if config.in_channels != CHANNELS[kind]:
        replace_projection(checkpoint, output, CHANNELS[kind])
    values = read_json(source / "transformer" / "config.json")
    write_json(
        output / "transformer" / "config.json", {**values, "in_channels": CHANNELS[kind], NOISE: reference_noise}
    )
    index = output / "model_index.json"
    if index.is_file():
        write_json(index, {**read_json(index), "_class_name": PIPELINES[kind]})
    log.info("%s: %s, %d -> %d channels", output, config.family, config.in_channels, CHANNELS[kind])


def check_source(checkpoint: Checkpoint, kind: str, reference_noise: bool) -> None:
    """Raise a CheckpointError unless a model of this kind can start from a checkpoint."""
    config = checkpoint.config
    found = f"has {config.in_channels} input channels ({config.conditioning})"
    if config.conditioning not in ("text", "inpaint"):
        problem = f"{found}, expected 16 (text) or 33 (inpaint): start from a text model"
    elif config.conditioning == kind and (config.add_noise_in_inpaint_model or not reference_noise):
        problem = f"{found} and is such a model already: train it as it is"
    elif checkpoint.weights.is_quantised:
        problem = "is quantised, expected 16 or 32 bits a weight: take the published model"
    elif checkpoint.base is not None:
        problem = f"has only a LoRA of {checkpoint.base}: start from a model with weights of its own"
    else:
        return
    raise CheckpointError(problem, checkpoint.path)


def files_of(folder: Path) -> list[Path]:
    """The files of a model folder's parts, its index and its licence."""
    parts = [path for part in PARTS for path in sorted((folder / part).rglob("*")) if path.is_file()]
    return parts + [path for path in sorted(folder.iterdir()) if path.stem in ("model_index", "LICENSE")]


def link(path: Path, target: Path) -> None:
    """Make ``target`` a hard link to a file, or a copy where that can't be: the trainer never writes into a file."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:
        shutil.copyfile(path, target)


def replace_projection(checkpoint: Checkpoint, output: Path, channels: int) -> None:
    """Write the file that has the patch projection with other input channels. The other tensors stay on disk."""
    info = checkpoint.weights.tensors[PROJECTION]
    tensors = load_file(info.file)
    tensors[info.key] = with_channels(tensors[info.key], checkpoint.config, channels)
    target = output / info.file.relative_to(checkpoint.path)
    save_weights(target, tensors, metadata=checkpoint.weights.metadata)


def with_channels(weight: torch.Tensor, config: TransformerConfig, channels: int) -> torch.Tensor:
    """A patch projection with the weights of the noise's 16 channels, and zeros for those after them.

    Args:
        weight: D C 2 2, or D (C 2 2 2) on V1.5.
        channels: of the result.
    """
    per_channel = weight.shape[1] // config.in_channels
    kept = config.out_channels * per_channel
    wide = weight.new_zeros(len(weight), channels * per_channel, *weight.shape[2:])
    wide[:, :kept] = weight[:, :kept]
    return wide

"""Make tasks from model folders, and write what was trained into a model folder."""

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch.utils.checkpoint import checkpoint

from ...model_loading.files.checkpoint import BASE, Checkpoint, is_hub_folder, open_checkpoint
from ...model_loading.files.detect import shape_fields
from ...model_loading.files.merged import merge
from ...model_loading.files.safetensors_files import open_weights, read_json
from ...model_loading.networks.blocks import sdpa
from ...model_loading.networks.config import TransformerConfig
from ...model_loading.networks.tiny_decoder import TinyDecoder
from ...model_loading.networks.transformer import CogVideoXTransformer
from ...model_loading.networks.vae import CogVideoXVAE
from ...model_loading.standalone import TextEncoder, load_transformer, load_vae, open_whole
from ...sampling.preview import BIAS, FACTORS
from ..data.cache import Cache
from ..data.samples import Batch
from ..loop.config import FAMILIES, OF_THE_VAE, Phase
from .encoders import Encoded, Encoders
from .few_steps import FewStepsTask
from .hub import FILES, PARTS, save_weights, write_json
from .lora import add_lora, lora_file, start_from
from .origin import check_origin, origin
from .preview import fit_preview
from .tiny_decoder import TinyDecoderTask
from .transformer import TransformerTask
from .vae import VAETask

LORA_FILE = "lora.safetensors"
WEIGHTS = "*.safetensors", "*.safetensors.index.json"  # a part's weights, shards and their index


def make_encoders(phase: Phase, source: Checkpoint, texts: Checkpoint, dtype: torch.dtype) -> Encoders:
    """The frozen VAE and T5 of a phase.

    Args:
        source: the model that is trained.
        texts: the folder with its text encoder and tokenizer.
    """
    text_dtype = torch.float32 if phase.train_text_encoder else dtype
    text_encoder = TextEncoder(texts.text_encoder, texts.tokenizer, text_dtype)
    return Encoders(
        *(source.config, load_vae(source.vae, dtype), text_encoder),
        *(source.scale_factor, phase.caption_dropout, phase.train_text_encoder, phase.control_dropout),
    )


class Parts:
    """A phase's ``task``, and the frozen ``encoders`` before it.

    The tasks of the VAE have no ``encoders`` (None), and neither has training from a cache.

    Args:
        dtype: of the frozen parts. Trained parts are float32.
        attention: of the transformer, see `CogVideoXTransformer`.
    """

    def __init__(self, phase: Phase, dtype: torch.dtype = torch.float32, attention: Callable = sdpa):
        self.phase, self.dtype, self.attention = phase, dtype, attention
        # A LoRA from a cache needs the transformer alone. A whole model is written with its VAE and T5, and few_steps
        # needs T5 for the negative prompt.
        alone = phase.task == "lora" and phase.data.cache
        self.checkpoint = source = open_checkpoint(phase.model) if alone else open_whole(phase.model)
        if source.base is not None and not phase.makes_lora:
            raise ValueError(f"{phase.model} has only a LoRA of {source.base}: train a LoRA, or give a whole model")
        self.encoders = None
        if phase.task == "vae":
            self.task = VAETask(
                load_vae(source.vae), phase.kl_weight, phase.masked, phase.train_encoder, phase.agreement_weight
            )
            return
        if phase.task == "tiny_decoder":
            self.task = TinyDecoderTask(load_vae(source.vae, dtype), TinyDecoder(phase.widths))
            return
        if phase.family and source.config.family != FAMILIES[phase.family]:
            raise ValueError(
                f"{phase.model} is a {source.config.family} model, expected {FAMILIES[phase.family]}, as family says: "
                "give another model, or change family"
            )
        transformer = load_transformer(
            source, dtype if phase.makes_lora else torch.float32, position_mode=phase.positions, attention=attention
        )
        prepare_transformer(transformer, phase)
        if phase.lora:
            start_from(transformer, phase.lora, phase.lora_alpha)
        self.texts = open_whole(phase.text_encoder) if phase.text_encoder else source
        if phase.data.cache:
            check_origin(Cache(phase.data.cache), origin(phase, source, self.texts))
        else:
            self.encoders = make_encoders(phase, source, self.texts, dtype)
        if phase.task == "few_steps":
            self.task = FewStepsTask(transformer, source.schedule, self.negative(), phase.few_steps, phase.loss_level)
            return
        t5 = self.encoders.text_encoder.model.requires_grad_(True) if phase.train_text_encoder else None
        schedule = source.schedule
        if phase.snr_shift:
            schedule = dataclasses.replace(schedule, snr_shift=phase.snr_shift)
        self.task = TransformerTask(transformer, schedule.alphas_cumprod(), t5, phase.snr_gamma, phase.loss_level)

    def negative(self) -> torch.Tensor:
        """The features of the teacher's negative prompt, [1, L, C]. T5 is loaded for it where clips are cached."""
        encoder = self.encoders and self.encoders.text_encoder
        encoder = encoder or TextEncoder(self.texts.text_encoder, self.texts.tokenizer, self.dtype)
        return encoder(self.phase.few_steps.negative)

    @property
    def config(self) -> TransformerConfig | None:
        """Of the trained transformer, or None for a VAE."""
        return None if self.phase.task in OF_THE_VAE else self.checkpoint.config

    def prepare(self, batch: Batch) -> Batch | Encoded:
        """A batch on its device as the input of the task."""
        return batch if self.encoders is None else self.encoders(batch)


def strip(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def trained_vae(phase: Phase, state: Mapping[str, torch.Tensor]) -> CogVideoXVAE:
    """The VAE of a phase with its trained weights."""
    vae = load_vae(open_whole(phase.model).vae)
    vae.load_state_dict(strip(state, "vae."), strict=False)  # a frozen encoder is not in a checkpoint
    return vae


def write_result(
    phase: Phase, state: Mapping[str, torch.Tensor], output: str | Path, scale_factor: float | None = None
) -> None:
    """Write the model folder with the trained weights, or the file of a LoRA or of a small decoder.

    Weights that were trained are not copied from the old model first: a folder that was cut off would seem complete.

    Args:
        state: what was trained, by the names of the task's parameters.
        scale_factor: of a new latent space, see `measure_scale`.
    """
    output = Path(output)
    if phase.makes_lora:
        weights = lora_file(strip(state, "transformer."), phase.lora_alpha)
        save_weights(output / LORA_FILE, weights, torch.float16)  # as LoRA files are
        return
    if phase.task == "tiny_decoder":
        save_weights(output / FILES["tiny_decoder"], strip(state, "decoder."), torch.float16)
        return
    full = ["transformer", "text_encoder"] if phase.train_text_encoder else ["transformer"]
    folders = {str(Path(phase.model) / part) for part in (["vae"] if phase.task == "vae" else full)}
    own = {os.path.realpath(folder) for folder in (output, phase.output)}  # they may be in the model's folder

    def left_out(folder: str, names: list[str]) -> set[str]:
        found = shutil.ignore_patterns(*WEIGHTS)(folder, names) if folder in folders else set()
        return found | {name for name in names if os.path.realpath(os.path.join(folder, name)) in own}

    shutil.copytree(Path(phase.model), output, dirs_exist_ok=True, copy_function=replace_copy, ignore=left_out)
    if phase.task == "vae":
        replace_weights(output, "vae", trained_vae(phase, state).state_dict())
        if scale_factor is not None:  # in another latent space the previews' factors and decoder are wrong
            shutil.rmtree(output / "tiny_decoder", ignore_errors=True)
            config = read_json(output / "vae" / "config.json")
            config = {key: value for key, value in config.items() if key not in (FACTORS, BIAS)}
            write_json(output / "vae" / "config.json", {**config, "scaling_factor": scale_factor})
        return
    replace_weights(output, "transformer", strip(state, "transformer."))
    if phase.text_encoder:
        for part in ("text_encoder", "tokenizer"):
            shutil.rmtree(output / part)
            shutil.copytree(Path(phase.text_encoder) / part, output / part)
    if phase.train_text_encoder:
        replace_weights(output, "text_encoder", strip(state, "t5."))


def write_lora_model(lora: Path, base: str | Path, output: str | Path) -> None:
    """Write a model folder that has a LoRA in place of weights: see `model_loading.files.checkpoint`.

    Args:
        lora: its file, with a patch projection if the model has other input channels than the base.
        base: the folder with the weights and the other parts. Later, both folders can only be moved together.

    Raises:
        CheckpointError: the LoRA does not fit the base.
        ValueError: the output has a model with weights.
    """
    output, opened = Path(output), open_whole(base)
    if is_hub_folder(output) and BASE not in read_json(output / "transformer" / "config.json"):
        raise ValueError(f"{output} has a model with weights of its own, expected none: give another folder")
    merged = merge(opened.weights, lora)
    merged.load()  # raises an error if a layer does not fit, before anything is written
    channels = shape_fields(merged.shapes)["in_channels"]
    relative = Path(os.path.relpath(os.path.realpath(base), os.path.realpath(output))).as_posix()
    values = {**read_json(opened.path / "transformer" / "config.json"), "in_channels": channels, BASE: relative}
    write_json(output / "transformer" / "config.json", values)
    replace_copy(str(lora), str(output / "transformer" / LORA_FILE))


def replace_copy(source: str, target: str) -> None:
    """Replace a file in one step: a program that has the old one mapped keeps it."""
    temporary = Path(f"{target}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(target)


def prepare_transformer(transformer: CogVideoXTransformer, phase: Phase) -> None:
    """Make the phase's parameters those that require a gradient, with LoRA layers and checkpointing as it says."""
    transformer.train()
    if phase.checkpoint_blocks:
        checkpoint_blocks(transformer)
    if phase.makes_lora:
        add_lora(transformer, phase.lora_rank, phase.lora_alpha, phase.train_patch_projection)
    else:
        transformer.requires_grad_(True)


def checkpoint_blocks(transformer: CogVideoXTransformer) -> None:
    """Recompute the inner values of every block for its gradient (Chen et al. 2016)."""
    for block in transformer.transformer_blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def convolve_in_float32(task: torch.nn.Module) -> None:
    """Run the trained convolutions without autocast; everything else keeps it."""
    for module in task.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d) and module.weight.requires_grad:
            module.forward = partial(_convolve, module)


def _convolve(module: torch.nn.Conv2d | torch.nn.Conv3d, x: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, enabled=False):
        bias = None if module.bias is None else module.bias.float()
        return module._conv_forward(x.float(), module.weight.float(), bias)


def remove_weights(folder: Path) -> None:
    """Remove a part's weights."""
    for pattern in WEIGHTS:
        for path in folder.glob(pattern):
            path.unlink()


def replace_weights(output: Path, part: str, state: dict[str, torch.Tensor]) -> None:
    """Replace a part's weights, which are in one file or in shards."""
    remove_weights(output / part)
    save_weights(output / FILES[part], state)


@torch.no_grad()
def measure_scale(vae, videos) -> float:
    """The factor that gives latents a standard deviation of 1, from videos B F H W 3 of 0..1."""
    latents = [vae.encode((video * 2 - 1).movedim(-1, 1)).flatten() for video in videos]
    return round(float(1 / torch.cat(latents).std()), 6)


@torch.no_grad()
def write_preview(folder: str | Path, videos: Sequence[torch.Tensor]) -> None:
    """Fit the factors of previews to videos, F H W 3 of 0..1, and write them into the VAE's configuration."""
    source = open_whole(folder)
    vae = load_vae(source.vae)
    latents = [vae.encode((video * 2 - 1).movedim(-1, 0)[None])[0] * source.scale_factor for video in videos]
    path = source.vae / "config.json"
    write_json(path, {**read_json(path), **fit_preview(latents, videos).to_config()})


def export_half(folder: str | Path, output: str | Path, transformer: Mapping[str, torch.Tensor] | None = None) -> None:
    """Copy the parts of a model folder, with their weights in float16. Other files are not copied.

    Args:
        transformer: weights to write in place of the folder's.
    """
    folder, output = Path(folder), Path(output)
    opened = open_whole(folder)
    if opened.base is not None:
        raise ValueError(f"{folder} has only a LoRA of {opened.base}: copy its files, which are in float16")
    for path in sorted(p for part in PARTS for p in (folder / part).glob("*") if p.is_file()):
        target = output / path.relative_to(folder)
        if transformer is not None and path.parent.name == "transformer" and any(map(path.match, WEIGHTS)):
            continue
        if path.suffix == ".safetensors":
            weights = open_weights(path)
            weights.check_plain()
            save_weights(target, weights.load(), torch.float16)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    if transformer is not None:
        save_weights(output / FILES["transformer"], transformer, torch.float16)


def average_models(folders: Sequence[str | Path], output: str | Path) -> None:
    """Write a model folder whose transformer has the mean weights of several ("model soups", Wortsman et al. 2022).

    The models must have been trained on from the same weights. All other parts are the first folder's.

    Raises:
        CheckpointError: a folder's weights are quantised, or of another size than the first one's.
    """
    found = [open_weights(Path(folder) / "transformer") for folder in folders]
    for weights in found:
        weights.check_plain()
        weights.check(found[0].tensors)
    states = [weights.load() for weights in found]
    mean = {name: torch.stack([state[name].float() for state in states]).mean(dim=0) for name in states[0]}
    export_half(folders[0], output, mean)

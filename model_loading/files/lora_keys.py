"""LoRA files in every style of key names, brought to the model's own layer names.

A key is a prefix, a layer and a suffix. The layer is found by the model's names, written with dots or underscores.
The prefix must be a known one, and the suffix gets the name that ComfyUI's LoRA reader knows.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..errors import CheckpointError
from . import lora_sizes
from .detect import hub_name
from .safetensors_files import Reader, open_weights, read_file

PREFIXES = (
    "",
    "diffusion_model.",
    "model.diffusion_model.",
    "transformer.",
    "unet.",
    "base_model.model.",  # PEFT
    "base_model.model.transformer.",
    "transformer.base_model.model.",
    "lora_unet__",  # the Fun trainer
    "lora_unet_",  # kohya
    "lora_transformer_",
    "lycoris_",
)
RENAMES = (  # pattern of a whole key -> replacement, before it is taken apart
    (r"\.processor\.(to_\w+?)_lora\.", r".\1.lora."),  # diffusers' attention processors
    (r"_alpha$", r".alpha"),
)
NATIVE = re.compile(r"((?:model\.)?diffusion_model\.|)(blocks\.\d+\..+)")  # a prefix, then ComfyUI's own names
SUFFIXES = (  # pattern of what follows the layer -> ComfyUI's name
    (r"lora[._](?:A|down)(?:[._]default)?(?:[._]weight)?", "lora_down.weight"),
    (r"lora[._](?:B|up)(?:[._]default)?(?:[._]weight)?", "lora_up.weight"),
    (r"lora_linear_layer\.(down|up)\.weight", r"lora_\1.weight"),
    (r"lora_magnitude_vector(?:\.default)?(?:\.weight)?", "dora_scale"),
    (r"(alpha|dora_scale|diff|diff_b|set_weight|w_norm|b_norm)", r"\1"),
    (r"(oft_blocks|rescale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2)(?:\.weight)?", r"\1"),
    (r"(lora_mid|[ab][12])(?:\.weight)?", r"\1.weight"),
)
PEFT_METADATA = "lora_adapter_metadata"  # JSON that diffusers writes, with the alpha that its tensors lack


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA for one model. A tensor is named by the layer's name on the hub and ComfyUI's suffix."""

    tensors: dict[str, torch.Tensor]
    layers: list[str]
    unmatched: list[str]  # keys of the file that belong to no layer of the model


def layer_names(parameters: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Every prefix and spelling of a layer's name -> its name on the hub."""
    names = {}
    for layer in (name.removesuffix(".weight") for name in parameters if name.endswith(".weight")):
        short = layer.removesuffix(".0") if layer.endswith("to_out.0") else layer
        for spelling in (layer, short, layer.replace(".", "_"), short.replace(".", "_")):
            names |= {f"{prefix}{spelling}": layer for prefix in PREFIXES}
    return names


def split_key(key: str, names: Mapping[str, str]) -> tuple[str, str] | None:
    """A file's key as (layer, suffix in ComfyUI's name), or None if it is of no layer."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    if native := NATIVE.fullmatch(key):
        key = native[1] + hub_name(native[2])
    ends = [match.start() for match in re.finditer(r"[._]", key)]
    for end in reversed(ends):  # the longest name first: to_out_0 before to_out
        layer = names.get(key[:end])
        for pattern, replacement in SUFFIXES if layer else ():
            match = re.fullmatch(pattern, key[end + 1 :])
            if match:
                return layer, match.expand(replacement)
    return None


def read_lora(path: Path, parameters: Mapping[str, tuple[int, ...]], reader: Reader = read_file) -> Lora:
    """Read a LoRA for a model.

    Args:
        parameters: the model's parameters and their shapes, named as on the hub.
        reader: how tensors are read, see `open_weights`.

    Raises:
        CheckpointError: the file can't be read, no key belongs to the model, or a layer has another size.
    """
    names = layer_names(parameters)
    layers: dict[str, dict[str, torch.Tensor]] = {}  # layer -> ComfyUI's name of a part -> the part
    unmatched = []
    weights = open_weights(path, reader)
    for key, tensor in weights.load().items():
        layer, suffix = split_key(key, names) or (None, None)
        if layer is None:
            unmatched.append(key)
        else:
            layers.setdefault(layer, {})[suffix] = tensor
    shapes = {name: torch.empty(shape, device="meta") for name, shape in parameters.items()}
    for layer, parts in list(layers.items()):
        weight = shapes[f"{layer}.weight"]
        if "dora_scale" in parts and parts["dora_scale"].ndim == 1:  # PEFT's: one value an output
            parts["dora_scale"] = parts["dora_scale"].reshape(-1, *(1 for _ in weight.shape[1:]))
        try:
            changed = lora_sizes.changes(parts, weight, shapes.get(f"{layer}.bias"))
        except ValueError as error:
            raise CheckpointError(f"can't be loaded: {layer} {error}", path) from error
        if not changed:
            unmatched += [f"{layer}.{suffix}" for suffix in layers.pop(layer)]
    if not layers:
        raise CheckpointError(
            f"can't be loaded: none of its {len(unmatched)} keys belongs to a CogVideoX transformer (the first is "
            f"{min(unmatched, default='missing')}): choose a LoRA that was trained for CogVideoX-Fun",
            path,
        )
    ranks = {layer: len(parts["lora_down.weight"]) for layer, parts in layers.items() if "lora_down.weight" in parts}
    for layer, alpha in metadata_alphas(weights.metadata, ranks).items():
        layers[layer].setdefault("alpha", torch.tensor(alpha))
    tensors = {f"{layer}.{suffix}": value for layer, parts in layers.items() for suffix, value in parts.items()}
    return Lora(tensors, sorted(layers), unmatched)


def metadata_alphas(metadata: Mapping[str, str], ranks: Mapping[str, int]) -> dict[str, float]:
    """The alphas of a PEFT LoRA, which diffusers writes beside the tensors; empty for other files.

    rsLoRA (Kalajdzievski 2023) multiplies the change by alpha / sqrt(rank), so its alpha here is sqrt(rank) times as
    large.

    Args:
        ranks: the rank of each layer.
    """
    try:
        peft = json.loads(metadata.get(PEFT_METADATA, "{}"))
        general = peft.get("transformer.lora_alpha", peft.get("lora_alpha"))
        stabilised = peft.get("transformer.use_rslora", peft.get("use_rslora"))
        patterns = (peft.get("transformer.alpha_pattern", peft.get("alpha_pattern")) or {}).items()
    except (ValueError, AttributeError):
        return {}
    alphas = {}
    for layer, rank in ranks.items():
        special = [alpha for pattern, alpha in patterns if layer == pattern or layer.endswith(f".{pattern}")]
        alpha = special[0] if special else general
        if isinstance(alpha, int | float):
            alphas[layer] = alpha * (rank**0.5 if stabilised else 1.0)
    return alphas

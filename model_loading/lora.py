"""LoRA files of every style in the wild, brought to the model's own layer names. No host.

A key is a prefix, a layer and a suffix. The layer is found by the model's names, written with dots or underscores;
what stands before it must be a known prefix, and what follows gets the name that ComfyUI's LoRA reader knows.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from .config import is_finite, readable
from .weights import open_weights

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
SUFFIXES = (  # pattern of what follows the layer -> the host's name
    (r"lora[._](?:A|down)(?:\.default)?(?:\.weight)?", "lora_down.weight"),
    (r"lora[._](?:B|up)(?:\.default)?(?:\.weight)?", "lora_up.weight"),
    (r"lora_linear_layer\.(down|up)\.weight", r"lora_\1.weight"),
    (r"lora_magnitude_vector(?:\.default)?(?:\.weight)?", "dora_scale"),
    (r"(alpha|dora_scale|diff|diff_b|set_weight|reshape_weight|w_norm|b_norm)", r"\1"),
    (r"((?:lora_mid|oft_blocks|oft_diag|rescale|hada_[wt]\w+|lokr_[wt]\w+|[ab][12])(?:\.weight)?)", r"\1"),
)
PEFT_METADATA = "lora_adapter_metadata"  # JSON that diffusers writes, with the alpha that its tensors lack


class LoraError(ValueError):
    """A LoRA that does not fit; the message says to which model it belongs, where that can be told."""

    def __init__(self, message: str):
        super().__init__(readable(message))


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA for one model.

    ``tensors`` are named ``<layer>.<suffix>``: the layer as on the hub, the suffix as the host's LoRA reader has it.
    """

    tensors: dict[str, torch.Tensor]
    layers: list[str]
    unmatched: list[str]  # keys of the file that belong to no layer of the model


def layer_names(parameters: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Every spelling of a layer's name -> its name on the hub."""
    names = {}
    for parameter in parameters:
        layer = parameter.removesuffix(".weight")
        if layer == parameter:
            continue
        for spelling in (layer, layer.removesuffix(".0") if layer.endswith("to_out.0") else layer):
            names[spelling] = names[spelling.replace(".", "_")] = layer
    return names


def split_key(key: str, names: Mapping[str, str]) -> tuple[str, str] | None:
    """A file's key as (layer, suffix in the host's name), or None if it is of no layer."""
    for pattern, replacement in RENAMES:
        key = re.sub(pattern, replacement, key)
    for prefix in sorted(PREFIXES, key=len, reverse=True):
        rest = key[len(prefix) :]
        if not key.startswith(prefix):
            continue
        ends = [match.start() for match in re.finditer(r"[._]", rest)]
        for end in reversed(ends):  # the longest name first: to_out_0 before to_out
            layer = names.get(rest[:end])
            suffix = host_suffix(rest[end + 1 :]) if layer else None
            if suffix is not None:
                return layer, suffix
    return None


def host_suffix(suffix: str) -> str | None:
    for pattern, replacement in SUFFIXES:
        match = re.fullmatch(pattern, suffix)
        if match:
            return match.expand(replacement)
    return None


def read_lora(path: Path, parameters: Mapping[str, tuple[int, ...]]) -> Lora:
    """Read a LoRA for a model.

    Args:
        parameters: the model's parameters and their shapes, named as on the hub.

    Raises:
        LoraError: no key belongs to the model, or a layer has another size.
        CheckpointError: the file can't be read.
    """
    weights = open_weights(path)
    weights.check_finite()
    names = layer_names(parameters)
    parts, unmatched = {}, []
    for key in weights:
        split = split_key(key, names)
        if split is None:
            unmatched.append(key)
        else:
            parts[split] = weights[key]
    layers = sorted({layer for layer, _ in parts})
    if not layers:
        raise LoraError(
            f"{path}: none of its {len(unmatched)} keys belongs to a CogVideoX transformer (the first is "
            f"{min(unmatched, default='missing')}): choose a LoRA that was trained for CogVideoX-Fun"
        )
    for layer in layers:
        check_size(path, layer, parts, parameters[f"{layer}.weight"])
    alphas = {(layer, "alpha"): alpha for layer, alpha in metadata_alphas(weights.metadata, layers).items()}
    parts = {**{name: torch.tensor(alpha) for name, alpha in alphas.items()}, **parts}
    return Lora({f"{layer}.{suffix}": value for (layer, suffix), value in parts.items()}, layers, unmatched)


def check_size(path: Path, layer: str, parts: Mapping[tuple[str, str], torch.Tensor], shape: tuple[int, ...]) -> None:
    """Raise a LoraError unless a layer's low-rank pair has the layer's inputs and outputs."""
    up, down = parts.get((layer, "lora_up.weight")), parts.get((layer, "lora_down.weight"))
    if up is None and down is None:
        return
    if up is None or down is None:
        lacking = "lora_up" if up is None else "lora_down"
        raise LoraError(f"{path}: {layer} has no {lacking}: the file is incomplete, download it again")
    if not up.ndim > 1 < down.ndim or not up.numel() or not down.numel() or up[0].numel() != len(down):
        raise LoraError(
            f"{path}: {layer} has lora_up of {list(up.shape)} and lora_down of {list(down.shape)}, which do not fit "
            "together: download it again"
        )
    given = len(up), down[0].numel()
    expected = shape[0], math.prod(shape[1:])
    if given != expected:
        raise LoraError(
            f"{path}: {layer} is {given[0]} x {given[1]}, but the model's is {expected[0]} x {expected[1]}: "
            f"{belongs_to(given)}choose a LoRA of the model that is loaded"
        )


def belongs_to(size: tuple[int, int]) -> str:
    """What a LoRA layer's outputs and inputs say of its model, as the beginning of a remedy; empty if nothing."""
    families = {30 * 64: "2B", 48 * 64: "5B"}
    found = {family for width, family in families.items() if any(n % width == 0 for n in size)}
    return f"this LoRA belongs to a {found.pop()} model, " if len(found) == 1 else ""


def metadata_alphas(metadata: Mapping[str, str], layers: list[str]) -> dict[str, float]:
    """The alphas of a PEFT LoRA, which diffusers writes beside the tensors; empty for other files."""
    try:
        peft = json.loads(metadata.get(PEFT_METADATA, "{}"))
        general = peft.get("transformer.lora_alpha", peft.get("lora_alpha"))
        patterns = (peft.get("transformer.alpha_pattern", peft.get("alpha_pattern")) or {}).items()
    except (ValueError, AttributeError, RecursionError):
        return {}
    alphas = {}
    for layer in layers:
        special = [alpha for pattern, alpha in patterns if layer == pattern or layer.endswith(f".{pattern}")]
        alpha = special[0] if special else general
        if isinstance(alpha, int | float) and is_finite(alpha):
            alphas[layer] = float(alpha)
    return alphas

"""LoRA: low-rank layers from `peft`, and their file in the keys that ComfyUI's own loaders take.

W x + (alpha / rank) B A x, with B zero at the start (Hu et al. 2021). For a model that got new input channels, the
weight of the patch projection can be trained beside them.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ...model_loading.files.safetensors_files import open_weights

PROJECTION = "patch_embed.proj.weight"
PROJECTION_KEY = "diffusion_model.patch_embed.proj.set_weight"  # in a LoRA's file
TARGETS = r"transformer_blocks\.\d+\..*(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)"


def add_lora(model: nn.Module, rank: int, alpha: float, projection: bool = False) -> None:
    """Add float32 low-rank layers to the linear layers of every block, in place, and freeze the rest.

    Args:
        projection: the weight of the patch projection is trained, too.

    Raises:
        ValueError: the model has no such layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS), model)
    if projection:
        model.get_parameter(PROJECTION).requires_grad_(True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # they have the dtype of the frozen layers


@torch.no_grad()
def start_from(model: nn.Module, path: str | Path, alpha: float) -> None:
    """Give the layers of `add_lora` the values of a LoRA file in the keys of `lora_file`, in place.

    Args:
        alpha: of the layers, which may differ from the file's: the change of the weights is the same.

    Raises:
        ValueError: the file's layers are not those of the model, or have another rank.
    """
    weights = open_weights(path).load()
    layers = {name: value for name, value in model.named_parameters() if value.requires_grad}
    expected = lora_file(layers, alpha)
    if weights.keys() != expected.keys():
        key = min(weights.keys() ^ expected.keys())
        raise ValueError(
            f"{path} {'has' if key in weights else 'lacks'} {key}, expected the layers that are trained: give a LoRA "
            "of this trainer that was trained with the same model and options"
        )
    for key, parameter in expected.items():
        value = weights[key].float()
        check_shape(path, key, value, parameter)
        if key.endswith(".lora_up.weight"):
            value = value * (float(weights[key.replace("lora_up.weight", "alpha")]) / alpha)
        parameter.copy_(value)


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """The model as it was before `add_lora`.

    peft's own `enable_adapters` also freezes the layers and unfreezes them again, which FSDP 2 does not expect.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    try:
        for layer in layers:
            layer._disable_adapters = True
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def lora_file(state: Mapping[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file: ``diffusion_model.<layer>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``.

    A trained patch projection is `PROJECTION_KEY`. ComfyUI's LoRA loaders put it in the place of the model's weight,
    whatever the strength.

    Args:
        state: of the transformer, with peft's names: ``<layer>.lora_A.default.weight`` and ``.lora_B.``.
    """
    renamed = {}
    for name, value in state.items():
        if name == PROJECTION:
            renamed[PROJECTION_KEY] = value
        for part, key in (("lora_A", "lora_down"), ("lora_B", "lora_up")):
            layer, found, _ = name.partition(f".{part}.default.weight")
            if found:
                renamed[f"diffusion_model.{layer}.{key}.weight"] = value
                renamed[f"diffusion_model.{layer}.alpha"] = torch.tensor(float(alpha))
    return renamed


def lower_rank(weights: Mapping[str, torch.Tensor], rank: int) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file with a lower rank: each layer's closest change of that rank (Eckart and Young 1936).

    Args:
        weights: see `lora_file`. Layers whose rank is not above ``rank``, and the patch projection, stay as they are.
    """
    lower = dict(weights)
    for key in (key for key in weights if key.endswith(".lora_down.weight")):
        layer = key.removesuffix(".lora_down.weight")
        down, up = weights[key].float(), weights[f"{layer}.lora_up.weight"].float()
        if len(down) <= rank:
            continue
        # the product itself may be thousands wide, and has no more singular values than the rank
        (from_up, up), (from_down, down) = torch.linalg.qr(up), torch.linalg.qr(down.T)
        change = up @ down.T * (float(weights[f"{layer}.alpha"]) / down.shape[1])
        left, values, right = torch.linalg.svd(change, full_matrices=False)
        left, right = from_up @ left, right @ from_down.T
        root = values[:rank].sqrt()
        lower[key], lower[f"{layer}.lora_up.weight"] = root[:, None] * right[:rank], left[:, :rank] * root
        lower[f"{layer}.alpha"] = torch.tensor(float(rank))
    return lower


@torch.no_grad()
def apply_lora(model: nn.Module, path: Path, strength: float = 1.0) -> None:
    """Add a LoRA file in the keys of `lora_file` to a model's weights, in place.

    Raises:
        ValueError: the model lacks a layer of the file, or has it in another shape.
    """
    weights = open_weights(path).load()
    layers = [key.removesuffix(".lora_down.weight") for key in weights if key.endswith(".lora_down.weight")]
    if not layers:
        raise ValueError(f"{path} has no key that ends in .lora_down.weight: it is not a LoRA of this trainer")
    parameters = dict(model.named_parameters())
    if PROJECTION_KEY in weights:
        check_shape(path, PROJECTION_KEY, weights[PROJECTION_KEY], parameters.get(PROJECTION))
        parameters[PROJECTION].copy_(weights[PROJECTION_KEY])
    for layer in layers:
        name = f"{layer.removeprefix('diffusion_model.')}.weight"
        down, up = (weights[f"{layer}.lora_{part}.weight"].float() for part in ("down", "up"))
        change = up @ down * (strength * float(weights[f"{layer}.alpha"]) / len(down))
        check_shape(path, layer, change, parameters.get(name))
        parameters[name] += change.to(parameters[name])


def check_shape(path: Path, key: str, change: torch.Tensor, parameter: torch.Tensor | None) -> None:
    """Raise a ValueError if a part of a LoRA has another shape than the parameter that it changes."""
    if parameter is None or parameter.shape != change.shape:
        expected = "no such layer" if parameter is None else list(parameter.shape)
        raise ValueError(
            f"{path}: {key} does not fit the model: it is {list(change.shape)}, expected {expected}. Use the LoRA "
            "with the model it was trained on, and train it on with its own lora_rank"
        )

"""LoRA: low-rank layers from `peft`, and their file in the keys that ComfyUI's own loaders take.

W x + (alpha / rank) B A x, with B zero at the start (Hu et al. 2021).
"""

from pathlib import Path

import torch
from torch import nn

from ...model_loading.files.safetensors_files import open_weights

TARGETS = r"transformer_blocks\.\d+\..*(to_q|to_k|to_v|to_out\.0|ff\.net\.0\.proj|ff\.net\.2)"


def add_lora(model: nn.Module, rank: int, alpha: float) -> None:
    """Add float32 low-rank layers to the linear layers of every block, in place, and freeze the rest.

    Raises:
        ValueError: the model has no such layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS), model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # peft makes them in the dtype of the frozen layer


def lora_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file: ``diffusion_model.<layer>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``."""
    from peft.tuners.lora import LoraLayer

    state = {}
    for name, layer in model.named_modules():
        if isinstance(layer, LoraLayer):
            key = f"diffusion_model.{name}"
            state[f"{key}.lora_down.weight"] = layer.lora_A["default"].weight.detach().clone()
            state[f"{key}.lora_up.weight"] = layer.lora_B["default"].weight.detach().clone()
            state[f"{key}.alpha"] = torch.tensor(float(layer.lora_alpha["default"]))
    return state


@torch.no_grad()
def apply_lora(model: nn.Module, path: Path, strength: float = 1.0) -> None:
    """Add a LoRA file in the keys of `lora_state` to a model's weights, in place.

    Raises:
        ValueError: the model lacks a layer of the file, or has it in another shape.
    """
    weights = open_weights(path).load()
    layers = [key.removesuffix(".lora_down.weight") for key in weights if key.endswith(".lora_down.weight")]
    if not layers:
        raise ValueError(f"{path} has no key that ends in .lora_down.weight: it is not a LoRA of this trainer")
    parameters = dict(model.named_parameters())
    for layer in layers:
        name = f"{layer.removeprefix('diffusion_model.')}.weight"
        down, up = (weights[f"{layer}.lora_{part}.weight"].float() for part in ("down", "up"))
        change = up @ down * (strength * float(weights[f"{layer}.alpha"]) / len(down))
        if name not in parameters or parameters[name].shape != change.shape:
            raise ValueError(f"{path}: {layer} does not fit the model: use the LoRA with the model it was trained on")
        parameters[name] += change.to(parameters[name])

"""LoRA layers for training, and their file in the keys that stock ComfyUI loads.

W x + (alpha / rank) B A x, with B zero at the start (Hu et al. 2021).
"""

from pathlib import Path

import torch
from torch import nn

from ...model_loading.files.safetensors_files import open_weights

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")  # of every block


class LoraLinear(nn.Module):
    """A frozen linear layer with a trained low-rank addition, kept in float32."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Parameter(torch.empty(rank, linear.in_features, device=linear.weight.device))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.down, a=5**0.5)
        self.scale, self.alpha = alpha / rank, alpha

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = nn.functional.linear(nn.functional.linear(x, self.down), self.up)
        return self.linear(x) + self.scale * low


def add_lora(model: nn.Module, rank: int, alpha: float, targets: tuple[str, ...] = TARGETS) -> dict[str, LoraLinear]:
    """Replace the targeted linear layers of every block, in place, and freeze the rest.

    Returns:
        The layers by the name of the linear layer that they stand for.

    Raises:
        ValueError: no layer has such a name.
    """
    model.requires_grad_(False)
    layers = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.startswith("transformer_blocks.") and name.endswith(targets):
            layers[name] = LoraLinear(module, rank, alpha)
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, layers[name])
    if not layers:
        raise ValueError(f"the model has no layer named {', '.join(targets)}")
    return layers


def lora_state(layers: dict[str, LoraLinear]) -> dict[str, torch.Tensor]:
    """The tensors of a LoRA file: ``diffusion_model.<layer>.lora_down.weight``, ``.lora_up.weight``, ``.alpha``."""
    state = {}
    for name, layer in layers.items():
        key = f"diffusion_model.{name}"
        state[f"{key}.lora_down.weight"] = layer.down.detach().clone()
        state[f"{key}.lora_up.weight"] = layer.up.detach().clone()
        state[f"{key}.alpha"] = torch.tensor(layer.alpha)
    return state


@torch.no_grad()
def apply_lora(model: nn.Module, path: Path, strength: float = 1.0) -> None:
    """Add a LoRA file in the keys of `lora_state` to a model's weights, in place.

    Raises:
        ValueError: a layer that the model does not have, or has in another shape.
    """
    weights = open_weights(path).load()
    layers = [key.removesuffix(".lora_down.weight") for key in weights if key.endswith(".lora_down.weight")]
    if not layers:
        raise ValueError(f"{path} has no key that ends in .lora_down.weight: it is no LoRA of this trainer")
    parameters = dict(model.named_parameters())
    for layer in layers:
        name = f"{layer.removeprefix('diffusion_model.')}.weight"
        down, up = (weights[f"{layer}.lora_{part}.weight"].float() for part in ("down", "up"))
        change = up @ down * (strength * float(weights[f"{layer}.alpha"]) / len(down))
        if name not in parameters or parameters[name].shape != change.shape:
            raise ValueError(f"{path}: {layer} does not fit the model: it is a LoRA of another one")
        parameters[name] += change.to(parameters[name])

"""A LoRA merged into the weights that it was trained on, for model folders that have the LoRA alone."""

import dataclasses
from pathlib import Path

import torch

from ..errors import CheckpointError, shown
from .lora_keys import layer_names, read_lora, split_key
from .safetensors_files import Weights, open_weights

PARTS = ("lora_down.weight", "lora_up.weight", "alpha", "set_weight")  # what a layer of the LoRA may have


@dataclasses.dataclass(frozen=True)
class MergedWeights(Weights):
    """The weights of a base with a LoRA: W + (alpha / rank) B A, in the dtype of W.

    Layers that the LoRA replaces by another weight are already among ``tensors``.
    """

    lora: Path = dataclasses.field(kw_only=True)  # a file, or a folder of files

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.load()[key]

    def load(self) -> dict[str, torch.Tensor]:
        """All tensors. Those that the LoRA changes are copies.

        Raises:
            CheckpointError: the LoRA is broken, or a layer has another size.
        """
        found = super().load()
        lora = read_lora(self.lora, self.shapes, self.reader)
        for layer in lora.layers:
            down, up = (lora.tensors.get(f"{layer}.lora_{part}.weight") for part in ("down", "up"))
            if down is not None:
                scale = float(lora.tensors.get(f"{layer}.alpha", len(down))) / len(down)
                weight = found[f"{layer}.weight"]
                change = (up.float().flatten(1) @ down.float().flatten(1)) * scale
                found[f"{layer}.weight"] = (weight.float() + change.view(weight.shape)).to(weight.dtype)
        return found


def merge(base: Weights, path: Path) -> MergedWeights:
    """The weights of ``base`` with the LoRA in ``path``, which is read when they are.

    Raises:
        CheckpointError: the base is quantised, or the LoRA has other parts than `PARTS`.
    """
    if base.is_quantised:
        raise CheckpointError("is quantised, and no LoRA can be merged into it: take a file of 16 bits", base.path)
    names, tensors = layer_names(base.shapes), dict(base.tensors)
    for key, info in open_weights(path).tensors.items():
        layer, part = split_key(key, names) or (None, None)
        if part not in PARTS:
            problem = f"has {shown(key)}, expected {', '.join(PARTS)} of the base's layers"
            raise CheckpointError(f"{problem}: take a LoRA of this pack's trainer", path)
        if part == "set_weight":
            tensors[f"{layer}.weight"] = info
    return MergedWeights(path, tensors, base.metadata, base.reader, lora=path)

"""A LoRA onto a MODEL, through ComfyUI's own patching."""

import logging
from pathlib import Path

import comfy.lora
import torch

from ..errors import shown
from ..files.lora_keys import read_lora
from ..networks.transformer import CogVideoXTransformer
from .files import read_file
from .model import model_of

log = logging.getLogger(__name__)


def add_lora(model, path: Path, strength: float):
    """A clone of a MODEL with a LoRA added to its weights; the matched and unmatched keys are logged.

    Args:
        strength: 0 gives the MODEL back.

    Raises:
        CheckpointError: the file fits no layer, or belongs to another model.
    """
    with torch.device("meta"):  # the MODEL's own parameters may be packed, or not made yet
        whole = CogVideoXTransformer(model_of(model).config)
    lora = read_lora(path, {name: tuple(value.shape) for name, value in whole.state_dict().items()}, read_file)
    if strength == 0:
        return model
    targets = {layer: f"diffusion_model.{layer}.weight" for layer in lora.layers}
    patched = model.clone()
    added = patched.add_patches(comfy.lora.load_lora(lora.tensors, targets), strength)
    layers = {key.removesuffix(".weight").removesuffix(".bias") for key in added}
    log.info(
        "%s: %d of the model's layers changed, %d keys matched, %d unmatched%s",
        shown(path), len(layers), len(lora.tensors), len(lora.unmatched),
        f" (the first is {shown(lora.unmatched[0])})" if lora.unmatched else "",
    )  # fmt: skip
    return patched

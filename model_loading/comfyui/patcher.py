"""ComfyUI's ModelPatcher for weights that are mapped from a file."""

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch

from .compat import core_patcher


class MappedPatcher(comfy.model_patcher.ModelPatcher):
    """A ModelPatcher that can also pin weights that are read straight from a mapped file."""

    def pin_weight_to_device(self, key):
        """Pin a weight that stays in RAM, for quicker uploads. CUDA can't pin the pages of a file: pin a copy."""
        weight = comfy.utils.get_attr(self.model, key)
        plain = type(weight.data) is torch.Tensor and not weight.is_pinned()
        if plain and comfy.model_management.MAX_PINNED_MEMORY > 0:
            comfy.utils.set_attr_param(self.model, key, weight.detach().clone())
        super().pin_weight_to_device(key)
        if plain and key not in self.pinned:  # ComfyUI pins only so much: the rest stays in the file
            comfy.utils.set_attr_param(self.model, key, weight.detach())


def patcher_class(load_device: torch.device, disable_dynamic: bool) -> type:
    """ComfyUI's patcher with dynamic VRAM where that is on and the device is a GPU, else `MappedPatcher`."""
    core = core_patcher()
    dynamic = core is not comfy.model_patcher.ModelPatcher and not disable_dynamic
    return core if dynamic and not comfy.model_management.is_device_cpu(load_device) else MappedPatcher

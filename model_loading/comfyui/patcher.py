"""The host's ModelPatcher, told which weights to leave off the card first: those of the modulation.

They are 14 % of a 5B's weights and 21 % of a 2B's, and a step takes one row through them, so the transformer computes
them where they lie (`CogVideoXTransformer.modulate`) and only small vectors cross to the card.
"""

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import torch


class Last(tuple):
    """An entry of the host's list of layers that sorts as the smallest: the last to be loaded, the first to leave."""

    def __lt__(self, other):
        return not isinstance(other, Last) or super().__lt__(other)

    def __gt__(self, other):
        return isinstance(other, Last) and super().__gt__(other)


class CogVideoXFunPatcher(comfy.model_patcher.ModelPatcher):
    """A ModelPatcher that loads the modulation after every other layer."""

    def _load_list(self, *args, **kwargs):
        last = set(self.model.diffusion_model.modulations())
        found = super()._load_list(*args, **kwargs)
        return [Last(entry) if layer_of(entry) in last else entry for entry in found]

    def pin_weight_to_device(self, key):
        """Pin a weight that stays in RAM, for quicker uploads. CUDA can't pin the pages of a file: pin a copy."""
        weight = comfy.utils.get_attr(self.model, key)
        plain = type(weight.data) is torch.Tensor and not weight.is_pinned()
        if plain and comfy.model_management.MAX_PINNED_MEMORY > 0:
            comfy.utils.set_attr_param(self.model, key, weight.detach().clone())
        super().pin_weight_to_device(key)


def layer_of(entry: tuple) -> torch.nn.Module:
    """The layer of an entry, whose place in it differs between host versions."""
    return next(part for part in entry if isinstance(part, torch.nn.Module))


def patcher_class(load_device: torch.device, disable_dynamic: bool) -> type:
    """The host's dynamic patcher where it has one for the device, else the one that loads the modulation last.

    The dynamic one brings every layer that runs to the card, whatever device it is called on; the model tells it the
    order (`CogVideoXFun.get_dynamic_vram__units`), and its modulation leaves the card first.
    """
    core = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    dynamic = core is not comfy.model_patcher.ModelPatcher and not disable_dynamic
    return core if dynamic and not comfy.model_management.is_device_cpu(load_device) else CogVideoXFunPatcher

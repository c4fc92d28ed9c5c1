"""What differs between the supported versions of ComfyUI.

Each question is asked of ComfyUI itself, of a signature or an attribute, and never of its version number. The versions
in the docstrings are those that the pack is tested on: 0.3.64, 0.8.0 and 0.33.0.
"""

import inspect
import math

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.cli_args import args
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context

try:
    import comfy.model_prefetch as model_prefetch  # 0.33.0
except ImportError:
    model_prefetch = None
try:
    import comfy.quant_ops as quant_ops  # 0.8.0 and 0.33.0
except ImportError:
    quant_ops = None


def accepts(function, name: str) -> bool:
    """Whether a function takes an argument of this name."""
    return name in inspect.signature(function).parameters


def known_fields(fields: dict) -> dict:
    """Those of some fields of a node's schema that this ComfyUI has. 0.3.64 lacks several."""
    return {name: value for name, value in fields.items() if name in io.Schema.__dataclass_fields__}


def can_add_nodes() -> bool:
    """Whether a node that runs now can add others to the graph and have their results kept.

    With ``--cache-none`` no results are kept, and on 0.3.64 a run with added nodes fails.
    """
    return get_executing_context() is not None and not args.cache_none


def prefetch_queue(blocks: list[torch.nn.Module], device: torch.device, options: dict):
    """A function that uploads a block's weights while the GPU may still run the block before, or None.

    Call it with each block before the block runs, and with None after the last. 0.33.0 has it, with dynamic VRAM.
    """
    if model_prefetch is None or not options.get("prefetch_dynamic_vbars"):
        return None
    queue = model_prefetch.make_prefetch_queue(list(blocks), device, options)
    return lambda block: model_prefetch.prefetch_queue_pop(queue, device, block)


def core_patcher() -> type:
    """The patcher that ComfyUI takes for its own models. On 0.33.0 it is another class where dynamic VRAM is on."""
    return getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)


def load_weights(patcher, state: dict[str, torch.Tensor]) -> None:
    """Give a patcher's model its weights in the layers' own way. A dynamic patcher (0.33.0) takes the tensors as they
    are."""
    dynamic = {"assign": True} if is_dynamic(patcher) else {}
    patcher.model.load_model_weights(state, "", **dynamic)


def is_dynamic(patcher) -> bool:
    """Whether ComfyUI reads this patcher's weights from the file straight to the GPU, with dynamic VRAM (0.33.0)."""
    return accepts(patcher.model.load_model_weights, "assign") and patcher.is_dynamic()


def new_clip(target, state: dict[str, torch.Tensor], disable_dynamic: bool, **options) -> comfy.sd.CLIP:
    """A CLIP with its weights. 0.8.0 and 0.33.0 take them in the constructor; only 0.33.0 knows dynamic VRAM."""
    if accepts(comfy.sd.CLIP.__init__, "disable_dynamic"):
        options["disable_dynamic"] = disable_dynamic
    if accepts(comfy.sd.CLIP.__init__, "state_dict"):
        return comfy.sd.CLIP(target, state_dict=[state], **options)
    clip = comfy.sd.CLIP(target, **options)
    clip.load_sd(state)
    return clip


def no_causal_anchor(handler: type) -> dict[str, bool]:
    """The arguments that turn the anchor frame of context windows off, for a handler class.

    0.33.0 adds a frame to every window but the first, which V1.5 can't take. The others have no such frame.
    """
    return {"causal_window_fix": False} if accepts(handler.__init__, "causal_window_fix") else {}


def trim_window(video) -> tuple[float, float]:
    """Where a VIDEO from a file begins in the file, and how long it is, in seconds; 0 is an open end.

    On 0.33.0 a node can cut a VIDEO without writing a new file.
    """
    return video.get_active_trim_window() if hasattr(video, "get_active_trim_window") else (0.0, 0.0)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out. 0.33.0 knows more kinds than one class."""
    is_oom = getattr(comfy.model_management, "is_oom", None)
    return is_oom(error) if is_oom else isinstance(error, comfy.model_management.OOM_EXCEPTION)


def device_memory(device: torch.device) -> float:
    """Bytes of a device's memory; infinite with DirectML, for which ComfyUI only says 1 GB."""
    if getattr(comfy.model_management, "directml_enabled", False):
        return math.inf
    return comfy.model_management.get_total_memory(device)


def vae_output_dtype(vae: comfy.sd.VAE) -> torch.dtype:
    """The dtype of a VAE's results: on 0.33.0 as ComfyUI's options say, before that float32."""
    return vae.vae_output_dtype() if hasattr(vae, "vae_output_dtype") else torch.float32


def multiplies_in_fp8(linear: torch.nn.Module) -> bool:
    """Whether a linear layer brings its input to fp8: a quantised one (0.8.0, 0.33.0), or one of --fast."""
    quantised = getattr(linear, "layout_type", None) and not linear._full_precision_mm
    return bool(quantised) or isinstance(linear, comfy.ops.fp8_ops.Linear)


def packed(weight: torch.Tensor) -> torch.Tensor:
    """The plain tensor of a quantised weight, which 0.8.0 does not unpack for saving; any other as it is."""
    return getattr(weight, "_qdata", weight)


def rotates_in_place():
    """comfy-kitchen's rotation for the GPU, (x, matrices) -> x, or None. 0.33.0 has it."""
    kitchen = getattr(quant_ops, "ck", None)
    if not hasattr(kitchen, "apply_rope1_"):
        return None
    backends = [backend for name, backend in kitchen.list_backends().items() if name != "eager"]
    usable = any(not backend["disabled"] and "apply_rope1_" in backend["capabilities"] for backend in backends)
    return kitchen.apply_rope1_ if usable else None


def triton_is_off() -> bool:
    """Whether --disable-triton-backend was given. 0.33.0 knows the option."""
    return getattr(args, "disable_triton_backend", False)


def convert_old_quants():
    """``comfy.utils.convert_old_quants``, or None on 0.3.64, which has no mixed-precision files."""
    return getattr(comfy.utils, "convert_old_quants", None)


async def replace_node(old: str, new: str, inputs: dict[str, str], values: dict, old_widgets: list[str]) -> None:
    """Register a node of another pack that a node of this pack replaces. Only 0.33.0 can: others do nothing.

    Args:
        old, new: node ids. ComfyUI replaces only what no installed pack has.
        inputs: input of the old node -> input of the new one. The old node has them all, also in a prompt: ComfyUI
            ends with an error where one is missing.
        values: input of the new node that the old one does not have -> its value.
        old_widgets: the old node's widgets, in the order in which their values are saved.
    """
    from comfy_api import latest
    from server import PromptServer

    # a program that uses ComfyUI's nodes without its server has no instance, and no page that could load a workflow
    if hasattr(latest.io, "NodeReplace") and getattr(PromptServer, "instance", None) is not None:
        mapping = [{"old_id": before, "new_id": after} for before, after in inputs.items()]
        mapping += [{"new_id": name, "set_value": value} for name, value in values.items()]
        outputs = [{"old_idx": 0, "new_idx": 0}]
        replacement = latest.io.NodeReplace(new, old, old_widgets, mapping, outputs)
        await latest.ComfyAPI().node_replacement.register(replacement)

"""The fastest kernels that a machine has for attention, for norm and rotation, and for norm and modulation."""

import importlib.util
import logging

import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention

from ..networks import blocks
from ..networks.blocks import may_overwrite, rotate, sdpa
from .compat import rotates_in_place, triton_is_off

log = logging.getLogger(__name__)


def comfy_attention(q, k, v, heads: int, transformer_options: dict | None = None) -> torch.Tensor:
    """ComfyUI's attention, with the overrides in transformer_options. B heads N d -> B N (heads d).

    Where ComfyUI uses PyTorch's attention, PyTorch chooses the kernel. ComfyUI puts flash attention first, but on an
    H100 cuDNN's takes 0.74 of its time at 17776 tokens (benchmarks/gpu).
    """
    if optimized_attention is attention_pytorch and "optimized_attention_override" not in (transformer_options or {}):
        return sdpa(q, k, v, heads)
    return optimized_attention(q, k, v, heads, skip_reshape=True, transformer_options=transformer_options)


def comfy_norms(device: torch.device, dtype: torch.dtype) -> dict:
    """`blocks.norm_rotate` and `blocks.norm_modulate` by the fastest kernels that this machine has.

    Args:
        dtype: what the weights are stored in.
    """
    rotation, triton = comfy_rotation(), triton_kernels(device, dtype)

    def usable(x: torch.Tensor, norm: torch.nn.Module) -> bool:
        given = x.device == device and x.is_contiguous() and may_overwrite(x)
        return triton is not None and given and is_plain_on(norm, device)

    def norm_rotate(x, norm, rope):
        if usable(x, norm):
            return triton.norm_rotate_(x, norm.weight, norm.bias, norm.eps, rope).transpose(1, 2)  # BNHD -> BHND
        x = norm(x).transpose(1, 2)  # BNHD -> BHND
        return x if rope is None else rotation(x, rope)

    def norm_modulate(x, norm, modulation, text_tokens):
        if usable(x, norm):
            return triton.norm_modulate(x, norm.weight, norm.bias, norm.eps, modulation, text_tokens)
        return blocks.norm_modulate(x, norm, modulation, text_tokens)

    return {"norm_rotate": norm_rotate, "norm_modulate": norm_modulate}


def is_plain_on(layer: torch.nn.Module, device: torch.device) -> bool:
    """Whether a layer's weights can be used as they are: on the device, not packed and not patched for a call."""
    changes = [f"{name}{kind}" for name in ("weight", "bias") for kind in ("_function", "_lowvram_function")]
    packed = any(type(part.data) is not torch.Tensor or part.itemsize < 2 for part in (layer.weight, layer.bias))
    changed = any(getattr(layer, name, None) for name in changes) or "forward" in vars(layer)
    return layer.weight.device == device and not packed and not changed


def triton_kernels(device: torch.device, dtype: torch.dtype):
    """The module `triton_kernels` where Triton can compile it for the device, else None; the log says why not."""
    if device.type == "cpu" or triton_is_off() or importlib.util.find_spec("triton") is None:
        return None
    # Reasons for an error differ: no C compiler, no Python headers, or a GPU that Triton does not know.
    try:
        from . import triton_kernels as kernels

        x = torch.ones(1, 1, 1, 64, device=device, dtype=dtype if dtype.itemsize > 1 else torch.float16)
        rope, modulation = torch.ones(1, 1, 1, 32, 2, 2, device=device), x.new_ones(1, 6 * 64)
        kernels.norm_rotate_(x, x.flatten(), x.flatten(), 1e-6, rope)
        kernels.norm_modulate(x[0], x.flatten(), x.flatten(), 1e-5, modulation, 0)
    except Exception as error:
        log.info("Triton can't be used (%s): norms run in PyTorch's kernels, which are slower", error)
        return None
    return kernels


def comfy_rotation():
    """`blocks.rotate`, by comfy-kitchen's fused kernel on the GPU where this ComfyUI has one."""
    kernel = rotates_in_place()
    if kernel is None:
        return rotate

    def fused(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        return kernel(x, rope) if x.is_cuda and may_overwrite(x) else rotate(x, rope)

    return fused

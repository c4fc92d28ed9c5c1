"""The fastest kernels that a machine has for what the blocks take as functions: attention, and norm and rotation."""

import importlib.util
import logging

import torch
from comfy.ldm.modules.attention import attention_pytorch, optimized_attention

from . import blocks
from .blocks import may_overwrite, rotate, sdpa

try:
    import comfy.quant_ops as quant_ops  # newer hosts, with comfy-kitchen's kernels
except ImportError:
    quant_ops = None

log = logging.getLogger(__name__)


def host_attention(q, k, v, heads: int, transformer_options: dict | None = None) -> torch.Tensor:
    """The host's attention, with the overrides it finds in transformer_options. B heads N d -> B N (heads d).

    Where that is PyTorch's, PyTorch chooses the kernel: the host puts flash attention first, and on an H100 cuDNN's
    takes 0.74 of its time at 17776 tokens (benchmarks/gpu).
    """
    if optimized_attention is attention_pytorch and "optimized_attention_override" not in (transformer_options or {}):
        return sdpa(q, k, v, heads)
    return optimized_attention(q, k, v, heads, skip_reshape=True, transformer_options=transformer_options)


def host_norms(device: torch.device) -> dict:
    """`blocks.norm_rotate` and `blocks.norm_modulate` for a device, by the fastest kernels that this machine has."""
    rotation, triton = host_rotation(), triton_kernels(device)

    def usable(x: torch.Tensor, norm: torch.nn.Module) -> bool:
        given = x.device == device and x.is_contiguous() and may_overwrite(x)
        return triton is not None and given and is_at_hand(norm, device)

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


def is_at_hand(layer: torch.nn.Module, device: torch.device) -> bool:
    """Whether a layer's weights can be used as they are: on the device, and not patched or cast for a call."""
    changed = any(getattr(layer, f"{name}_function", None) for name in ("weight", "bias"))
    return layer.weight.device == device and not changed and "forward" not in vars(layer)


def triton_kernels(device: torch.device):
    """The module `host_triton` where Triton compiles it for the device, else None; the log says why not."""
    if device.type == "cpu" or importlib.util.find_spec("triton") is None:
        return None
    try:
        from . import host_triton as kernels

        x = torch.ones(1, 1, 1, 64, device=device)
        kernels.norm_rotate_(x, x.flatten(), x.flatten(), 1e-6, x.new_ones(1, 1, 1, 32, 2, 2))
    except (
        Exception
    ) as error:  # no compiler, no Python headers, a GPU that it does not know: all are of their own kind
        log.info("Triton can't be used (%s): norms run in PyTorch's kernels, which are slower", error)
        return None
    return kernels


def host_rotation():
    """`blocks.rotate`, by a fused kernel of comfy-kitchen's for the GPU where this ComfyUI has one."""
    kitchen = getattr(quant_ops, "ck", None)
    backends = kitchen.list_backends() if hasattr(kitchen, "apply_rope1_") else {}
    if not any(
        name != "eager" and not backend["disabled"] and "apply_rope1_" in backend["capabilities"]
        for name, backend in backends.items()
    ):
        return rotate

    def fused(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
        return kitchen.apply_rope1_(x, rope) if x.is_cuda and may_overwrite(x) else rotate(x, rope)

    return fused

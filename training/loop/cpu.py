"""What a CPU has for bfloat16."""

import logging

import torch

log = logging.getLogger(__name__)

BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "avx_ne_convert")  # of x86


def has_amx() -> bool:
    """Whether this CPU has AMX (matrix units for bfloat16), as PyTorch 2.6 and newer can tell."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def warn_if_bfloat16_is_slow() -> None:
    """Warn where bfloat16 is slower than float32: on an x86 CPU without instructions for it, if PyTorch can tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities.get("architecture") == "x86_64" and not any(capabilities.get(unit) for unit in BFLOAT16_UNITS):
        log.warning(
            'this CPU has no bfloat16 instructions: mixed_precision = "bf16" is slower here than "no". Write '
            'mixed_precision = "no" in the configuration'
        )

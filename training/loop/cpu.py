"""What bfloat16 needs of a CPU."""

import logging

import torch

log = logging.getLogger(__name__)

BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "avx_ne_convert", "bf16", "sve_bf16")  # of x86 and ARM


def has_amx() -> bool:
    """Whether this CPU has AMX (matrix units for bfloat16), as PyTorch 2.6 and newer can tell."""
    return getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()


def warn_if_bfloat16_is_slow() -> None:
    """Warn on a CPU without bfloat16 instructions, where PyTorch can tell. Bfloat16 is slower than float32 there."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    if capabilities and not any(capabilities.get(name) for name in BFLOAT16_UNITS):
        log.warning(
            'this CPU has no bfloat16 instructions: mixed_precision = "bf16" is several times slower here than "no". '
            'Write mixed_precision = "no" in the configuration'
        )

"""Triton kernels for two steps that are slow in PyTorch: LayerNorm over 64 channels, and LayerNorm with modulation.

This module is imported only where Triton is installed. On an H100, for the 5B at 480x720x49 with guidance, norm and
rotation of q take 2.24 ms as a LayerNorm and comfy-kitchen's rotation, and 0.16 ms here (benchmarks/gpu). A call
has 84 of them.
"""

import torch
import triton
import triton.language as tl

ROWS = 16  # of each program; with one warp the fastest of 8 to 128 rows and 1 to 8 warps


@triton.jit
def _norm_rotate(
    x_ptr, weight_ptr, bias_ptr, rope_ptr, rows, tokens, heads, eps,
    WITH_ROPE: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row[:, None] < rows
    channel = tl.arange(0, WIDTH)
    place = x_ptr + row[:, None].to(tl.int64) * WIDTH + channel[None, :]
    x = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    x -= tl.sum(x, axis=1)[:, None] / WIDTH
    x *= tl.rsqrt(tl.sum(x * x, axis=1) / WIDTH + eps)[:, None]
    x *= tl.load(weight_ptr + channel).to(tl.float32)[None, :]
    x += tl.load(bias_ptr + channel).to(tl.float32)[None, :]
    if WITH_ROPE:
        token = (row // heads) % tokens
        matrix = rope_ptr + (token[:, None] * (WIDTH // 2) + tl.arange(0, WIDTH // 2)[None, :]) * 4
        cos = tl.load(matrix, mask=inside, other=0.0)  # [[cos, -sin], [sin, cos]]
        sin = tl.load(matrix + 2, mask=inside, other=0.0)
        even, odd = tl.split(tl.reshape(x, (ROWS, WIDTH // 2, 2)))
        x = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (ROWS, WIDTH))
    tl.store(place, x, mask=inside)


def norm_rotate_(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, rope: torch.Tensor | None
) -> torch.Tensor:
    """LayerNorm over the channels of each head, then rotation by position, in float32 and in place.

    Args:
        x: B N heads d, contiguous; d a power of two.
        weight, bias: d.
        rope: 1 1 N d/2 2 2 float32, contiguous, see `blocks.rotation_matrices`; None is no rotation.
    """
    batch, tokens, heads, width = x.shape
    rows = batch * tokens * heads
    with torch.cuda.device_of(x):  # Triton launches on the current one
        _norm_rotate[(triton.cdiv(rows, ROWS),)](
            x, weight, bias, x if rope is None else rope, rows, tokens, heads, eps, rope is not None, width, ROWS,
            num_warps=1,
        )  # fmt: skip
    return x


@triton.jit
def _norm_modulate(
    x_ptr, out_ptr, weight_ptr, bias_ptr, modulation_ptr, modulation_stride, tokens, text_tokens, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, BLOCK)
    inside = channel < WIDTH
    x = tl.load(x_ptr + row * WIDTH + channel, mask=inside, other=0.0).to(tl.float32)
    x = tl.where(inside, x - tl.sum(x, axis=0) / WIDTH, 0.0)
    x *= tl.rsqrt(tl.sum(x * x, axis=0) / WIDTH + eps)
    x *= tl.load(weight_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    of_text = (row % tokens) < text_tokens
    shift_ptr = modulation_ptr + (row // tokens) * modulation_stride + tl.where(of_text, 3 * WIDTH, 0) + channel
    x *= 1 + tl.load(shift_ptr + WIDTH, mask=inside, other=0.0).to(tl.float32)
    x += tl.load(shift_ptr, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * WIDTH + channel, x, mask=inside)


def norm_modulate(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, modulation: torch.Tensor, text_tokens: int
) -> torch.Tensor:
    """LayerNorm over channels, then scale and shift, in float32; the result has the dtype of ``x``.

    Args:
        x: B N C, contiguous, text first.
        weight, bias: C.
        modulation: B 6C, see `blocks.norm_modulate`; its rows are contiguous.
    """
    batch, tokens, width = x.shape
    out = torch.empty_like(x)
    with torch.cuda.device_of(x):
        _norm_modulate[(batch * tokens,)](
            x, out, weight, bias, modulation, modulation.stride(0), tokens, text_tokens, eps, width,
            triton.next_power_of_2(width), num_warps=8,
        )  # fmt: skip
    return out

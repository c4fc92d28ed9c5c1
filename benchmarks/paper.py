"""What a step costs, and the least time that a GPU can take for it, computed: nothing runs on a GPU.

The GPUs' figures are their makers': dense bf16 with float32 sums, and memory bandwidth.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..model_loading.networks.config import TEXT_TOKENS, TransformerConfig, goes_to_fp8
from ..model_loading.networks.tiling import tile_spans
from ..model_loading.networks.transformer import CogVideoXTransformer
from ..tools.pack import ROOT
from .traced import (
    CONFIGS,
    KINDS,
    SIZES,
    TILE,
    copies_of_a_block,
    decode_call,
    diffusers_call,
    trace_decode,
    trace_transformer,
    transformer_call,
)

PAGE = ROOT / "benchmarks" / "cost.md"
OVERLAP = 8  # latents: 64 pixels, the nodes' default
TOKENS = (13312, 29952, 53248)  # the phases of the CogVideoX-Fun V1 report


@dataclasses.dataclass(frozen=True)
class GPU:
    name: str
    flops: float  # a second, bf16
    bandwidth: float  # bytes a second


GPUS = (GPU("H100 SXM", 989e12, 3.35e12), GPU("RTX 4090", 165e12, 1.008e12))

# what `triton_kernels` move: each tensor is read and written once
TRITON = {
    "norm_rotate": lambda x, _norm, _rope: x.mul_(1).transpose(1, 2),
    "norm_modulate": lambda x, _norm, _modulation, _text_tokens: x.clone(),
}


def call_flops(config: TransformerConfig, video_tokens: int) -> float:
    """Multiplications and additions of one call: linear layers 24 N d^2 and attention 4 N^2 d a block."""
    tokens, dim = video_tokens + TEXT_TOKENS, config.dim
    return config.num_layers * (24 * tokens * dim**2 + 4 * tokens**2 * dim)


def weight_bytes(config: TransformerConfig, element: int = 2) -> int:
    """Bytes of the weights in bf16, or in fp8 where ``element`` is 1: what fp8 is not for stays in bf16."""
    with torch.device("meta"):
        parameters = CogVideoXTransformer(config).named_parameters()
    return sum(p.numel() * (element if goes_to_fp8(name, p.shape, config) else 2) for name, p in parameters)


def call_bytes(config: TransformerConfig, video_tokens: int, copies: float, element: int = 2) -> float:
    """Bytes that one call moves: the weights once, and in every block so many copies of the token stream."""
    stream = (video_tokens + TEXT_TOKENS) * config.dim * element
    return weight_bytes(config, element) + copies * config.num_layers * stream


def table(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def copies_table() -> str:
    """Markdown: copies of the token stream that a block moves, by kind of operation; guidance in one call."""
    rows = {
        "5B, ours": ("5B", transformer_call, {}),
        "5B, ours, with the Triton kernels": ("5B", transformer_call, TRITON),
        "5B, diffusers": ("5B", diffusers_call, {}),
        "2B, ours": ("2B", transformer_call, {}),
        "2B, ours, with the Triton kernels": ("2B", transformer_call, TRITON),
        "2B, diffusers": ("2B", diffusers_call, {}),
    }
    lines = []
    for what, (name, make, options) in rows.items():
        found = copies_of_a_block(make, name, batch=2, **options)
        lines.append((what, *(f"{value:.1f}" for value in (*found.values(), sum(found.values())))))
    return table(("block", *KINDS, "all"), lines)


def steps_table() -> str:
    """Markdown: cost of a step (two calls, guidance) by model and token length, and each GPU's limit."""
    lines = []
    for name, config in CONFIGS.items():
        copies = sum(copies_of_a_block(transformer_call, name, **TRITON).values())
        for tokens in TOKENS:
            flops, moved = 2 * call_flops(config, tokens), 2 * call_bytes(config, tokens, copies)
            limits = [f"{max(flops / gpu.flops, moved / gpu.bandwidth):.2f} s" for gpu in GPUS]
            lines.append((name, tokens, f"{flops / 1e12:.0f}", f"{moved / 1e9:.0f}", *limits))
    limits = [f"{gpu.name}, at least" for gpu in GPUS]
    return table(("model", "tokens", "TFLOP a step", "GB moved a step", *limits), lines)


def decode_flops(latent: tuple[int, int, int]) -> int:
    """Multiplications and additions of decoding a latent of T h w as a whole, by PyTorch's own counter."""
    run = decode_call(latent)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def decode_table() -> str:
    """Markdown: VAE decode at 480x720x49, whole and in tiles of 256 pixels with the default overlap of 64."""
    t, h, w = latent = SIZES["480x720x49"]
    tiles = [[span.stop - span.start for span in tile_spans(n, TILE, OVERLAP)] for n in (h, w)]
    sizes = Counter((high, wide) for high in tiles[0] for wide in tiles[1])
    area = sum(high * wide * count for (high, wide), count in sizes.items()) / (h * w)
    tiled = sum(decode_flops((t, *size)) * count for size, count in sizes.items())
    rows = (
        ("whole frames", 1, 1.0, decode_flops(latent), trace_decode(latent)),
        ("tiles of 256 pixels", sizes.total(), area, tiled, trace_decode(latent, TILE)),
    )
    head = "VAE decode, 480x720x49", "tiles", "area that is computed", "TFLOP", "memory"
    lines = [
        (what, count, f"{share:.2f}", f"{flops / 1e12:.0f}", f"{peak / 1e9:.1f} GB")
        for what, count, share, flops, peak in rows
    ]
    return table(head, lines)


def memory_table() -> str:
    """Markdown: bytes on the GPU by model, size and storage, weights whole; the VAE decodes when they have left."""
    lines = []
    for name, config in CONFIGS.items():
        whole, half = weight_bytes(config) / 1e9, weight_bytes(config, 1) / 1e9
        for size, latent in SIZES.items():
            active = trace_transformer(name, latent, layers=2) / 1e9
            values = (whole, half, active, whole + active, half + active)
            lines.append((name, size, *(f"{value:.1f} GB" for value in values)))
    head = "model", "size", "weights bf16", "weights fp8", "activations of a call", "sum bf16", "sum fp8"
    return table(head, lines)


def page() -> str:
    """The text of docs/cost.md."""
    tables = {"copies": copies_table(), "steps": steps_table(), "memory": memory_table(), "decode": decode_table()}
    return PAGE.read_text(encoding="utf-8").format(**tables)

"""What a step costs on paper, and the least time that a card can take for it: arithmetic, nothing is run on a card.

The cards' figures are their makers': dense bf16 with float32 sums, and memory bandwidth.
"""

import dataclasses

import torch

from ..model_loading.config import TEXT_TOKENS, TransformerConfig
from ..model_loading.transformer import CogVideoXTransformer
from .traced import CONFIGS, SIZES, TILE, trace_decode, trace_transformer

TOKENS = (13312, 29952, 53248)  # the phases of the CogVideoX-Fun V1 report


@dataclasses.dataclass(frozen=True)
class Card:
    name: str
    flops: float  # a second, bf16
    bandwidth: float  # bytes a second


CARDS = (Card("H100 SXM", 989e12, 3.35e12), Card("RTX 4090", 165e12, 1.008e12))


def call_flops(config: TransformerConfig, video_tokens: int) -> float:
    """Multiplications and additions of one call: linear layers 24 N d^2 and attention 4 N^2 d a block."""
    tokens, dim = video_tokens + TEXT_TOKENS, config.dim
    return config.num_layers * (24 * tokens * dim**2 + 4 * tokens**2 * dim)


def weight_bytes(config: TransformerConfig, element: int = 2) -> int:
    with torch.device("meta"):
        return element * sum(parameter.numel() for parameter in CogVideoXTransformer(config).parameters())


def call_bytes(config: TransformerConfig, video_tokens: int, element: int = 2) -> float:
    """Bytes that one call moves at least: the weights once, and each block's reads and writes of the token stream.

    Thirty-two copies a block: 20 in norms, modulation, q, k, v, rotation, attention and gate, 12 in the feed-forward.
    """
    stream = (video_tokens + TEXT_TOKENS) * config.dim * element
    return weight_bytes(config, element) + 32 * config.num_layers * stream


def steps_table() -> str:
    """Markdown: cost of a step (two calls, guidance) by model and token length, and each card's limit."""
    head = ["model", "tokens", "TFLOP a step", "GB moved a step", *(f"{card.name}, at least" for card in CARDS)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, config in CONFIGS.items():
        for tokens in TOKENS:
            flops, moved = 2 * call_flops(config, tokens), 2 * call_bytes(config, tokens)
            limits = [f"{max(flops / card.flops, moved / card.bandwidth):.2f} s" for card in CARDS]
            lines.append(f"| {name} | {tokens} | {flops / 1e12:.0f} | {moved / 1e9:.0f} | {' | '.join(limits)} |")
    return "\n".join(lines) + "\n"


def memory_table() -> str:
    """Markdown: bytes on the card by model, size and storage, weights whole; the VAE decodes when they have left."""
    head = ["model", "size", "weights bf16", "weights fp8", "activations of a call", "sum bf16", "sum fp8"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, config in CONFIGS.items():
        whole, half = weight_bytes(config) / 1e9, weight_bytes(config, 1) / 1e9
        for size, latent in SIZES.items():
            active = trace_transformer(name, latent, layers=2).peak / 1e9
            values = (whole, half, active, whole + active, half + active)
            lines.append(f"| {name} | {size} | {' | '.join(f'{value:.1f} GB' for value in values)} |")
    decode = trace_decode(SIZES["480x720x49"]).peak / 1e9
    tiled = trace_decode(SIZES["480x720x49"], TILE).peak / 1e9
    return "\n".join(lines) + f"\n\nVAE decode at 480x720: {decode:.1f} GB, in tiles of 256 pixels {tiled:.1f} GB.\n"

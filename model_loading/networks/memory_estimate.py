"""The memory of one call beside the weights, for ComfyUI to plan with, fitted to traced runs (test_memory.py).

Attention's own workspace is not counted, only its output.
"""

import math
from collections.abc import Sequence

from ...sampling.geometry import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, legal_length
from .config import TransformerConfig, VAEConfig
from .vae import DECODE_LATENTS, encode_chunks

SPARE = 1.1  # declared over traced
DECODE_SPARE = 1.3  # the same of decoding: cuDNN's own memory was a quarter more on an H100 (benchmarks/gpu)


def transformer_bytes(
    config: TransformerConfig, shape: Sequence[int], element: int, packs_inputs: bool = False
) -> float:
    """One call of the transformer.

    Six copies of the token stream: in the feed-forward the stream, its update, and four in between.

    Args:
        shape: of the sampled latent, B C T h w.
        element: bytes of a number.
        packs_inputs: matrices are multiplied in fp8, so what is in between is there once more, a byte a number.
    """
    patch = config.patch_size**2 * (config.patch_size_t or 1)
    tokens = math.prod(shape[2:]) / patch + config.max_text_seq_length
    return SPARE * shape[0] * tokens * config.dim * (6 * element + 4 * packs_inputs)


def decode_bytes(config: VAEConfig, shape: Sequence[int], element: int) -> float:
    """Decoding the largest chunk of a latent B C T h w: the causal caches, and six copies of its frames."""
    latent_t = min(shape[2] - 1, DECODE_LATENTS)
    frames = max(1, latent_t * TEMPORAL_COMPRESSION)
    pixels = shape[3] * shape[4] * SPATIAL_COMPRESSION**2
    return DECODE_SPARE * (32 + 6 * frames) * pixels * config.block_out_channels[0] * element


def encode_bytes(config: VAEConfig, shape: Sequence[int], element: int) -> float:
    """Encoding the first and longest chunk of a video B C F H W: the causal caches, and five copies of its frames."""
    frames = encode_chunks(legal_length(shape[2]))[0].stop
    return SPARE * (16 + 4.9 * frames) * shape[3] * shape[4] * config.block_out_channels[0] * element


def tiny_decode_bytes(widths: Sequence[int], shape: Sequence[int], element: int) -> float:
    """Decoding the largest chunk of a latent B C T h w with a small decoder: two copies of its frames at the end."""
    frames = max(1, min(shape[2] - 1, DECODE_LATENTS)) * TEMPORAL_COMPRESSION
    pixels = shape[3] * shape[4] * SPATIAL_COMPRESSION**2
    return DECODE_SPARE * 2.3 * frames * pixels * max(widths[2:]) * element

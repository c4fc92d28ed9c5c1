"""Attention as two matrix products, for training in bfloat16 on a CPU.

There the gradient of PyTorch's fused kernel takes two to three times as long at the nano model's lengths (96 and 336
tokens).
"""

import torch
from einops import rearrange


def product_attention(q, k, v, heads: int, transformer_options: dict | None = None) -> torch.Tensor:
    """softmax(q k^T / sqrt(d)) v, like `model_loading.networks.blocks.sdpa`. q, k, v: B heads N d -> B N (heads d)."""
    batch, *_, dim = q.shape
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=dim**-0.5)
    return rearrange(scores.softmax(-1) @ v, "(b h) n d -> b n (h d)", b=batch)

"""The layers of the CogVideoX transformer, their parameters named as on the hub.

Text and video tokens run through them as one sequence, text first.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..sampling import positions
from .config import TransformerConfig

# What is computed at once, for small peaks: the rotation takes four times the bytes of what it turns, and the
# feed-forward four. Slices of this size still fill a card.
HEADS_AT_ONCE = 6
TOKENS_AT_ONCE = 4096


def sdpa(q, k, v, heads: int, transformer_options: dict | None = None) -> torch.Tensor:
    """Attention without a host. q, k, v: B heads N d -> B N (heads d)."""
    if q.device.type == "cpu":  # its kernel reads k and v again for every slice of q: 4 % less time
        k, v = k.contiguous(), v.contiguous()
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def timestep_embedding(timestep: torch.Tensor, dim: int) -> torch.Tensor:
    """[B] timesteps of 0..999 -> [B, dim]: cosines, then sines (diffusers' ``flip_sin_to_cos``), float32."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * positions.THETA ** (-exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotate(x: torch.Tensor, rope: torch.Tensor, start: int) -> torch.Tensor:
    """Turn pairs of channels of the tokens from ``start`` on by their position; in place where no gradient is needed.

    x: B heads N d; rope: (N - start) d/2 complex64.
    """
    if x.requires_grad:
        return torch.cat([x[:, :, :start], turned(x[:, :, start:], rope)], dim=2)
    if x.dtype == torch.float32:
        as_pairs(x[:, :, start:]).mul_(rope)
        return x
    for part in x[:, :, start:].split(HEADS_AT_ONCE, dim=1):
        part.copy_(turned(part, rope))
    return x


def as_pairs(x: torch.Tensor) -> torch.Tensor:
    """Pairs of channels as complex numbers, a view: ... d float32 -> ... d/2 complex64."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


def turned(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """x: B heads N d, rope: N d/2 complex64; pairs of channels as complex numbers, multiplied in float32."""
    return torch.view_as_real(as_pairs(x.float()) * rope).flatten(-2).to(x.dtype)


def needs_grad(*tensors: torch.Tensor) -> bool:
    """Whether an operation in place would destroy what a gradient needs."""
    return any(tensor.requires_grad for tensor in tensors)


class PatchEmbed(nn.Module):
    """Latents and text features to one sequence of tokens."""

    def __init__(self, config: TransformerConfig, operations, **factory):
        super().__init__()
        self.patch_t = config.patch_size_t
        if self.patch_t is None:
            self.proj = operations.Conv2d(
                config.in_channels, config.dim, kernel_size=2, stride=2, bias=config.patch_bias, **factory
            )
        else:  # V1.5: a linear layer over patches of 2 x 2 x 2, which always has a bias
            self.proj = operations.Linear(config.in_channels * self.patch_t * 4, config.dim, **factory)
        self.text_proj = operations.Linear(config.text_embed_dim, config.dim, **factory)
        if config.use_learned_positional_embeddings:
            tokens = config.max_text_seq_length + math.prod(config.base_grid)
            self.pos_embedding = nn.Parameter(torch.empty(1, tokens, config.dim, **factory))

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        batch = x.shape[0]
        if self.patch_t is None:
            x = self.proj(rearrange(x, "b c t h w -> (b t) c h w"))
            image = rearrange(x, "(b t) c h w -> b (t h w) c", b=batch)
        else:
            image = self.proj(
                rearrange(x, "b c (t pt) (h ph) (w pw) -> b (t h w) (c pt ph pw)", pt=self.patch_t, ph=2, pw=2)
            )
        return self.text_proj(context), image


class TimeEmbedding(nn.Module):
    def __init__(self, dim: int, time_dim: int, operations, **factory):
        super().__init__()
        self.linear_1 = operations.Linear(dim, time_dim, **factory)
        self.linear_2 = operations.Linear(time_dim, time_dim, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class LayerNormZero(nn.Module):
    """Layer norm whose shift, scale and gate follow the timestep, separately for text and video."""

    def __init__(self, config: TransformerConfig, operations, **factory):
        super().__init__()
        self.linear = operations.Linear(config.time_embed_dim, 6 * config.dim, **factory)
        self.norm = operations.LayerNorm(config.dim, eps=config.norm_eps, **factory)

    def forward(self, x: torch.Tensor, modulation: torch.Tensor, text_tokens: int):
        """x: B N C, text first; modulation: B 6C, what the linear makes of the timestep.

        Returns the modulated tokens and the two gates (text, image), B 1 C each.
        """
        shift, scale, gate, text_shift, text_scale, text_gate = modulation[:, None].chunk(6, dim=-1)
        x = self.norm(x)
        text, image = x[:, :text_tokens], x[:, text_tokens:]
        if needs_grad(x, shift):
            x = torch.cat([text * (1 + text_scale) + text_shift, image * (1 + scale) + shift], dim=1)
        else:
            text.mul_(1 + text_scale).add_(text_shift)
            image.mul_(1 + scale).add_(shift)
        return x, (text_gate, gate)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig, operations, attention, **factory):
        super().__init__()
        self.heads = config.num_attention_heads
        self.attention = attention
        dim, head_dim, bias = config.dim, config.attention_head_dim, config.attention_bias
        self.to_q = operations.Linear(dim, dim, bias=bias, **factory)
        self.to_k = operations.Linear(dim, dim, bias=bias, **factory)
        self.to_v = operations.Linear(dim, dim, bias=bias, **factory)
        self.norm_q = operations.LayerNorm(head_dim, eps=1e-6, **factory)
        self.norm_k = operations.LayerNorm(head_dim, eps=1e-6, **factory)
        self.to_out = nn.ModuleList([operations.Linear(dim, dim, **factory)])

    def project(self, x: torch.Tensor, rope: torch.Tensor | None, text_tokens: int) -> tuple[torch.Tensor, ...]:
        """q, k and v of B N C tokens, B heads N d."""
        q = self.norm_q(self.to_q(x).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        k = self.norm_k(self.to_k(x).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        v = self.to_v(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if rope is not None:
            q, k = rotate(q, rope, text_tokens), rotate(k, rope, text_tokens)
        return q, k, v

    def forward(self, q, k, v, text_tokens: int, transformer_options: dict) -> torch.Tensor:
        """Attend, B heads N d -> B N C."""
        out = self.attention(q, k, v, self.heads, transformer_options=transformer_options)
        img_slice = [text_tokens, q.shape[2]]
        for patch in transformer_options.get("patches", {}).get("attn1_output_patch", ()):
            out = patch(out, {**transformer_options, "img_slice": img_slice})
        return out


class FeedForward(nn.Module):
    """Parameters net.0.proj and net.2, as diffusers names them."""

    def __init__(self, dim: int, operations, **factory):
        super().__init__()
        first = nn.Module()
        first.proj = operations.Linear(dim, 4 * dim, **factory)
        self.net = nn.ModuleList([first, nn.Identity(), operations.Linear(4 * dim, dim, **factory)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.net[0].proj(x)
        if needs_grad(x):
            x = F.gelu(x, approximate="tanh")
        else:
            torch.ops.aten.gelu_(x, approximate="tanh")
        return self.net[2](x)


def gated_add_(x: torch.Tensor, update: torch.Tensor, gates: tuple, text_tokens: int) -> torch.Tensor:
    """x += gate * update for text and video tokens, in place where no gradient needs the old value."""
    text_gate, gate = gates
    text, image = slice(0, text_tokens), slice(text_tokens, None)
    if needs_grad(x, update):
        parts = (x[:, text], update[:, text], text_gate), (x[:, image], update[:, image], gate)
        return torch.cat([torch.addcmul(*part) for part in parts], dim=1)
    x[:, text].addcmul_(update[:, text], text_gate)
    x[:, image].addcmul_(update[:, image], gate)
    return x


class Block(nn.Module):
    """Attention, then feed-forward, each on normed tokens and added back through a gate.

    The stream ``x`` is the caller's own to overwrite: without gradients it is updated in place, slice by slice.
    """

    def __init__(self, config: TransformerConfig, operations, attention, **factory):
        super().__init__()
        self.norm1 = LayerNormZero(config, operations, **factory)
        self.attn1 = Attention(config, operations, attention, **factory)
        self.norm2 = LayerNormZero(config, operations, **factory)
        self.ff = FeedForward(config.dim, operations, **factory)

    @property
    def modulations(self) -> tuple[nn.Module, nn.Module]:
        """The linears that make shift, scale and gate of the timestep: 14 % of a 5B's weights, 21 % of a 2B's."""
        return self.norm1.linear, self.norm2.linear

    def forward(self, x, modulation: tuple, rope, text_tokens: int, transformer_options: dict) -> torch.Tensor:
        """x: B N C; modulation: B 6C for each norm."""
        normed, gates = self.norm1(x, modulation[0], text_tokens)
        q, k, v = self.attn1.project(normed, rope, text_tokens)
        del normed  # each copy of the stream counts where memory is short
        attended = self.attn1(q, k, v, text_tokens, transformer_options)
        del q, k, v
        x = gated_add_(x, self.attn1.to_out[0](attended), gates, text_tokens)
        del attended
        normed, gates = self.norm2(x, modulation[1], text_tokens)
        return self.feed_forward(x, normed, gates, text_tokens)

    def feed_forward(self, x, normed, gates: tuple, text_tokens: int) -> torch.Tensor:
        if torch.is_grad_enabled():
            return gated_add_(x, self.ff(normed), gates, text_tokens)
        for start in range(0, x.shape[1], TOKENS_AT_ONCE):
            part = slice(start, start + TOKENS_AT_ONCE)
            gated_add_(x[:, part], self.ff(normed[:, part]), gates, max(text_tokens - start, 0))
        return x


class NormOut(nn.Module):
    def __init__(self, config: TransformerConfig, operations, **factory):
        super().__init__()
        self.linear = operations.Linear(config.time_embed_dim, 2 * config.dim, **factory)
        self.norm = operations.LayerNorm(config.dim, eps=config.norm_eps, **factory)

    def forward(self, x: torch.Tensor, vec: torch.Tensor) -> torch.Tensor:
        shift, scale = self.linear(F.silu(vec))[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift

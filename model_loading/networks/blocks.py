"""The layers of the CogVideoX transformer, their parameters named as on the hub.

Text and video tokens run through them as one sequence, text first.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ...sampling import positions
from .config import TransformerConfig


def sdpa(q, k, v, heads: int, transformer_options: dict | None = None) -> torch.Tensor:
    """PyTorch's attention. q, k, v: B heads N d -> B N (heads d)."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")


def timestep_embedding(timestep: torch.Tensor, dim: int) -> torch.Tensor:
    """[B] timesteps of 0..999 -> [B, dim]: cosines, then sines (diffusers' ``flip_sin_to_cos``), float32."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * positions.THETA ** (-exponent)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def rotate(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of channels by the positions of their tokens, in float32; in place where `may_overwrite`.

    In real arithmetic, because inductor and MPS have no complex numbers.

    Args:
        x: B heads N d.
        rope: 1 1 N d/2 2 2 float32, a rotation matrix for each pair, see `rotation_matrices`.
    """
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    if not may_overwrite(x):
        first = rope[..., 0, 0] * even + rope[..., 0, 1] * odd
        second = rope[..., 1, 0] * even + rope[..., 1, 1] * odd
        return torch.stack([first, second], dim=-1).flatten(-2).to(x.dtype)
    from_odd, from_even = rope[..., 0, 1] * odd, rope[..., 1, 0] * even
    torch.addcmul(from_odd, even, rope[..., 0, 0], out=even)
    torch.addcmul(from_even, odd, rope[..., 1, 1], out=odd)
    return x


def norm_rotate(x: torch.Tensor, norm: nn.Module, rope: torch.Tensor | None) -> torch.Tensor:
    """Norm each head's channels and rotate them by position, B N heads d -> B heads N d; ``x`` may be overwritten.

    Args:
        norm: a LayerNorm over d.
        rope: see `rotate`; None is no rotation.
    """
    x = norm(x).transpose(1, 2)  # BNHD -> BHND
    return x if rope is None else rotate(x, rope)


def norm_modulate(x: torch.Tensor, norm: nn.Module, modulation: torch.Tensor, text_tokens: int) -> torch.Tensor:
    """Norm tokens and scale and shift them, those of the text by parameters of their own.

    Args:
        x: B N C, text first.
        norm: a LayerNorm over C.
        modulation: B 6C: shift, scale and gate of the video, then of the text.
    """
    shift, scale, _, text_shift, text_scale, _ = modulation[:, None].chunk(6, dim=-1)
    x = norm(x)
    parts = (text_shift, x[:, :text_tokens], 1 + text_scale), (shift, x[:, text_tokens:], 1 + scale)
    if not may_overwrite(x, shift):
        return torch.cat([torch.addcmul(*part) for part in parts], dim=1)
    for part in parts:
        torch.addcmul(*part, out=part[1])
    return x


def rotation_matrices(rotations: torch.Tensor) -> torch.Tensor:
    """[N, d/2] unit complex numbers -> 1 1 N d/2 2 2 float32, the layout of ComfyUI's own models and fused kernel."""
    cos, sin = rotations.real, rotations.imag
    return torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))[None, None]


def after_text(rope: torch.Tensor, text_tokens: int) -> torch.Tensor:
    """The rotations of text and video tokens, from those of the video tokens. Text is not rotated."""
    identity = torch.eye(2, device=rope.device).expand(1, 1, text_tokens, rope.shape[3], 2, 2)
    return torch.cat([identity, rope], dim=2)


def may_overwrite(*tensors: torch.Tensor) -> bool:
    """Whether to compute in place.

    Not where a gradient needs the old value. Not under torch.compile, which fuses better out of place. Not on MPS,
    where addcmul into a part of a tensor was wrong before PyTorch 2.4.
    """
    kept = any(tensor.requires_grad or tensor.device.type == "mps" for tensor in tensors)
    return not (kept or torch.compiler.is_compiling())


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
    """AdaLN: a layer norm whose shift, scale and gate follow the timestep, separately for text and video."""

    def __init__(self, config: TransformerConfig, operations, norm_modulate, **factory):
        super().__init__()
        self.linear = operations.Linear(config.time_embed_dim, 6 * config.dim, **factory)
        self.norm = operations.LayerNorm(config.dim, eps=config.norm_eps, **factory)
        self.norm_modulate = norm_modulate

    def forward(self, x: torch.Tensor, temb: torch.Tensor, text_tokens: int):
        """x: B N C, text first; temb: B time_embed_dim, after SiLU.

        Returns the modulated tokens and the two gates (text, image), B 1 C each.
        """
        modulation = self.linear(temb)
        _, _, gate, _, _, text_gate = modulation[:, None].chunk(6, dim=-1)
        return self.norm_modulate(x, self.norm, modulation, text_tokens), (text_gate, gate)


class Attention(nn.Module):
    def __init__(self, config: TransformerConfig, operations, attention, norm_rotate, **factory):
        super().__init__()
        self.heads = config.num_attention_heads
        self.attention, self.norm_rotate = attention, norm_rotate
        dim, head_dim, bias = config.dim, config.attention_head_dim, config.attention_bias
        self.to_q = operations.Linear(dim, dim, bias=bias, **factory)
        self.to_k = operations.Linear(dim, dim, bias=bias, **factory)
        self.to_v = operations.Linear(dim, dim, bias=bias, **factory)
        self.norm_q = operations.LayerNorm(head_dim, eps=1e-6, **factory)
        self.norm_k = operations.LayerNorm(head_dim, eps=1e-6, **factory)
        self.to_out = nn.ModuleList([operations.Linear(dim, dim, **factory)])

    def project(self, x: torch.Tensor, rope: torch.Tensor | None, options: dict) -> tuple[torch.Tensor, ...]:
        """q, k and v of B N C tokens, B heads N d; q and k normed and rotated."""

        def by_heads(linear: nn.Module) -> torch.Tensor:
            return linear(x).unflatten(-1, (self.heads, -1))

        patches = options.get("patches", {}).get("attn1_patch", ())
        rotation = None if patches else rope  # a patch takes what is not rotated yet
        q = self.norm_rotate(by_heads(self.to_q), self.norm_q, rotation)
        k = self.norm_rotate(by_heads(self.to_k), self.norm_k, rotation)
        v = by_heads(self.to_v).transpose(1, 2)
        for patch in patches:
            out = patch(q, k, v, pe=rope, attn_mask=None, extra_options=options)
            q, k, v, rope = (out.get(name, kept) for name, kept in (("q", q), ("k", k), ("v", v), ("pe", rope)))
        if patches and rope is not None:  # of clones: a patch may hold what it gave
            q, k = rotate(q.clone(), rope), rotate(k.clone(), rope)
        return q, k, v

    def forward(self, q, k, v, options: dict) -> torch.Tensor:
        """Attend, B heads N d -> B N C."""
        out = self.attention(q, k, v, self.heads, transformer_options=options)
        for patch in options.get("patches", {}).get("attn1_output_patch", ()):
            out = patch(out, options)
        return out


class FeedForward(nn.Module):
    """Parameters net.0.proj and net.2, as diffusers names them."""

    def __init__(self, dim: int, operations, **factory):
        super().__init__()
        first = nn.Module()
        first.proj = operations.Linear(dim, 4 * dim, **factory)
        self.net = nn.ModuleList([first, nn.Identity(), operations.Linear(4 * dim, dim, **factory)])

    def expand(self, x: torch.Tensor) -> torch.Tensor:
        """B N C -> B N 4C. Apart from `contract`, so that the caller can free ``x`` between them."""
        return self.net[0].proj(x)

    def contract(self, hidden: torch.Tensor) -> torch.Tensor:
        """GELU and the linear back, B N 4C -> B N C; ``hidden`` is overwritten where `may_overwrite`."""
        if may_overwrite(hidden):
            torch.ops.aten.gelu_(hidden, approximate="tanh")
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        return self.net[2](hidden)


def gated_add_(x: torch.Tensor, update: torch.Tensor, gates: tuple, text_tokens: int) -> torch.Tensor:
    """x += gate * update for text and video tokens, in place where no gradient needs the old value."""
    text_gate, gate = gates
    text, image = slice(0, text_tokens), slice(text_tokens, None)
    parts = (x[:, text], update[:, text], text_gate), (x[:, image], update[:, image], gate)
    if not may_overwrite(x, update):
        return torch.cat([torch.addcmul(*part) for part in parts], dim=1)
    for target, *factors in parts:
        target.addcmul_(*factors)
    return x


class Block(nn.Module):
    """Attention, then feed-forward, each on normed tokens and added back through a gate.

    The token stream ``x`` is updated in place where `may_overwrite`.
    """

    def __init__(self, config: TransformerConfig, operations, attention, norm_rotate, norm_modulate, **factory):
        super().__init__()
        self.norm1 = LayerNormZero(config, operations, norm_modulate, **factory)
        self.attn1 = Attention(config, operations, attention, norm_rotate, **factory)
        self.norm2 = LayerNormZero(config, operations, norm_modulate, **factory)
        self.ff = FeedForward(config.dim, operations, **factory)

    def forward(self, x, temb, rope, text_tokens: int, options: dict) -> torch.Tensor:
        """x: B N C; temb: B time_embed_dim, after SiLU; options: the transformer_options."""
        normed, gates = self.norm1(x, temb, text_tokens)
        q, k, v = self.attn1.project(normed, rope, options)
        del normed  # each copy of the stream counts where memory is short
        attended = self.attn1(q, k, v, options)
        del q, k, v
        x = gated_add_(x, self.attn1.to_out[0](attended), gates, text_tokens)
        del attended
        normed, gates = self.norm2(x, temb, text_tokens)
        hidden = self.ff.expand(normed)
        del normed
        return gated_add_(x, self.ff.contract(hidden), gates, text_tokens)


class NormOut(nn.Module):
    def __init__(self, config: TransformerConfig, operations, **factory):
        super().__init__()
        self.linear = operations.Linear(config.time_embed_dim, 2 * config.dim, **factory)
        self.norm = operations.LayerNorm(config.dim, eps=config.norm_eps, **factory)

    def forward(self, x: torch.Tensor, temb: torch.Tensor) -> torch.Tensor:
        """x: B N C; temb: B time_embed_dim, after SiLU."""
        shift, scale = self.linear(temb)[:, None].chunk(2, dim=-1)
        return self.norm(x) * (1 + scale) + shift

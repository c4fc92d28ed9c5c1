"""The CogVideoX transformer, its parameters named as on the hub.

Built from an ``operations`` namespace (torch.nn's by default, the host's when it runs there). Text and video tokens
run through the blocks as one sequence, text first.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..sampling import positions
from ..sampling.geometry import check_latent_t
from ..sampling.positions import PositionOptions
from .config import TransformerConfig

OFS = 2.0  # what CogVideoX 1.5 image to video is always given as its offset (diffusers' pipeline)
POSITIONS = "cogvideox_fun_positions"  # in transformer_options: PositionOptions for this call

# What is computed at once, for small peaks: the rotation takes four times the bytes of what it turns, and the
# feed-forward eight. Slices of this size still fill a card.
HEADS_AT_ONCE = 6
TOKENS_AT_ONCE = 1536


def sdpa(q, k, v, heads: int, transformer_options: dict | None = None) -> torch.Tensor:
    """Attention without a host. q, k, v: B heads N d -> B N (heads d)."""
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
    for part in x[:, :, start:].split(HEADS_AT_ONCE, dim=1):
        part.copy_(turned(part, rope))
    return x


def turned(x: torch.Tensor, rope: torch.Tensor) -> torch.Tensor:
    """x: B heads N d, rope: N d/2 complex64; pairs of channels as complex numbers, multiplied in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2))) * rope
    return torch.view_as_real(pairs).flatten(-2).to(x.dtype)


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

    def forward(self, x: torch.Tensor, vec: torch.Tensor, text_tokens: int):
        """x: B N C, text first. Returns the modulated tokens and the two gates (text, image), B 1 C each."""
        shift, scale, gate, text_shift, text_scale, text_gate = self.linear(F.silu(vec))[:, None].chunk(6, dim=-1)
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
        return self.net[2](F.gelu(self.net[0].proj(x), approximate="tanh"))


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

    def forward(self, x, vec, rope, text_tokens: int, transformer_options: dict) -> torch.Tensor:
        normed, gates = self.norm1(x, vec, text_tokens)
        q, k, v = self.attn1.project(normed, rope, text_tokens)
        del normed  # each copy of the stream counts where memory is short
        attended = self.attn1(q, k, v, text_tokens, transformer_options)
        del q, k, v
        x = gated_add_(x, self.attn1.to_out[0](attended), gates, text_tokens)
        del attended
        normed, gates = self.norm2(x, vec, text_tokens)
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


class CogVideoXTransformer(nn.Module):
    """CogVideoX's transformer for every variant of `TransformerConfig`.

    Args:
        config: what to build.
        operations: a namespace with Linear, Conv2d and LayerNorm.
        attention: (q, k, v, heads, transformer_options=) -> B N C, see `sdpa`.
        tick: called with (done, total) before each block, to report progress or to interrupt.
        position_mode: how positions are made unless the options of a call say otherwise, see
            `sampling.positions.PositionOptions`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        # how to build
        operations=nn,
        attention=sdpa,
        tick=None,
        position_mode="fun",
        # where
        device=None,
        dtype=None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.dtype = dtype
        self.tick = tick
        self.position_options = PositionOptions(position_mode)
        self.patch_embed = PatchEmbed(config, operations, **factory)
        self.time_embedding = TimeEmbedding(config.dim, config.time_embed_dim, operations, **factory)
        if config.ofs_embed_dim:
            self.ofs_embedding = TimeEmbedding(config.ofs_embed_dim, config.ofs_embed_dim, operations, **factory)
        self.transformer_blocks = nn.ModuleList(
            Block(config, operations, attention, **factory) for _ in range(config.num_layers)
        )
        self.norm_final = operations.LayerNorm(config.dim, eps=config.norm_eps, **factory)
        self.norm_out = NormOut(config, operations, **factory)
        patch = config.patch_size**2 * (config.patch_size_t or 1)
        self.proj_out = operations.Linear(config.dim, config.out_channels * patch, **factory)
        self._positions: dict = {}  # of the last grid only: (grid, device, options) -> tensor

    def positions(self, grid: tuple[int, int, int], device: torch.device, options: PositionOptions) -> torch.Tensor:
        """The additive table (2B, N x dim) or the rope (5B, N x head_dim / 2) of a grid in tokens, cached."""
        key = (grid, device, options)
        if key not in self._positions:
            with torch.inference_mode(False):  # what is kept may be needed for training later
                self._positions = {key: self.compute_positions(grid, options).to(device)}
        return self._positions[key]

    def compute_positions(self, grid: tuple[int, int, int], options: PositionOptions) -> torch.Tensor:
        config = self.config
        if not config.use_rotary_positional_embeddings:
            scales = config.spatial_interpolation_scale, config.temporal_interpolation_scale
            return positions.additive_table(config.dim, grid, config.base_grid, scales, options)
        _, base_h, base_w = config.base_grid
        if config.patch_size_t is None:
            return positions.interpolated_rotary(*grid, base_h, base_w, config.attention_head_dim, options)
        return positions.integer_rotary(*grid, config.attention_head_dim, options)

    def prepare(self, x: torch.Tensor, extra_latents: torch.Tensor | None, options: PositionOptions) -> torch.Tensor:
        """Concatenate what the model is conditioned on (zeros by default) and pad one V1.5 frame with a zero frame."""
        config = self.config
        if x.shape[3] % config.patch_size or x.shape[4] % config.patch_size:
            raise ValueError(
                f"the latent is {x.shape[3]} x {x.shape[4]}, expected even numbers: "
                "make width and height multiples of 16 pixels"
            )
        check_latent_t(x.shape[2], config.patch_size_t, options.max_latent_t(config.max_latent_t))
        channels = config.in_channels - x.shape[1]
        if extra_latents is None:
            extra_latents = x.new_zeros(x.shape[0], channels, *x.shape[2:])
        expected = (x.shape[0], channels, *x.shape[2:])
        if extra_latents.shape != expected:
            raise ValueError(
                f"the conditioning latents have the shape {list(extra_latents.shape)}, expected {list(expected)}: "
                "encode them at the sampled video's size and length"
            )
        x = torch.cat([x, extra_latents.to(x)], dim=1)
        if config.patch_size_t is not None and x.shape[2] == 1:
            x = F.pad(x, (0, 0, 0, 0, 0, 1))
        return x

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        extra_latents: torch.Tensor | None = None,
        transformer_options: dict | None = None,
        **_ignored,
    ) -> torch.Tensor:
        """Predict v.

        Args:
            x: B 16 T h w, scaled and scaled to the model's input; h and w even, T even on V1.5 (or 1).
            timestep: [B], 0..999.
            context: B L text_embed_dim, text features; the models were trained with L = 226.
            extra_latents: B (in_channels - 16) T h w, scaled: 17 inpaint, 16 control or image, or 32 VOID channels;
                None is zeros.
            transformer_options: the host's patches and options; under `POSITIONS` how positions are made.

        Returns:
            B 16 T h w.

        Raises:
            ValueError: a shape that the variant does not take; the message names the legal ones.
        """
        options = dict(transformer_options or {})
        if context.shape[-1] != self.config.text_embed_dim:
            raise ValueError(
                f"the text features are {context.shape[-1]} wide, expected {self.config.text_embed_dim}: encode the "
                "prompt with the model's own CLIP, or one from Load CogVideoX-Fun Text Encoder"
            )
        latent_t = x.shape[2]
        position_options = options.get(POSITIONS, self.position_options)
        x = self.prepare(x, extra_latents, position_options)
        patch_t = self.config.patch_size_t or 1
        grid = (x.shape[2] // patch_t, x.shape[3] // 2, x.shape[4] // 2)
        pos = self.positions(grid, x.device, position_options)

        vec = self.time_embedding(timestep_embedding(timestep, self.config.dim).to(x.dtype))
        if self.config.ofs_embed_dim:
            offset = torch.full_like(timestep, OFS, dtype=torch.float32)
            vec = vec + self.ofs_embedding(timestep_embedding(offset, self.config.ofs_embed_dim).to(x.dtype))
        text, image = self.patch_embed(x, context)
        text_tokens = text.shape[1]
        if self.config.use_learned_positional_embeddings:
            text, image = self.add_learned(text, image, grid)
        rope = pos
        if not self.config.use_rotary_positional_embeddings:
            image, rope = image + pos.to(image.dtype), None
        x = self.run_blocks(torch.cat([text, image], dim=1), vec, rope, text_tokens, options)
        x = self.proj_out(self.norm_out(self.norm_final(x[:, text_tokens:]), vec))
        axes = {"t": grid[0], "h": grid[1], "w": grid[2], "pt": patch_t, "ph": 2, "pw": 2}
        x = rearrange(x, "b (t h w) (c pt ph pw) -> b c (t pt) (h ph) (w pw)", **axes)
        return x[:, :, :latent_t]

    def add_learned(self, text: torch.Tensor, image: torch.Tensor, grid: tuple[int, int, int]):
        """Add the learned table of CogVideoX-5b-I2V to text and video tokens.

        Raises:
            ValueError: another size than the trained one, which the table can't give.
        """
        base_t, base_h, base_w = self.config.base_grid
        tokens = self.config.max_text_seq_length
        if grid[0] > base_t or text.shape[1] > tokens:
            raise ValueError(
                f"the model has a learned position table for {base_t} latent frames and {tokens} text tokens, but the "
                f"video has {grid[0]} and the text {text.shape[1]}: use a shorter clip, without RIFLEx or a temporal "
                "scale, and one prompt"
            )
        if grid[1:] != (base_h, base_w):
            raise ValueError(
                f"the model has a learned position table and takes {base_w * 16} x {base_h * 16} pixels alone, but "
                f"the video is {grid[2] * 16} x {grid[1] * 16}: set width and height to that"
            )
        table = self.patch_embed.pos_embedding.to(image)
        return text + table[:, : text.shape[1]], image + table[:, tokens : tokens + image.shape[1]]

    def run_blocks(self, x, vec, rope, text_tokens: int, options: dict) -> torch.Tensor:
        """Run the blocks over B N C tokens, letting ``patches_replace["dit"]`` take over any of them."""
        total = len(self.transformer_blocks)
        replace = options.get("patches_replace", {}).get("dit", {})
        options["total_blocks"] = total
        options["block_type"] = "double"
        for index, block in enumerate(self.transformer_blocks):
            if self.tick is not None and not torch.compiler.is_compiling():
                self.tick(index, total)
            options["block_index"] = index
            if ("double_block", index) in replace:
                x = self.replaced_block(replace[("double_block", index)], block, x, vec, rope, text_tokens, options)
            else:
                x = block(x, vec, rope, text_tokens, options)
        return x

    @staticmethod
    def replaced_block(replacement, block, x, vec, rope, text_tokens: int, options: dict) -> torch.Tensor:
        """Call a host's block replacement with the arguments of its joint-attention models (img, txt, vec, pe)."""

        def original(args):
            tokens = torch.cat([args["txt"], args["img"]], dim=1)
            out = block(tokens, args["vec"], args["pe"], args["txt"].shape[1], args["transformer_options"])
            return {"txt": out[:, : args["txt"].shape[1]], "img": out[:, args["txt"].shape[1] :]}

        args = {
            "img": x[:, text_tokens:],
            "txt": x[:, :text_tokens],
            "vec": vec,
            "pe": rope,
            "transformer_options": options,
        }
        out = replacement(args, {"original_block": original})
        return torch.cat([out["txt"], out["img"]], dim=1)

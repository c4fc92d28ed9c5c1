"""The CogVideoX transformer, its parameters named as on the hub.

It is built of the layers in `blocks`, from an ``operations`` namespace: torch.nn by default, ComfyUI's operations
inside ComfyUI.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ...sampling import positions
from ...sampling.geometry import check_latent_t
from ...sampling.positions import PositionOptions
from .blocks import (
    Block,
    NormOut,
    PatchEmbed,
    TimeEmbedding,
    after_text,
    may_overwrite,
    norm_modulate,
    norm_rotate,
    rotation_matrices,
    sdpa,
    timestep_embedding,
)
from .config import TransformerConfig

OFS = 2.0  # what CogVideoX 1.5 image to video is always given as its offset (diffusers' pipeline)
POSITIONS = "cogvideox_fun_positions"  # in transformer_options: PositionOptions for this call


class CogVideoXTransformer(nn.Module):
    """CogVideoX's transformer for every variant of `TransformerConfig`.

    Args:
        config: what to build.
        operations: a namespace with Linear, Conv2d and LayerNorm.
        attention: (q, k, v, heads, transformer_options=) -> B N C, see `sdpa`.
        norm_rotate: (q or k, norm, rope) -> the same normed and rotated by position, see `blocks.norm_rotate`.
        norm_modulate: (tokens, norm, modulation, text_tokens) -> the same normed, scaled and shifted, see
            `blocks.norm_modulate`.
        on_progress: called with (done, total) before each block, to report progress or to interrupt.
        position_mode: how positions are made unless the options of a call say otherwise, see
            `sampling.positions.PositionOptions`.
    """

    def __init__(
        self,
        config: TransformerConfig,
        # how to build
        operations=nn,
        attention=sdpa,
        norm_rotate=norm_rotate,
        norm_modulate=norm_modulate,
        on_progress=None,
        position_mode="fun",
        # where
        device=None,
        dtype=None,
    ):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.dtype = dtype
        self.on_progress = on_progress
        self.position_options = PositionOptions(position_mode)
        self.patch_embed = PatchEmbed(config, operations, **factory)
        self.time_embedding = TimeEmbedding(config.dim, config.time_embed_dim, operations, **factory)
        if config.ofs_embed_dim:
            self.ofs_embedding = TimeEmbedding(config.ofs_embed_dim, config.ofs_embed_dim, operations, **factory)
        self.transformer_blocks = nn.ModuleList(
            Block(config, operations, attention, norm_rotate, norm_modulate, **factory)
            for _ in range(config.num_layers)
        )
        self.norm_final = operations.LayerNorm(config.dim, eps=config.norm_eps, **factory)
        self.norm_out = NormOut(config, operations, **factory)
        patch = config.patch_size**2 * (config.patch_size_t or 1)
        self.proj_out = operations.Linear(config.dim, config.out_channels * patch, **factory)
        self._positions: dict = {}  # of the last grid only, see `positions`

    def positions(self, grid: tuple[int, int, int], like: torch.Tensor, options: PositionOptions) -> torch.Tensor:
        """The additive table (2B, N x dim, in the dtype of ``like``) or the rotations (5B, `rotation_matrices`) of a
        grid in tokens, on the device of ``like``. What they are made of is kept from call to call."""
        additive = not self.config.use_rotary_positional_embeddings
        key = (grid, like.device, like.dtype if additive else None, options)
        if key not in self._positions:
            with torch.inference_mode(False):  # what is kept may be needed for training later
                made = self.compute_positions(grid, options)
                made = [axis.to(like) for axis in made] if additive else rotation_matrices(made).to(like.device)
                self._positions = {key: made}
        kept = self._positions[key]
        return positions.join_axes(*kept) if additive else kept

    def forget_positions(self) -> None:
        """Free what `positions` keeps; the next call makes it again."""
        self._positions = {}

    def _apply(self, fn, recurse=True):
        self.forget_positions()  # else they would keep memory on the device that the model leaves
        return super()._apply(fn, recurse)

    def compute_positions(self, grid: tuple[int, int, int], options: PositionOptions):
        """The rotations as complex numbers, or the axes of the additive table; see `sampling.positions`."""
        config = self.config
        if not config.use_rotary_positional_embeddings:
            scales = config.spatial_interpolation_scale, config.temporal_interpolation_scale
            return positions.additive_axes(config.dim, grid, config.base_grid, scales, options)
        _, base_h, base_w = config.base_grid
        if config.patch_size_t is None:
            return positions.interpolated_rotary(*grid, base_h, base_w, config.attention_head_dim, options)
        return positions.integer_rotary(*grid, config.attention_head_dim, options)

    def prepare(self, x: torch.Tensor, concat_latents: torch.Tensor | None, options: PositionOptions) -> torch.Tensor:
        """Concatenate what the model is conditioned on (zeros by default) and pad one V1.5 frame with a zero frame."""
        config = self.config
        if x.shape[3] % config.patch_size or x.shape[4] % config.patch_size:
            raise ValueError(
                f"the latent is {x.shape[3]} x {x.shape[4]}, expected even numbers: "
                "make width and height, also those of Conditioning (Set Area), multiples of 16 pixels"
            )
        check_latent_t(x.shape[2], config.patch_size_t, options.max_latent_t(config.max_latent_t))
        channels = config.in_channels - x.shape[1]
        if concat_latents is None:
            concat_latents = x.new_zeros(x.shape[0], channels, *x.shape[2:])
        expected = (x.shape[0], channels, *x.shape[2:])
        if concat_latents.shape != expected:
            raise ValueError(
                f"the conditioning latents have the shape {list(concat_latents.shape)}, expected {list(expected)}: "
                "encode them at the sampled video's size and length"
            )
        x = torch.cat([x, concat_latents.to(x)], dim=1)
        if config.patch_size_t is not None and x.shape[2] == 1:
            x = F.pad(x, (0, 0, 0, 0, 0, 1))
        return x

    def forward(
        self,
        x: torch.Tensor,
        timestep: torch.Tensor,
        context: torch.Tensor,
        concat_latents: torch.Tensor | None = None,
        transformer_options: dict | None = None,
        **_ignored,
    ) -> torch.Tensor:
        """Predict v.

        Args:
            x: B 16 T h w, scaled and scaled to the model's input; h and w even, T even on V1.5 (or 1).
            timestep: [B], 0..999.
            context: B L text_embed_dim, text features; the models were trained with L = 226.
            concat_latents: B (in_channels - 16) T h w, scaled: 17 inpaint, 16 control or image, or 32 VOID channels;
                None is zeros.
            transformer_options: ComfyUI's patches and options; under `POSITIONS` how positions are made.

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
        x = self.prepare(x, concat_latents, position_options)
        patch_t = self.config.patch_size_t or 1
        grid = (x.shape[2] // patch_t, x.shape[3] // 2, x.shape[4] // 2)
        pos = self.positions(grid, x, position_options)

        temb = self.time_embedding(timestep_embedding(timestep, self.config.dim).to(x.dtype))
        if self.config.ofs_embed_dim:
            offset = torch.full_like(timestep, OFS, dtype=torch.float32)
            temb = temb + self.ofs_embedding(timestep_embedding(offset, self.config.ofs_embed_dim).to(x.dtype))
        text, image = self.patch_embed(x, context)
        text_tokens = text.shape[1]
        if self.config.use_learned_positional_embeddings:
            text, image = self.add_learned(text, image, grid)
        rope = None
        if self.config.use_rotary_positional_embeddings:
            rope = after_text(pos, text_tokens)
        else:
            image = image.add_(pos) if may_overwrite(image) else image + pos
        x = torch.cat([text, image], dim=1)
        del text, image, pos
        x = self.run_blocks(x, temb, rope, text_tokens, options)
        x = self.proj_out(self.norm_out(self.norm_final(x[:, text_tokens:]), F.silu(temb)))
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
        if grid[0] > base_t or grid[1:] != (base_h, base_w) or text.shape[1] > tokens:
            raise ValueError(
                f"the model has a learned position table for {base_t} latent frames of {base_w * 16} x {base_h * 16} "
                f"pixels and {tokens} text tokens, but the video has {grid[0]} of {grid[2] * 16} x {grid[1] * 16} and "
                f"the text {text.shape[1]}: set width and height to that, and use a shorter clip, without RIFLEx or a "
                "temporal scale, and one prompt"
            )
        table = self.patch_embed.pos_embedding.to(image)
        return text + table[:, : text.shape[1]], image + table[:, tokens : tokens + image.shape[1]]

    def run_blocks(self, x, temb, rope, text_tokens: int, options: dict) -> torch.Tensor:
        """Run the blocks over B N C tokens. Patches in ``patches_replace["dit"]`` replace single blocks."""
        total = len(self.transformer_blocks)
        replace = options.get("patches_replace", {}).get("dit", {})
        options["total_blocks"] = total
        options["block_type"] = "double"
        options["img_slice"] = [text_tokens, x.shape[1]]
        activated = F.silu(temb)
        fetch = self.weight_fetcher(x.device, options)
        for index, block in enumerate(self.transformer_blocks):
            if self.on_progress is not None and not torch.compiler.is_compiling():
                self.on_progress(index, total)
            fetch(block)
            options["block_index"] = index
            if ("double_block", index) in replace:
                x = self.replaced_block(replace[("double_block", index)], block, x, temb, rope, text_tokens, options)
            else:
                x = block(x, activated, rope, text_tokens, options)
        fetch(None)
        return x

    def weight_fetcher(self, device: torch.device, options: dict):
        """A function that is called with each block before it runs, and with None after the last.

        ComfyUI's version of the model uploads the block's weights in it.
        """
        return lambda block: None

    def replaced_block(self, replacement, block, x, temb, rope, text_tokens: int, options: dict) -> torch.Tensor:
        """Call a block replacement with the arguments of ComfyUI's joint-attention models (img, txt, vec, pe)."""

        def original(args):
            tokens = torch.cat([args["txt"], args["img"]], dim=1)
            temb = F.silu(args["vec"])
            out = block(tokens, temb, args["pe"], args["txt"].shape[1], args["transformer_options"])
            return {"txt": out[:, : args["txt"].shape[1]], "img": out[:, args["txt"].shape[1] :]}

        args = {
            "img": x[:, text_tokens:],
            "txt": x[:, :text_tokens],
            "vec": temb,
            "pe": rope,
            "transformer_options": options,
        }
        out = replacement(args, {"original_block": original})
        return torch.cat([out["txt"], out["img"]], dim=1)

"""The configurations of the transformer and of the VAE, and the variants that shapes alone can tell apart."""

import dataclasses
import math
import reprlib
import typing
from collections.abc import Mapping

from ...sampling.geometry import frames_to_latent_t
from ...sampling.inpaint import REFERENCE_NOISE
from ...sampling.schedule import NoiseSchedule
from ..errors import CheckpointError

TEXT_TOKENS = 226


def read_fields(cls, values: Mapping, what: str) -> dict:
    """The values of a dataclass's fields that a configuration has. All numbers in it count or scale something.

    Raises:
        CheckpointError: a value of the wrong type, or a number that is not finite and above 0.
    """
    known = {}
    for field in dataclasses.fields(cls):
        if field.name not in values:
            continue
        value = values[field.name]
        allowed = typing.get_args(field.type) or (field.type,)
        if float in allowed:
            allowed = (*allowed, int)
        if type(value) not in allowed or (type(value) in (int, float) and not 0 < value < math.inf):
            raise CheckpointError(
                f"{field.name} is {reprlib.repr(value)} in the {what}'s configuration, expected {field.type}, and "
                "numbers above 0"
            )
        known[field.name] = value
    return known


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The fields of ``transformer/config.json`` that define a model, under the hub's names."""

    num_attention_heads: int = 30
    attention_head_dim: int = 64
    num_layers: int = 30
    in_channels: int = 16
    out_channels: int = 16
    time_embed_dim: int = 512
    text_embed_dim: int = 4096
    sample_width: int = 90
    sample_height: int = 60
    sample_frames: int = 49
    patch_size: int = 2
    patch_size_t: int | None = None
    temporal_compression_ratio: int = 4
    max_text_seq_length: int = TEXT_TOKENS
    attention_bias: bool = True
    patch_bias: bool = True
    norm_eps: float = 1e-5
    spatial_interpolation_scale: float = 1.875
    temporal_interpolation_scale: float = 1.0
    use_rotary_positional_embeddings: bool = False
    use_learned_positional_embeddings: bool = False
    ofs_embed_dim: int | None = None
    add_noise_in_inpaint_model: bool = False

    @classmethod
    def from_dict(cls, values: Mapping) -> "TransformerConfig":
        """Read a configuration, ignoring fields of no consequence.

        Raises:
            CheckpointError: a value of the wrong type, or an architecture that the pack does not know.
        """
        fixed = {
            "flip_sin_to_cos": True,
            "freq_shift": 0,
            "norm_elementwise_affine": True,
            "activation_fn": "gelu-approximate",
            "timestep_activation_fn": "silu",
            "patch_size": 2,
            "attention_head_dim": 64,
            "out_channels": 16,
            "temporal_compression_ratio": 4,
        }
        for name, expected in fixed.items():
            if values.get(name, expected) != expected:
                raise CheckpointError(
                    f"{name} is {reprlib.repr(values[name])} in the transformer's configuration, expected {expected!r}"
                )
        config = cls(**read_fields(cls, values, "transformer"))
        if config.conditioning is None:
            raise CheckpointError(
                f"in_channels is {config.in_channels} in the transformer's configuration, expected 16 (text), "
                "32 (control, or image to video), 33 (inpaint) or 48 (VOID)"
            )
        if config.use_learned_positional_embeddings and not config.use_rotary_positional_embeddings:
            raise CheckpointError(
                "use_learned_positional_embeddings is True in the transformer's configuration, but rotary ones are "
                "not: no CogVideoX model has a learned table without rotary positions"
            )
        if config.patch_size_t not in (None, 2):
            raise CheckpointError(f"patch_size_t is {config.patch_size_t}, expected none or 2")
        return config

    @property
    def dim(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def conditioning(self) -> str | None:
        """What the channels beyond the noise hold: "text" (none), "inpaint" (mask and video), "control" (video),
        "image" (the first frame, of CogVideoX's own models) or "void" (mask and video, both as latents)."""
        if self.in_channels == 32:
            return "image" if self.use_learned_positional_embeddings or self.ofs_embed_dim else "control"
        return {16: "text", 33: "inpaint", 48: "void"}.get(self.in_channels)

    @property
    def reference_noise(self) -> float:
        """The noise that VideoX-Fun adds to an InP model's reference video; V1.1 was trained with it."""
        return REFERENCE_NOISE if self.add_noise_in_inpaint_model and self.conditioning == "inpaint" else 0.0

    @property
    def base_grid(self) -> tuple[int, int, int]:
        """The trained grid (t, h, w) in tokens; 13 x 30 x 45 for V1.0 and V1.1."""
        return frames_to_latent_t(self.sample_frames), self.sample_height // 2, self.sample_width // 2

    @property
    def max_latent_t(self) -> int | None:
        """The most latent frames of one call: 13 (49 frames) on V1.0 and V1.1, no limit on V1.5."""
        return frames_to_latent_t(self.sample_frames) if self.patch_size_t is None else None

    @property
    def family(self) -> str:
        """ "2B", "5B" or "5B V1.5", told apart by how positions are encoded."""
        if not self.use_rotary_positional_embeddings:
            return "2B"
        return "5B" if self.patch_size_t is None else "5B V1.5"

    @property
    def fp16_is_safe(self) -> bool:
        """fp16 overflows in the rotary (5B) models."""
        return not self.use_rotary_positional_embeddings

    @property
    def default_scale_factor(self) -> float:
        """The VAE scaling of the family, for files that carry no VAE configuration."""
        return 0.7 if self.use_rotary_positional_embeddings else 1.15258426

    @property
    def default_image_scale(self) -> float:
        """What the first frame's latent is multiplied by: CogVideoX 1.5 image to video divides by the scale factor."""
        return 1 / self.default_scale_factor if self.ofs_embed_dim else self.default_scale_factor

    @property
    def default_schedule(self) -> NoiseSchedule:
        """The schedule of the family, for files that carry no scheduler configuration."""
        return NoiseSchedule(snr_shift=1.0 if self.use_rotary_positional_embeddings else 3.0)


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The fields of ``vae/config.json`` that define the VAE, under the hub's names."""

    in_channels: int = 3
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (128, 256, 256, 512)
    latent_channels: int = 16
    layers_per_block: int = 3
    norm_eps: float = 1e-6
    norm_num_groups: int = 32
    temporal_compression_ratio: int = 4
    scaling_factor: float = 1.15258426
    invert_scale_latents: bool = False

    @property
    def image_scale(self) -> float:
        """What CogVideoX's own image-to-video models multiply the first frame's latent by (diffusers' pipeline)."""
        return 1 / self.scaling_factor if self.invert_scale_latents else self.scaling_factor

    @classmethod
    def from_dict(cls, values: Mapping) -> "VAEConfig":
        """Read a configuration.

        Raises:
            CheckpointError: an architecture that is not CogVideoX's.
        """
        widths = values.get("block_out_channels", cls.block_out_channels)
        if not isinstance(widths, (list, tuple)) or not all(type(width) is int for width in widths):
            raise CheckpointError(
                f"block_out_channels is {widths!r} in the VAE's configuration, expected a list of ints"
            )
        if values.get("use_quant_conv") or values.get("use_post_quant_conv"):
            raise CheckpointError("the VAE's configuration has quant_conv layers, which no CogVideoX VAE has")
        known = read_fields(cls, {k: v for k, v in values.items() if k != "block_out_channels"}, "VAE")
        config = cls(**known, block_out_channels=tuple(widths))
        if len(config.block_out_channels) != 4 or config.temporal_compression_ratio != 4:
            raise CheckpointError(
                f"the VAE's configuration has block_out_channels {list(config.block_out_channels)} and temporal "
                f"compression {config.temporal_compression_ratio}, expected four blocks and 4"
            )
        return config


def goes_to_fp8(name: str, shape: tuple[int, ...], config: TransformerConfig) -> bool:
    """Whether a parameter is stored in fp8: only the blocks' matrices, which are 97 % of the weights or more.

    Everything else in fp8 makes most of its error: on the nano model 3.2 % with all, 0.6 % with these. The modulation
    of V1.5 is kept too, as users of ComfyUI-CogVideoXWrapper found necessary.
    """
    modulation = ".norm" in name
    in_block = name.startswith("transformer_blocks.") and len(shape) == 2
    return in_block and not (modulation and config.patch_size_t is not None)

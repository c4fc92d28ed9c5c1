"""The causal video VAE of CogVideoX, its parameters named as on the hub, streamed in VideoX-Fun's chunks.

Every causal convolution sees the two frames before its chunk through a `CausalCache` that lives as long as one
stream. GroupNorm makes the result depend on how a video is cut into chunks, so the cuts are VideoX-Fun's. Encoding
takes eight frames at a time, with the remainder in the first chunk (49 = 9 + 8 + 8 + 8 + 8 + 8). Decoding takes one
latent frame, then two at a time, which gives 1 + 8 + 8 ... frames, and four for a lone last one.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ...sampling.geometry import frames_to_latent_t, latent_t_to_frames
from .blocks import may_overwrite
from .config import VAEConfig
from .tiling import stream

CausalCache = dict[nn.Module, torch.Tensor]  # the last two input frames of every 3x3x3 convolution

ENCODE_FRAMES = 8
DECODE_LATENTS = 2


def silu_(x: torch.Tensor) -> torch.Tensor:
    """SiLU of what nothing else holds: in place where no gradient needs the old value."""
    return F.silu(x, inplace=not x.requires_grad)


class CausalConv3d(nn.Module):
    """A 3x3x3 convolution that looks back two frames and never ahead."""

    def __init__(self, in_channels: int, out_channels: int, operations, **factory):
        super().__init__()
        self.conv = operations.Conv3d(in_channels, out_channels, 3, padding=(0, 1, 1), **factory)

    def forward(self, x: torch.Tensor, cache: CausalCache) -> torch.Tensor:
        past = cache.get(self)
        if past is None:
            past = x[:, :, :1].expand(-1, -1, 2, -1, -1)
        # Two output frames look back into the past; the others see the chunk alone, which is not copied for them.
        begin = torch.cat([past, x[:, :, :2]], dim=2)
        cache[self] = begin[:, :, 1:].clone() if x.shape[2] == 1 else x[:, :, -2:].clone()  # no views: they keep all
        if x.shape[2] <= 2:
            return self.conv(begin)
        first = self.conv(begin)
        del past, begin
        return torch.cat([first, self.conv(x)], dim=2)


def scale_and_shift(x: torch.Tensor, norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """What a GroupNorm multiplies ``x`` by and adds to it, B C 1 1 1 each, float32.

    PyTorch's GroupNorm runs one block of threads per group, which leaves most of a GPU idle at 32 groups: on an H100
    its statistics took 37 % of decoding.
    """
    groups = x.unflatten(1, (norm.num_groups, -1)).flatten(2)  # B C T H W -> B G n
    if x.dtype.itemsize < 4:  # var_mean would round its results to x's dtype
        mean = groups.mean(-1, dtype=torch.float32)
        power = torch.linalg.vector_norm(groups, dim=-1, dtype=torch.float32).square() / groups.shape[-1]
        var = (power - mean.square()).clamp_(min=0)
    else:
        var, mean = torch.var_mean(groups, dim=-1, correction=0)
    per_group = x.shape[1] // norm.num_groups
    scale = torch.rsqrt(var + norm.eps).repeat_interleave(per_group, dim=1) * norm.weight.to(mean)
    shift = norm.bias.to(mean) - mean.repeat_interleave(per_group, dim=1) * scale
    return scale[..., None, None, None], shift[..., None, None, None]


def group_norm(x: torch.Tensor, norm: nn.Module) -> torch.Tensor:
    """A GroupNorm of B C T H W."""
    if not may_overwrite(x, norm.weight):
        return norm(x)
    scale, shift = scale_and_shift(x, norm)
    return torch.addcmul(shift, x, scale, out=torch.empty_like(x, memory_format=torch.contiguous_format))


class SpatialNorm3D(nn.Module):
    """GroupNorm whose scale and shift are read off the latent.

    Both are computed at the latent's resolution and broadcast over the pixels that each latent covers: equal to
    enlarging the latent first, since nearest-neighbour enlargement commutes with a 1x1x1 convolution.
    """

    def __init__(self, channels: int, latent_channels: int, groups: int, operations, **factory):
        super().__init__()
        self.norm_layer = operations.GroupNorm(groups, channels, eps=1e-6, **factory)
        # 1x1x1 convolutions see one frame alone, so they need no causal cache
        self.conv_y = nn.ModuleDict({"conv": operations.Conv3d(latent_channels, channels, 1, **factory)})
        self.conv_b = nn.ModuleDict({"conv": operations.Conv3d(latent_channels, channels, 1, **factory)})

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        t, h, w = z.shape[2:]
        latent_scale, latent_shift = self.conv_y["conv"](z), self.conv_b["conv"](z)
        if may_overwrite(x, latent_scale, self.norm_layer.weight):
            scale, shift = scale_and_shift(x, self.norm_layer)
            shift = torch.addcmul(latent_shift.float(), shift, latent_scale.float())
            scale = scale * latent_scale
            source, target = x, torch.empty_like(x, memory_format=torch.contiguous_format)
        else:
            scale, shift, source, target = latent_scale, latent_shift, self.norm_layer(x), None
        scale, shift = (rearrange(part, "b c t h w -> b c t 1 h 1 w 1") for part in (scale, shift))
        axes = {"t": t, "h": h, "w": w}
        source = rearrange(source, "b c (t ft) (h fh) (w fw) -> b c t ft h fh w fw", **axes)
        if target is None:
            return rearrange(source * scale + shift, "b c t ft h fh w fw -> b c (t ft) (h fh) (w fw)")
        torch.addcmul(shift, source, scale, out=target.view(source.shape))
        return target


class ResnetBlock3D(nn.Module):
    """Two causal convolutions with a shortcut; in the decoder the norms are conditioned on the latent."""

    def __init__(self, in_channels: int, out_channels: int, config: VAEConfig, spatial: bool, operations, **factory):
        super().__init__()
        groups = config.norm_num_groups

        def norm(channels: int) -> nn.Module:
            if spatial:
                return SpatialNorm3D(channels, config.latent_channels, groups, operations, **factory)
            return operations.GroupNorm(groups, channels, eps=config.norm_eps, **factory)

        self.norm1 = norm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels, operations, **factory)
        self.norm2 = norm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels, operations, **factory)
        self.conv_shortcut = None
        if in_channels != out_channels:
            self.conv_shortcut = operations.Conv3d(in_channels, out_channels, 1, **factory)

    def forward(self, x: torch.Tensor, cache: CausalCache, z: torch.Tensor | None) -> torch.Tensor:
        norm = group_norm if z is None else lambda x, norm: norm(x, z)
        h = self.conv1(silu_(norm(x, self.norm1)), cache)
        h = norm(h, self.norm2)  # a statement of its own frees what it normed
        h = self.conv2(silu_(h), cache)
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x)
        return h + shortcut if h.requires_grad else h.add_(shortcut)


class Downsample3D(nn.Module):
    """Halve the resolution and, where ``compress_time``, the frames: an odd chunk keeps its first frame."""

    def __init__(self, channels: int, compress_time: bool, operations, **factory):
        super().__init__()
        self.compress_time = compress_time
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, _, t, _, _ = x.shape
        if self.compress_time and t > 1:
            first = x[:, :, : t % 2]
            x = torch.cat([first, x[:, :, t % 2 :].unflatten(2, (-1, 2)).mean(3)], dim=2)
        x = rearrange(x, "b c t h w -> (b t) c h w")
        return rearrange(self.conv(F.pad(x, (0, 1, 0, 1))), "(b t) c h w -> b c t h w", b=batch)


class Upsample3D(nn.Module):
    """Double the resolution and, where ``compress_time`` and not on the first latent frame, the frames."""

    def __init__(self, channels: int, compress_time: bool, operations, **factory):
        super().__init__()
        self.compress_time = compress_time
        self.conv = operations.Conv2d(channels, channels, 3, padding=1, **factory)

    def forward(self, x: torch.Tensor, first: bool) -> torch.Tensor:
        batch = x.shape[0]
        if self.compress_time and not first:
            x = x.repeat_interleave(2, dim=2)
        x = F.interpolate(rearrange(x, "b c t h w -> (b t) c h w"), scale_factor=2.0)
        x = self.conv(x)
        return rearrange(x, "(b t) c h w -> b c t h w", b=batch).contiguous()  # the next norm would copy it beside x


def _resnets(count: int, in_channels: int, out_channels: int, config, spatial, operations, **factory) -> nn.ModuleList:
    channels = [in_channels] + [out_channels] * count
    return nn.ModuleList(
        ResnetBlock3D(channels[i], channels[i + 1], config, spatial, operations, **factory) for i in range(count)
    )


class Stage(nn.Module):
    """ResNet blocks at one resolution, then a change of resolution (none after the last stage).

    Args:
        sampler: changes the resolution; its keyword is its name on the hub, ``downsamplers`` or ``upsamplers``.
    """

    def __init__(self, resnets: nn.ModuleList, **sampler: nn.Module):
        super().__init__()
        self.resnets = resnets
        for name, module in sampler.items():
            self.add_module(name, nn.ModuleList([module]))

    def forward(self, x: torch.Tensor, cache: CausalCache, z: torch.Tensor | None) -> torch.Tensor:
        for resnet in self.resnets:
            x = resnet(x, cache, z)
        return x


class Encoder3D(nn.Module):
    def __init__(self, config: VAEConfig, operations, **factory):
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = CausalConv3d(config.in_channels, widths[0], operations, **factory)
        self.down_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            resnets = _resnets(
                config.layers_per_block, widths[max(i - 1, 0)], width, config, False, operations, **factory
            )
            last = i == len(widths) - 1
            sampler = {} if last else {"downsamplers": Downsample3D(width, i < 2, operations, **factory)}
            self.down_blocks.append(Stage(resnets, **sampler))
        self.mid_block = Stage(_resnets(2, widths[-1], widths[-1], config, False, operations, **factory))
        self.norm_out = operations.GroupNorm(config.norm_num_groups, widths[-1], eps=1e-6, **factory)
        self.conv_out = CausalConv3d(widths[-1], 2 * config.latent_channels, operations, **factory)

    def forward(self, x: torch.Tensor, cache: CausalCache) -> torch.Tensor:
        x = self.conv_in(x, cache)
        for block in self.down_blocks:
            x = block(x, cache, None)
            for sampler in getattr(block, "downsamplers", ()):
                x = sampler(x)
        x = self.mid_block(x, cache, None)
        return self.conv_out(silu_(group_norm(x, self.norm_out)), cache)


class Decoder3D(nn.Module):
    def __init__(self, config: VAEConfig, operations, **factory):
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = CausalConv3d(config.latent_channels, widths[0], operations, **factory)
        self.mid_block = Stage(_resnets(2, widths[0], widths[0], config, True, operations, **factory))
        self.up_blocks = nn.ModuleList()
        for i, width in enumerate(widths):
            resnets = _resnets(
                config.layers_per_block + 1, widths[max(i - 1, 0)], width, config, True, operations, **factory
            )
            last = i == len(widths) - 1
            sampler = {} if last else {"upsamplers": Upsample3D(width, i < 2, operations, **factory)}
            self.up_blocks.append(Stage(resnets, **sampler))
        self.norm_out = SpatialNorm3D(
            widths[-1], config.latent_channels, config.norm_num_groups, operations, **factory
        )
        self.conv_out = CausalConv3d(widths[-1], config.out_channels, operations, **factory)

    def forward(self, z: torch.Tensor, cache: CausalCache, first: bool) -> torch.Tensor:
        x = self.mid_block(self.conv_in(z, cache), cache, z)
        for block in self.up_blocks:
            x = block(x, cache, z)
            for sampler in getattr(block, "upsamplers", ()):
                x = sampler(x, first)
        return self.conv_out(silu_(self.norm_out(x, z)), cache)


def draw(moments: torch.Tensor, seed: int) -> torch.Tensor:
    """A draw from the latent distribution, as diffusers' ``latent_dist.sample`` with a CPU generator of that seed.

    Args:
        moments: B 32 T h w: mean, then log-variance.
    """
    mean, log_variance = moments.chunk(2, dim=1)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float32)
    return mean + (log_variance.clamp(-30, 20) / 2).exp() * noise.to(mean)


def encode_chunks(length: int) -> list[slice]:
    """VideoX-Fun's chunks of a video of 4n + 1 frames: the remainder of a division by eight goes to the first."""
    count = max(length // ENCODE_FRAMES, 1)
    ends = [length - ENCODE_FRAMES * i for i in reversed(range(count))]
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def decode_chunks(latent_t: int) -> list[slice]:
    """VideoX-Fun's chunks of a latent: the first frame alone, then two at a time; the last may be alone."""
    return [slice(0, 1)] + [slice(i, min(i + DECODE_LATENTS, latent_t)) for i in range(1, latent_t, DECODE_LATENTS)]


class CogVideoXVAE(nn.Module):
    """CogVideoX's VAE. Pixels are B 3 F H W of -1..1, latents B 16 T h w, unscaled.

    Args:
        config: what to build.
        operations: a namespace with Conv2d, Conv3d and GroupNorm.
    """

    def __init__(self, config: VAEConfig, operations=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        self.config = config
        self.encoder = Encoder3D(config, operations, **factory)
        self.decoder = Decoder3D(config, operations, **factory)

    def encode_stream(self, pixels: torch.Tensor, to: Callable = lambda x: x) -> Iterator[torch.Tensor]:
        """Yield mean and log-variance (B 32 T h w) chunk by chunk; ``to`` moves each chunk of pixels to the device."""
        cache: CausalCache = {}
        for chunk in encode_chunks(pixels.shape[2]):
            yield self.encoder(to(pixels[:, :, chunk]), cache)

    def decode_stream(self, latents: torch.Tensor, to: Callable = lambda x: x) -> Iterator[torch.Tensor]:
        """Yield pixels chunk by chunk; ``to`` moves each chunk of latents to the device."""
        cache: CausalCache = {}
        for chunk in decode_chunks(latents.shape[2]):
            yield self.decoder(to(latents[:, :, chunk]), cache, first=chunk.start == 0)

    def encode(self, pixels: torch.Tensor, **options) -> torch.Tensor:
        """The mode of the latent distribution of B 3 F H W pixels; options as in `stream`."""
        return self._encode(pixels, self.config.latent_channels, options)

    def encode_moments(self, pixels: torch.Tensor, **options) -> torch.Tensor:
        """Mean and log-variance of the latent distribution, B 32 T h w, as `encode`."""
        return self._encode(pixels, 2 * self.config.latent_channels, options)

    def _encode(self, pixels: torch.Tensor, channels: int, options: dict) -> torch.Tensor:
        latent_t = frames_to_latent_t(pixels.shape[2])
        shape = (pixels.shape[0], channels, latent_t, pixels.shape[3] // 8, pixels.shape[4] // 8)

        def run(part, to):
            return (moments[:, :channels] for moments in self.encode_stream(part, to))

        return stream(run, pixels, shape, len(encode_chunks(pixels.shape[2])), **options)

    def decode(self, latents: torch.Tensor, **options) -> torch.Tensor:
        """The pixels of B 16 T h w latents; options as in `stream`."""
        batch, _, latent_t, h, w = latents.shape
        shape = (batch, self.config.out_channels, latent_t_to_frames(latent_t), h * 8, w * 8)
        return stream(self.decode_stream, latents, shape, len(decode_chunks(latent_t)), **options)

"""A small decoder that drafts what the VAE would decode, for previews.

Its layout and the names of its parameters are those of madebyollin's TAEHV (https://github.com/madebyollin/taehv), so
that the file for CogVideoX, ``taecvx``, loads as it is. It takes the VAE's own latents, not multiplied by the scaling
factor: the example for ``taecvx`` there divides the latents of diffusers' pipeline by 0.7.

Every layer works on single frames. A `MemoryBlock` also sees the frame before, so a stream can be cut anywhere without
a change of the result. Each latent frame gives four frames. The first three are dropped, since the first latent frame
stands for one frame.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from ...sampling.geometry import TEMPORAL_COMPRESSION, latent_t_to_frames
from .tiling import stream
from .vae import decode_chunks

Memory = dict[nn.Module, torch.Tensor]  # the last input frame of every `MemoryBlock`

LATENT_CHANNELS = 16
DROPPED = TEMPORAL_COMPRESSION - 1  # frames at the start
# The places of the layers, which are in their names: the convolution of each width, and the last one.
WIDTHS, LAST = (1, 8, 14, 20), 22


class Clamp(nn.Module):
    """Bring latents softly to -3..3."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


class MemoryBlock(nn.Module):
    """Three convolutions over a frame and the one before, with a shortcut."""

    def __init__(self, channels: int, operations, **factory):
        super().__init__()

        def conv(inputs: int) -> nn.Module:
            return operations.Conv2d(inputs, channels, 3, padding=1, **factory)

        self.conv = nn.Sequential(conv(2 * channels), nn.ReLU(), conv(channels), nn.ReLU(), conv(channels))

    def forward(self, x: torch.Tensor, batch: int, memory: Memory) -> torch.Tensor:
        frames = x.unflatten(0, (batch, -1))  # (B T) C H W -> B T C H W
        before = memory.get(self)
        if before is None:
            before = torch.zeros_like(frames[:, :1])
        memory[self] = frames[:, -1:].clone()
        past = torch.cat([before, frames[:, :-1]], dim=1).flatten(0, 1)
        return F.relu(self.conv(torch.cat([x, past], dim=1)) + x)


class GrowTime(nn.Module):
    """Make ``factor`` frames of each, by a convolution of single pixels."""

    def __init__(self, channels: int, factor: int, operations, **factory):
        super().__init__()
        self.conv = operations.Conv2d(channels, channels * factor, 1, bias=False, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).reshape(-1, *x.shape[1:])  # (B T) (f C) H W -> (B T f) C H W


class TinyDecoder(nn.Module):
    """Latents B 16 T h w, unscaled, to pixels B 3 4T-3 8h 8w of 0..1, which can be slightly beyond.

    Args:
        widths: channels at 1, 2, 4 and 8 times the latent's resolution; 256, 128, 64 and 64 in ``taecvx``.
        operations: a namespace with Conv2d.
    """

    def __init__(self, widths: tuple[int, int, int, int], operations=nn, device=None, dtype=None):
        super().__init__()
        factory = {"device": device, "dtype": dtype}
        layers: list[nn.Module] = [Clamp()]
        layers += [operations.Conv2d(LATENT_CHANNELS, widths[0], 3, padding=1, **factory), nn.ReLU()]
        for width, following, factor in zip(widths, widths[1:], (1, 2, 2), strict=False):
            layers += [MemoryBlock(width, operations, **factory) for _ in range(3)]
            # Frames are added before the resolution is doubled, which is equal and a quarter of the work; the names
            # keep the order of the files.
            layers += [nn.Upsample(scale_factor=2), GrowTime(width, factor, operations, **factory)]
            layers += [operations.Conv2d(width, following, 3, padding=1, bias=False, **factory)]
        layers += [nn.ReLU(), operations.Conv2d(widths[-1], 3, 3, padding=1, **factory)]
        self.decoder = nn.ModuleList(layers)
        self.widths = widths

    def forward(self, latents: torch.Tensor, memory: Memory) -> torch.Tensor:
        """The frames of a chunk of latents, four for each, B 3 4T 8h 8w; ``memory`` is that of the chunk before."""
        batch = len(latents)
        x = latents.movedim(2, 1).flatten(0, 1)  # B C T H W -> (B T) C H W
        doubling = None
        for layer in self.decoder:
            if isinstance(layer, MemoryBlock):
                x = layer(x, batch, memory)
            elif isinstance(layer, nn.Upsample):
                doubling = layer
            elif isinstance(layer, GrowTime):
                x = doubling(layer(x))
            else:
                x = layer(x)
        return x.unflatten(0, (batch, -1)).movedim(1, 2)

    def decode_stream(self, latents: torch.Tensor, to: Callable = lambda x: x) -> Iterator[torch.Tensor]:
        """Yield pixels chunk by chunk; ``to`` moves each chunk of latents to the device."""
        memory: Memory = {}
        for chunk in decode_chunks(latents.shape[2]):
            pixels = self(to(latents[:, :, chunk]), memory)
            yield pixels if chunk.start else pixels[:, :, DROPPED:]

    def decode(self, latents: torch.Tensor, **options) -> torch.Tensor:
        """The pixels of B 16 T h w latents; options as in `stream`."""
        batch, _, latent_t, h, w = latents.shape
        shape = (batch, 3, latent_t_to_frames(latent_t), h * 8, w * 8)
        return stream(self.decode_stream, latents, shape, len(decode_chunks(latent_t)), **options)

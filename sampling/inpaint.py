"""The extra channels of InP models: one mask channel and the latent of the masked video."""

import torch
from torch import Tensor

from .masks import THRESHOLD

REFERENCE_NOISE = 0.0563  # standard deviation on -1..1 of the noise that VideoX-Fun's inpaint pipeline adds
BLACK = -1.0  # the value of a generated pixel in a masked video of -1..1


def mask_video(video: Tensor, mask: Tensor) -> Tensor:
    """Paint black what is to be generated.

    Args:
        video: F H W C, -1..1.
        mask: F H W, 1 = generate; a pixel at or above 0.5 becomes black (-1).
    """
    return video.masked_fill((mask >= THRESHOLD)[..., None], BLACK)


def add_reference_noise(video: Tensor, ratio: float, seed: int) -> Tensor:
    """Add noise to the pixels of a masked video that are not black: ``y = x + where(x == -1, 0, ratio * randn)``.

    For models whose configuration has ``add_noise_in_inpaint_model``. VideoX-Fun does so in
    ``add_noise_to_reference_video`` with a ratio of `REFERENCE_NOISE`.

    Args:
        video: any layout, -1..1.
        ratio: standard deviation of the noise.
        seed: the noise is drawn from it on the CPU, whatever the video's device.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = torch.randn(video.shape, generator=generator, dtype=torch.float32).to(video)
    return noise.mul_(ratio).masked_fill_(video == BLACK, 0).add_(video)


def reference_pixels(video: Tensor, mask: Tensor | None = None, noise_ratio: float = 0.0, seed: int = 0) -> Tensor:
    """What the VAE encodes: the video, black where it is to be generated, with noise where it is kept.

    Args:
        video: F H W C, 0..1.
        mask: F H W, 1 = generate; None keeps everything.
        noise_ratio, seed: see `add_reference_noise`.

    Returns:
        A new tensor, F H W C, -1..1; noise can go beyond.
    """
    pixels = video * 2 - 1
    if mask is not None:
        pixels = mask_video(pixels, mask.to(pixels.device))
    return add_reference_noise(pixels, noise_ratio, seed) if noise_ratio else pixels


def inpaint_latents(mask: Tensor, masked_latent: Tensor, scale_factor: float) -> Tensor:
    """The 17 channels that an InP model takes beside the noise.

    Args:
        mask: B 1 T h w, 1 = generate.
        masked_latent: B 16 T h w, the VAE's latent of the masked video, **scaled**.
        scale_factor: of the VAE. VideoX-Fun multiplies the mask channel by it, too.

    Returns:
        B 17 T h w: ``1 - mask`` times the scale factor, then the masked video.
    """
    known = (1 - mask) * scale_factor
    return torch.cat([known.to(masked_latent), masked_latent], dim=1)

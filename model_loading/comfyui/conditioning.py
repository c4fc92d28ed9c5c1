"""The channels that a model takes beside the noise, from a conditioning's latent and mask."""

import logging
from collections.abc import Callable
from typing import NamedTuple

import comfy.utils
import torch
import torch.nn.functional as F

from ...sampling.geometry import SPATIAL_COMPRESSION, latent_t_to_frames
from ...sampling.inpaint import inpaint_latents
from ...sampling.masks import THRESHOLD, mask_to_latent

log = logging.getLogger(__name__)


class Scales(NamedTuple):
    """What a VAE's latent is multiplied by: as a video, and as the first frame of an image-to-video model."""

    latent: float
    image: float


def as_given(latent: torch.Tensor, mask: None, noise: torch.Tensor, scales: Scales) -> torch.Tensor:
    return latent * scales.latent


def first_frames(latent: torch.Tensor, mask: None, noise: torch.Tensor, scales: Scales) -> torch.Tensor:
    """The latents of the first frames, zeros for the others."""
    return F.pad(latent * scales.image, (0, 0, 0, 0, 0, noise.shape[2] - latent.shape[2]))


def masked_video(latent: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor, scales: Scales) -> torch.Tensor | None:
    mask = latent_mask(mask, noise)
    if mask is None:
        return None
    mask = comfy.utils.repeat_to_batch_size(mask.to(latent.device), latent.shape[0])
    return inpaint_latents(mask, latent * scales.latent, scales.latent)


class Kind(NamedTuple):
    """What a kind of model takes, see `TransformerConfig.conditioning`."""

    remedy: str  # for a conditioning of another kind
    channels: int = 16  # of the conditioning's latent
    make: Callable | None = as_given  # (latent, mask, noise, scales) -> the channels


KINDS = {
    "text": Kind("remove it, or load an InP (33 channels) or Control (32) model", make=None),
    "inpaint": Kind(
        "use Inpaint Conditioning with VAE Encode and Mask Resize 3D, or load a Control (32 channels) model",
        make=masked_video,
    ),
    "control": Kind("use Control Conditioning, or load an InP (33 channels) model"),
    "image": Kind("use Image Conditioning, or load an InP (33 channels) model", make=first_frames),
    "void": Kind("use ComfyUI's VOIDInpaintConditioning, or load an InP (33 channels) model", channels=32),
}


def concat_latents(
    config, scales: Scales, noise: torch.Tensor, latent: torch.Tensor | None, mask: torch.Tensor | None, device
) -> torch.Tensor | None:
    """The channels that a model takes beside the noise, B C T h w, scaled; None for zeros (text to video).

    Args:
        config: the model's `TransformerConfig`.
        noise: the sampled latent, B 16 T h w.
        latent, mask: of the conditioning; the latent unscaled, the mask 1 = generate.

    Raises:
        ValueError: conditioning for another kind of model, or of another size than the noise.
    """
    if latent is None and mask is None:
        return None
    name = config.conditioning
    kind = KINDS[name]
    of_kind = latent is not None and kind.make is not None and latent.ndim == 5 and latent.shape[1] == kind.channels
    if not of_kind or (mask is not None) != (name == "inpaint"):
        given = {"a latent": latent, "a mask": mask}
        have = " and ".join(what for what, value in given.items() if value is not None)
        raise ValueError(
            f"this model takes {config.in_channels} channels ({name}), but the conditioning holds {have}: "
            f"{kind.remedy}"
        )
    fits = latent.shape[3:] == noise.shape[3:]
    shorter = fits and name == "image" and latent.shape[2] <= noise.shape[2]
    if not fits or not (shorter or latent.shape[2] == noise.shape[2]):
        raise ValueError(
            f"the conditioning's latent has the shape {list(latent.shape)}, but the sampled latent "
            f"{list(noise.shape)}: give CogVideoX-Fun's Empty Latent and VAE Encode the same size and length, and "
            "after a latent upscale make the conditioning again at the new size"
        )
    return kind.make(latent.to(device), mask, noise, scales)


def latent_mask(mask: torch.Tensor, noise: torch.Tensor) -> torch.Tensor | None:
    """A conditioning's mask as B 1 T h w, 1 = generate; None where a pixel mask keeps nothing."""
    latent_t, latent_h, latent_w = noise.shape[2:]
    if mask.ndim == 5 and mask.shape[1] == 1 and mask.shape[2:] == noise.shape[2:]:
        return mask
    size = 1, latent_h * SPATIAL_COMPRESSION, latent_w * SPATIAL_COMPRESSION
    if mask.ndim != 4 or mask.shape[1:] != size or mask.shape[0] not in (1, latent_t_to_frames(latent_t)):
        raise ValueError(
            f"the conditioning's mask has the shape {list(mask.shape)}, but the latent is {latent_t} x {latent_h} "
            f"x {latent_w}: bring the mask to the latent's size with Mask Resize 3D"
        )
    log.warning(
        "the conditioning's latent was made by ComfyUI's InpaintModelConditioning, which paints grey what must be "
        "black: use CogVideoX-Fun's VAE Encode and Inpaint Conditioning instead"
    )
    if (mask >= THRESHOLD).all():
        return None
    return mask_to_latent(mask[:, 0], latent_t, latent_h, latent_w)[None, None]

"""The channels that a model takes beside the noise, from a conditioning's latent and mask."""

import logging

import comfy.utils
import torch
import torch.nn.functional as F

from ...sampling.geometry import SPATIAL_COMPRESSION, latent_t_to_frames
from ...sampling.inpaint import inpaint_latents
from ...sampling.masks import THRESHOLD, mask_to_latent

log = logging.getLogger(__name__)

# What a model takes, see `TransformerConfig.conditioning` -> the remedy for a conditioning of another kind.
REMEDIES = {
    "text": "remove it, or load an InP (33 channels) or Control (32) model",
    "inpaint": "use Inpaint Conditioning with VAE Encode and Mask Resize 3D, or load a Control (32 channels) model",
    "control": "use Control Conditioning, or load an InP (33 channels) model",
    "image": "use Image Conditioning, or load an InP (33 channels) model",
    "void": "use ComfyUI's VOIDInpaintConditioning, or load an InP (33 channels) model",
}


def concat_latents(
    config, scales: tuple, noise: torch.Tensor, latent: torch.Tensor | None, mask: torch.Tensor | None, device
) -> torch.Tensor | None:
    """The channels that a model takes beside the noise, B C T h w, scaled; None for zeros (text to video).

    Args:
        config: the model's `TransformerConfig`.
        scales: what a latent is multiplied by: as a video, and as the first frame of an image-to-video model.
        noise: the sampled latent, B 16 T h w.
        latent, mask: of the conditioning; the latent unscaled, the mask 1 = generate.

    Raises:
        ValueError: conditioning for another kind of model, or of another size than the noise.
    """
    if latent is None and mask is None:
        return None
    kind = config.conditioning
    if latent is None or kind == "text" or (mask is not None) != (kind == "inpaint"):
        given = {"a latent": latent, "a mask": mask}
        have = " and ".join(what for what, value in given.items() if value is not None)
        raise ValueError(
            f"this model takes {config.in_channels} channels ({kind}), but the conditioning holds {have}: "
            f"{REMEDIES[kind]}"
        )
    channels = 32 if kind == "void" else 16
    fits = latent.ndim == 5 and latent.shape[1] == channels and latent.shape[3:] == noise.shape[3:]
    missing = noise.shape[2] - latent.shape[2] if fits else 0
    if not fits or missing and (kind != "image" or missing < 0):
        raise ValueError(
            f"the conditioning's latent has the shape {list(latent.shape)}, but the sampled latent "
            f"{list(noise.shape)}: give CogVideoX-Fun's Empty Latent and VAE Encode the same size and length"
        )
    latent, (scale, image_scale) = latent.to(device), scales
    if kind == "image":  # zeros for the frames after the first
        return F.pad(latent * image_scale, (0, 0, 0, 0, 0, missing))
    latent = latent * scale
    if kind != "inpaint":
        return latent
    mask = latent_mask(mask, noise)
    if mask is None:
        return None
    mask = comfy.utils.repeat_to_batch_size(mask.to(device), latent.shape[0])
    return inpaint_latents(mask, latent, scale)


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
        "the conditioning's latent was made by ComfyUI's InpaintModelConditioning, which greys out what the model "
        "expects black: use CogVideoX-Fun's VAE Encode and Inpaint Conditioning instead"
    )
    if (mask >= THRESHOLD).all():
        return None
    return mask_to_latent(mask[:, 0], latent_t, latent_h, latent_w)[None, None]

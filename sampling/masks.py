"""Masks over a video: 1 = generate, 0 = keep."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import SPATIAL_COMPRESSION, check_size, frames_to_latent_t, latent_t_to_frames

FITS = "crop", "stretch"  # the ways to resize an image of another shape
THRESHOLD = 0.5  # of VideoX-Fun's mask processor: a pixel at or above it is generated
NOT_RGB = {
    1: "turn it into RGB first, for example with Convert Image to Mask and Convert Mask to Image",
    4: "drop its alpha channel first, for example with Split Image with Alpha",
}


def resize_mask_3d(mask: Tensor, latent_t: int, latent_h: int, latent_w: int) -> Tensor:
    """Resize a B 1 F H W mask to the latent grid: the first frame on its own, the others together, trilinear.

    The first latent frame stands for one frame of the video, every other for four (``resize_mask`` in VideoX-Fun's
    inpaint pipeline).
    """

    def resized(frames: Tensor, count: int) -> Tensor:
        return F.interpolate(frames, size=(count, latent_h, latent_w), mode="trilinear", align_corners=False)

    first = resized(mask[:, :, :1], 1)
    return torch.cat([first, resized(mask[:, :, 1:], latent_t - 1)], dim=2) if latent_t > 1 else first


def as_frames(mask: Tensor) -> Tensor:
    """A MASK in any shape that ComfyUI's nodes give (H W, F H W, F 1 H W) as float32 F H W."""
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3:
        raise ValueError(
            f"the mask has the shape {list(mask.shape)}, expected [frames, height, width]: connect a MASK"
        )
    if len(mask) == 0:
        raise ValueError("the mask has no frames: check where it comes from")
    return mask.float()


def fit_mask(mask: Tensor, length: int, height: int, width: int, soft: bool = False) -> Tensor:
    """Resize a mask to a video's frames and size and make it binary.

    Args:
        mask: F H W (or H W, F 1 H W), 0..1, 1 = generate. One frame is repeated. Up to three frames more than
            ``length`` (4n + 1) are cut off, like those of the video.
        soft: keep values between 0 and 1; otherwise 0.5 and above become 1, the rest 0.

    Returns:
        [length, height, width], float32. Resized by the nearest pixel, as VideoX-Fun does.

    Raises:
        ValueError: the number of frames is neither 1 nor the video's.
    """
    mask = as_frames(mask)
    frames = mask.shape[0]
    fits = length <= frames < length + 4 and frames_to_latent_t(frames) == frames_to_latent_t(length)
    if frames != 1 and not fits:
        raise ValueError(
            f"the mask has {frames} frames but the video has {length}: give a mask of 1 or {length} frames"
            + (f", or set the video's length to {frames}" if frames % 4 == 1 else "")
        )
    mask = mask[:length]
    if mask.shape[1:] != (height, width):
        mask = F.interpolate(mask[:, None], size=(height, width))[:, 0]
    mask = mask if soft else (mask >= THRESHOLD).float()
    return mask.expand(length, -1, -1)  # one frame is repeated without memory for the others


def mask_to_latent(mask: Tensor, latent_t: int, latent_h: int, latent_w: int, soft: bool = False) -> Tensor:
    """Resize a pixel mask to the latent grid.

    Args:
        mask: F H W, 0..1, 1 = generate; one frame, or as many as the video.
        latent_t, latent_h, latent_w: the latent's size.
        soft: see `fit_mask`.

    Returns:
        [latent_t, latent_h, latent_w], 0..1; fractions where a latent pixel is generated in part.
    """
    height, width = latent_h * SPATIAL_COMPRESSION, latent_w * SPATIAL_COMPRESSION
    mask = fit_mask(mask, latent_t_to_frames(latent_t), height, width, soft)
    return resize_mask_3d(mask[None, None], latent_t, latent_h, latent_w)[0, 0]


def check_image(image: Tensor, name: str) -> None:
    """Raise a ValueError unless ``image`` is [F, H, W, 3]."""
    if image.ndim != 4:
        raise ValueError(f"{name} has the shape {list(image.shape)}, expected [frames, height, width, 3]")
    channels = image.shape[-1]
    if channels != 3:
        remedy = NOT_RGB.get(channels, "give an RGB image")
        raise ValueError(f"{name} has {channels} channels, expected 3 (RGB): {remedy}")


def resize_image(image: Tensor, width: int, height: int, fit: str = "crop") -> Tensor:
    """Resize F H W C images of 0..1 by PIL's bicubic on 8-bit RGB, as VideoX-Fun does.

    An image of the right size is returned as it is.

    Args:
        fit: "stretch" (VideoX-Fun's) distorts; "crop" keeps proportions and cuts the longer side evenly.
    """
    if image.shape[1:3] == (height, width):
        return image
    import numpy as np
    from PIL import Image, ImageOps

    frames = []
    for array in (image.clamp(0, 1) * 255).round().to(device="cpu", dtype=torch.uint8).numpy():
        picture = Image.fromarray(array)
        if fit == "crop":
            frames.append(ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC))
        else:
            frames.append(picture.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(np.stack(frames)).to(image.dtype) / 255


def build_start_end(
    width: int, height: int, length: int, start: Tensor | None = None, end: Tensor | None = None, fit: str = "crop"
) -> tuple[Tensor, Tensor]:
    """The video and the mask of a start image, an end image, both or neither.

    Args:
        width, height: pixels, multiples of 16.
        length: frames, 4n + 1.
        start, end: [F, H, W, 3], 0..1: the frames that the video begins and ends with.
        fit: see `resize_image`.

    Returns:
        video [length, height, width, 3], 0..1: the start, a filling, the end. The filling repeats the first given
        frame, or is black; the mask covers it.
        mask [length, height, width]: 0 on start and end, 1 elsewhere.

    Raises:
        ValueError: a size that is no multiple of 16, an image that is not RGB, or more images than frames.
    """
    check_size(width, height)
    given = {name: image for name, image in (("start_image", start), ("end_image", end)) if image is not None}
    for name, image in given.items():
        check_image(image, name)
    count = sum(map(len, given.values()))
    if count > length:
        said = " and ".join(f"{name} has {len(image)} frame{'s'[: len(image) != 1]}" for name, image in given.items())
        least = latent_t_to_frames(frames_to_latent_t(count + 3))
        fewer = " (start_frames takes the last ones of start_image)" if start is not None and len(start) > 1 else ""
        raise ValueError(
            f"{said}, but the video has {length}: set length to {least} or more, or give fewer images{fewer}"
        )
    mask = torch.ones(length, height, width)
    if not given:
        return torch.zeros(length, height, width, 3), mask
    parts = {name: resize_image(image, width, height, fit) for name, image in given.items()}
    video = next(iter(parts.values()))[:1].expand(length, -1, -1, -1).clone()
    for name, frames in parts.items():
        known = slice(0, len(frames)) if name == "start_image" else slice(length - len(frames), length)
        video[known], mask[known] = frames, 0
    return video, mask

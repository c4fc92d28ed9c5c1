"""Masks over a video: 1 = generate, 0 = keep. ``known`` is the opposite and never leaves the pack."""

import logging

import torch
import torch.nn.functional as F

from .geometry import SPATIAL_COMPRESSION, check_size, frames_to_latent_t, latent_t_to_frames

log = logging.getLogger(__name__)

FITS = "crop", "stretch"  # how an image of another shape is brought to size
THRESHOLD = 0.5  # of the authors' mask processor: at and above it, a pixel is generated


def resize_mask_3d(mask: torch.Tensor, latent_t: int, latent_h: int, latent_w: int) -> torch.Tensor:
    """Resize a B 1 F H W mask to the latent grid: the first frame on its own, the others together, trilinear.

    The first latent frame stands for one video frame and every other for four, hence the split (``resize_mask`` in
    the authors' inpaint pipeline). Linear, so a mask and its complement are resized alike.
    """
    first = F.interpolate(mask[:, :, :1], size=(1, latent_h, latent_w), mode="trilinear", align_corners=False)
    if latent_t == 1:
        return first
    rest = F.interpolate(
        mask[:, :, 1:], size=(latent_t - 1, latent_h, latent_w), mode="trilinear", align_corners=False
    )
    return torch.cat([first, rest], dim=2)


def finite(frames: torch.Tensor) -> bool:
    """Whether all values are, frame by frame: asked at once, a whole video would be copied for it."""
    return all(bool(torch.isfinite(frame).all()) for frame in frames)


def as_frames(mask: torch.Tensor) -> torch.Tensor:
    """A mask as the host hands it out (H W, F H W, F 1 H W) as float32 F H W."""
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim == 2:
        mask = mask[None]
    if mask.ndim != 3:
        raise ValueError(
            f"the mask has the shape {list(mask.shape)}, expected [frames, height, width]: connect a MASK"
        )
    if not finite(mask):
        raise ValueError("the mask holds NaN or infinity, expected values from 0 (keep) to 1 (generate)")
    return mask.float()


def fit_mask(mask: torch.Tensor, length: int, height: int, width: int, soft: bool = False) -> torch.Tensor:
    """Bring a mask to a video's frames and size and make it binary.

    Args:
        mask: F H W (or H W, F 1 H W), 0..1, 1 = generate. One frame is repeated to ``length``; a mask of up to
            three frames more than ``length`` (4n + 1) is cut like the video that it came with.
        soft: let values between 0 and 1 through instead of binarising at 0.5 (>= 0.5 generates).

    Returns:
        [length, height, width], float32. Resized by the nearest pixel, as the authors' processor does.

    Raises:
        ValueError: the number of frames is neither 1 nor that of the video.
    """
    mask = as_frames(mask)
    frames = mask.shape[0]
    if frames == 1:
        mask = mask.expand(length, -1, -1)
    elif length <= frames < length + 4 and frames_to_latent_t(frames) == frames_to_latent_t(length):
        mask = mask[:length]
    else:
        raise ValueError(
            f"the mask has {frames} frames but the video has {length}: give a mask of 1 or {length} frames"
            + (f", or set the video's length to {frames}" if frames % 4 == 1 else "")
        )
    if mask.shape[1:] != (height, width):
        mask = F.interpolate(mask[:, None], size=(height, width))[:, 0]
    return mask if soft else (mask >= THRESHOLD).float()


def mask_to_latent(
    mask: torch.Tensor, latent_t: int, latent_h: int, latent_w: int, soft: bool = False
) -> torch.Tensor:
    """A pixel mask on the latent grid.

    Args:
        mask: F H W, 0..1, 1 = generate; one frame, or the frames of the video.
        latent_t, latent_h, latent_w: the target latent's shape.
        soft: see `fit_mask`.

    Returns:
        [latent_t, latent_h, latent_w], 0..1; fractions where the known frames or pixels cover a latent in part.
    """
    height, width = latent_h * SPATIAL_COMPRESSION, latent_w * SPATIAL_COMPRESSION
    mask = fit_mask(mask, latent_t_to_frames(latent_t), height, width, soft)
    return resize_mask_3d(mask[None, None], latent_t, latent_h, latent_w)[0, 0]


def check_image(image: torch.Tensor, name: str) -> None:
    """Raise a ValueError unless ``image`` is [F, H, W, 3] and finite."""
    if image.ndim != 4:
        raise ValueError(f"{name} has the shape {list(image.shape)}, expected [frames, height, width, 3]")
    channels = image.shape[-1]
    if channels != 3:
        remedy = {
            1: "turn it into RGB first, for example with Convert Mask to Image",
            4: "drop its alpha channel first, for example with Split Image with Alpha",
        }.get(channels, "give an RGB image")
        raise ValueError(f"{name} has {channels} channels, expected 3 (RGB): {remedy}")
    if not finite(image):
        raise ValueError(f"{name} holds NaN or infinity, expected values from 0 to 1")


def resize_image(image: torch.Tensor, width: int, height: int, fit: str = "crop") -> torch.Tensor:
    """Resize F H W C images of 0..1 by PIL's bicubic on 8-bit RGB, as the authors do.

    Args:
        fit: "stretch" (the authors') or "crop", which keeps proportions and cuts the longer side evenly.

    One already of the right size is returned untouched.
    """
    if image.shape[1:3] == (height, width):
        return image
    import numpy as np
    from PIL import Image

    if fit not in FITS:
        raise ValueError(f"fit is {fit!r}, expected {' or '.join(FITS)}")
    source_h, source_w = image.shape[1:3]
    box = (0.0, 0.0, float(source_w), float(source_h))
    if fit == "crop":
        scale = min(source_w / width, source_h / height)
        left, top = (source_w - width * scale) / 2, (source_h - height * scale) / 2
        box = (max(left, 0.0), max(top, 0.0), min(left + width * scale, source_w), min(top + height * scale, source_h))
    frames = (image.clamp(0, 1) * 255).round().to(device="cpu", dtype=torch.uint8).numpy()
    resized = [
        np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box))
        for frame in frames
    ]
    return torch.from_numpy(np.stack(resized)).to(image.dtype) / 255


def build_start_end(
    width: int,
    height: int,
    length: int,
    start: torch.Tensor | None = None,
    end: torch.Tensor | None = None,
    fit: str = "crop",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The video and the mask of a start image, an end image, both or neither.

    Args:
        width, height: pixels, multiples of 16.
        length: frames, 4n + 1.
        start, end: [F, H, W, 3], 0..1: the frames that the video begins and ends with.
        fit: how an image of another shape is brought to size, see `resize_image`.

    Returns:
        video [length, height, width, 3], 0..1: the start, then its first frame repeated (those frames are masked
        anyway; without a start the first end frame, without either black), then the end.
        mask [length, height, width]: 0 on start and end, 1 elsewhere.

    Raises:
        ValueError: a size that is no multiple of 16, an image that is not RGB, or more images than frames.
    """
    check_size(width, height)
    parts = {}
    for name, image in (("start_image", start), ("end_image", end)):
        if image is not None:
            check_image(image, name)
            parts[name] = resize_image(image, width, height, fit)
    counts = {name: len(image) for name, image in parts.items()}
    if sum(counts.values()) > length:
        given = " and ".join(f"{name} has {count} frame{'s'[: count != 1]}" for name, count in counts.items())
        least = latent_t_to_frames(frames_to_latent_t(sum(counts.values()) + 3))
        raise ValueError(f"{given}, but the video has {length}: set length to {least} or more, or give fewer images")
    mask = torch.ones(length, height, width)
    if not parts:
        return torch.zeros(length, height, width, 3), mask
    video = next(iter(parts.values()))[:1].expand(length, -1, -1, -1).clone()
    if "start_image" in parts:
        video[: counts["start_image"]] = parts["start_image"]
        mask[: counts["start_image"]] = 0
    if "end_image" in parts:
        video[length - counts["end_image"] :] = parts["end_image"]
        mask[length - counts["end_image"] :] = 0
    return video, mask

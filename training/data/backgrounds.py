"""What is behind the shapes of a procedural clip: gradients, textures and photographs, which a camera can move over.

Textures and photographs are those that come with scikit-image.
"""

import dataclasses
import functools

import torch
import torch.nn.functional as F

# The colours at the top and the bottom of the frame. Shapes are more saturated or brighter than all of them.
GRADIENTS = {
    "night": ((0.04, 0.05, 0.14), (0.14, 0.16, 0.30)),
    "sand": ((0.80, 0.72, 0.56), (0.64, 0.54, 0.40)),
    "fog": ((0.66, 0.69, 0.71), (0.48, 0.51, 0.53)),
    "forest": ((0.20, 0.30, 0.20), (0.08, 0.15, 0.10)),
    "dusk": ((0.46, 0.34, 0.40), (0.70, 0.50, 0.44)),
}
# The name in scikit-image, and the colour that the grey texture gets
TEXTURES = {
    "bricks": ("brick", (0.95, 0.66, 0.54)),
    "grass": ("grass", (0.62, 0.95, 0.48)),
    "gravel": ("gravel", (0.92, 0.90, 0.86)),
}
PHOTOS = {
    "coffee": "coffee",
    "astronaut": "astronaut",
    "rocket": "rocket",
    "moon": "moon",
    "galaxy": "hubble_deep_field",
    "coins": "coins",
    "motorcycle": "stereo_motorcycle",
}
HELD_OUT_PHOTO = {"cat": "chelsea"}  # only the evaluation uses it
NAMES = (*GRADIENTS, *TEXTURES, *PHOTOS)

PHOTO_SIDE = 512  # photographs are made as small as this, by their shorter side


@dataclasses.dataclass(frozen=True)
class View:
    """What a camera sees of a picture: its centre in fractions of the picture, and its size as a fraction of the
    largest window that fits."""

    x: float
    y: float
    size: float


STILL = View(0.5, 0.5, 1.0), View(0.5, 0.5, 1.0)


@functools.cache
def picture(name: str) -> torch.Tensor:
    """A texture or photograph as 1 3 H W of 0..1. Every process reads it once.

    Raises:
        ImportError: scikit-image is missing.
    """
    from skimage import data

    tint = torch.ones(3)
    if name in TEXTURES:
        name, colour = TEXTURES[name]
        tint = torch.tensor(colour)
    else:
        name = (PHOTOS | HELD_OUT_PHOTO)[name]
    pixels = getattr(data, name)()
    pixels = torch.as_tensor(pixels[0] if isinstance(pixels, tuple) else pixels)  # of a stereo pair, the left one
    pixels = pixels[..., None].expand(-1, -1, 3) if pixels.dim() == 2 else pixels[..., :3]
    pixels = pixels.movedim(-1, 0)[None].float() / 255 * tint[None, :, None, None]
    scale = PHOTO_SIDE / min(pixels.shape[2:])
    if scale < 1:
        pixels = F.interpolate(pixels, scale_factor=scale, mode="bilinear", antialias=True)
    return pixels.clamp(0, 1)


def window_of(name: str, height: int, width: int) -> tuple[float, float]:
    """The largest window with the shape of a frame, as fractions of a picture's height and width."""
    high, wide = picture(name).shape[2:]
    side = min(high / height, wide / width)
    return height * side / high, width * side / wide


def views(first: View, last: View, along: torch.Tensor) -> torch.Tensor:
    """The views between two, in equal steps of position and of the logarithm of size: F 3 (x, y, size)."""
    a, b = (torch.tensor([v.x, v.y, v.size]) for v in (first, last))
    place = a[:2] + (b - a)[:2] * along[:, None]
    size = a[2] * (b[2] / a[2]) ** along
    return torch.cat([place, size[:, None]], dim=1)


def photograph(name: str, path: tuple[View, View], along: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What a camera sees of a picture, F H W 3, or 1 H W 3 if it stands still.

    Args:
        along: how far along its path the camera is in each frame, [F] of 0..1.
    """
    if path[0] == path[1]:
        along = along[:1]
    seen = views(*path, along)
    window_h, window_w = window_of(name, height, width)
    pixels = picture(name)
    # As many pixels as the widest view needs, so that bilinear samples don't leave any out
    scale = height / (float(seen[:, 2].max()) * window_h * pixels.shape[2])
    if scale < 1:
        pixels = F.interpolate(pixels, scale_factor=scale, mode="bilinear", antialias=True)
    x = (torch.arange(width) + 0.5) / width - 0.5
    y = (torch.arange(height) + 0.5) / height - 0.5
    at_x = seen[:, :1] + x * seen[:, 2:] * window_w  # F W
    at_y = seen[:, 1:2] + y * seen[:, 2:] * window_h  # F H
    grid = torch.stack([at_x[:, None, :].expand(-1, height, -1), at_y[:, :, None].expand(-1, -1, width)], dim=-1)
    frames = F.grid_sample(
        pixels.expand(len(seen), -1, -1, -1), grid * 2 - 1, padding_mode="border", align_corners=False
    )
    return frames.movedim(1, -1).clamp(0, 1)


def gradient(name: str, height: int) -> torch.Tensor:
    """A gradient from top to bottom, 1 H 1 3."""
    top, bottom = (torch.tensor(colour) for colour in GRADIENTS[name])
    return (top + (bottom - top) * ((torch.arange(height) + 0.5) / height)[:, None])[None, :, None]

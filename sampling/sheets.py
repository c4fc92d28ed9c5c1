"""Contact sheets of masks: a small picture of what is kept and what is generated."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .masks import THRESHOLD

CELLS = 16  # frames at most, evenly spaced
COLUMNS = 8
CELL = 96  # pixels of a frame's longer side
LABEL = 14  # pixels above a frame for its number
GAP = 2
STRIPE = 4


def chosen(length: int) -> list[int]:
    """The frames that a sheet shows: the first, the last, and evenly between."""
    count = min(length, CELLS)
    return sorted({round(i * (length - 1) / max(count - 1, 1)) for i in range(count)})


def small(frames: Tensor, mode: str) -> Tensor:
    """F C H W frames at the size of a sheet's cells, on the CPU."""
    scale = CELL / max(frames.shape[2:])
    size = [max(1, round(side * scale)) for side in frames.shape[2:]]
    return F.interpolate(frames.cpu().float(), size, mode=mode)


def video_sheet(video: Tensor, mask: Tensor) -> Tensor:
    """A video (F H W 3, 0..1) with stripes where its mask (F H W, 1 = generate) generates: 1 H W 3, 0..1."""
    frames = chosen(len(video))
    pictures = small(video[frames].movedim(-1, 1), "area")
    generated = small(mask[frames, None], "area") >= THRESHOLD
    rows, columns = torch.arange(pictures.shape[2])[:, None], torch.arange(pictures.shape[3])
    stripes = ((rows + columns) // STRIPE % 2) * 0.25 + 0.35
    return sheet(torch.where(generated, stripes, pictures), frames)


def mask_sheet(mask: Tensor) -> Tensor:
    """The frames of a T h w mask, black = keep and white = generate: 1 H W 3, 0..1."""
    frames = chosen(len(mask))
    return sheet(small(mask[frames, None], "nearest").expand(-1, 3, -1, -1), frames)


def sheet(pictures: Tensor, frames: list[int]) -> Tensor:
    """N 3 h w pictures in rows on grey, each below the number of its frame, from 1: 1 H W 3, 0..1."""
    import numpy as np
    from PIL import Image, ImageDraw

    step_y, step_x = pictures.shape[2] + LABEL + GAP, pictures.shape[3] + GAP
    columns, rows = min(len(frames), COLUMNS), -(-len(frames) // COLUMNS)
    canvas = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), (64, 64, 64))
    draw = ImageDraw.Draw(canvas)
    arrays = (pictures.clamp(0, 1) * 255).round().byte().movedim(1, -1).numpy()
    for i, (array, frame) in enumerate(zip(arrays, frames, strict=True)):
        x, y = GAP + i % COLUMNS * step_x, GAP + i // COLUMNS * step_y
        draw.text((x + 1, y + 1), str(frame + 1), fill=(230, 230, 230))
        canvas.paste(Image.fromarray(array), (x, y + LABEL))
    return torch.from_numpy(np.array(canvas)).float()[None] / 255

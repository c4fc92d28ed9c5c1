"""Contact sheets of masks: what of a video is known and what is to be generated, as one small picture."""

import torch
import torch.nn.functional as F

from .masks import THRESHOLD

CELLS = 16  # at most; of a longer video, evenly
COLUMNS = 8
CELL = 96  # pixels of a cell's longer side
LABEL = 14  # pixels above a cell, for the frame's number
GAP = 2
STRIPE = 4


def chosen(length: int) -> list[int]:
    """The frames that a sheet shows: the first, the last, and evenly between."""
    count = min(length, CELLS)
    return sorted({round(i * (length - 1) / max(count - 1, 1)) for i in range(count)})


def video_sheet(video: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """What is known as it is, and what is to be generated striped, with the numbers of the frames.

    Args:
        video: F H W 3, 0..1.
        mask: F H W, 1 = generate.

    Returns:
        1 H W 3, 0..1.
    """
    frames = chosen(len(video))
    height, width = cell_size(*video.shape[1:3])
    small = F.interpolate(video[frames].cpu().movedim(-1, 1).float(), (height, width), mode="area")
    unknown = F.interpolate(mask[frames, None].cpu().float(), (height, width), mode="area") >= THRESHOLD
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    stripes = ((rows + columns) // STRIPE % 2).float() * 0.25 + 0.35
    small = torch.where(unknown, stripes, small)
    return sheet(small, [frame + 1 for frame in frames])


def mask_sheet(mask: torch.Tensor) -> torch.Tensor:
    """The frames of a T h w mask, black = keep and white = generate, with their numbers: 1 H W 3, 0..1."""
    frames = chosen(len(mask))
    small = F.interpolate(mask[frames, None].float(), cell_size(*mask.shape[1:]), mode="nearest")
    return sheet(small.expand(-1, 3, -1, -1), [frame + 1 for frame in frames])


def cell_size(height: int, width: int) -> tuple[int, int]:
    scale = CELL / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def sheet(cells: torch.Tensor, numbers: list[int]) -> torch.Tensor:
    """N 3 h w cells in rows under their numbers, on grey: 1 H W 3, 0..1."""
    import numpy as np
    from PIL import Image, ImageDraw

    height, width = cells.shape[2:]
    columns = min(len(cells), COLUMNS)
    rows = -(-len(cells) // columns)
    step_y, step_x = height + LABEL + GAP, width + GAP
    canvas = Image.new("RGB", (columns * step_x + GAP, rows * step_y + GAP), (64, 64, 64))
    draw = ImageDraw.Draw(canvas)
    pictures = (cells.clamp(0, 1) * 255).round().to(device="cpu", dtype=torch.uint8).movedim(1, -1).numpy()
    for i, (picture, number) in enumerate(zip(pictures, numbers, strict=True)):
        x, y = GAP + i % columns * step_x, GAP + i // columns * step_y
        draw.text((x + 1, y + 1), str(number), fill=(230, 230, 230))
        canvas.paste(Image.fromarray(picture), (x, y + LABEL))
    return torch.from_numpy(np.array(canvas)).float()[None] / 255

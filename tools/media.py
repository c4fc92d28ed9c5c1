"""Photographs in, videos and contact sheets out."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

FPS = 8  # the models' own
HEADING, GAP = 22, 12  # pixels: above the clips of a contact sheet, and between them


def photographs() -> tuple[torch.Tensor, torch.Tensor]:
    """Two real photographs that scikit-image ships, [1, H, W, 3], 0..1."""
    import skimage.data

    images = skimage.data.astronaut(), skimage.data.coffee()
    return tuple(torch.from_numpy(np.ascontiguousarray(image)).float()[None] / 255 for image in images)


def to_uint8(video: torch.Tensor) -> np.ndarray:
    return (video.clamp(0, 1) * 255).round().to(torch.uint8).cpu().numpy()


def write_mp4(path: Path, video: torch.Tensor, fps: int = FPS) -> None:
    """Write F H W 3 of 0..1 as H.264."""
    import av

    frames = to_uint8(video)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def read_video(path: Path) -> torch.Tensor:
    """All frames of a file, F H W 3 of 0..1."""
    import av

    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).float() / 255


def enlarged(video: torch.Tensor, times: int) -> torch.Tensor:
    """F H W 3 of 0..1, larger by a whole number."""
    pictures = F.interpolate(video.movedim(-1, 1), scale_factor=times, mode="bicubic")
    return pictures.movedim(1, -1).clamp(0, 1)


def contact_sheet(
    path: Path, clips: dict[str, torch.Tensor], start: torch.Tensor, end: torch.Tensor, columns: int = 5
) -> None:
    """Write clips side by side as one picture, each with all of its frames, row by row, below its name.

    The given images, in white frames, are before and after the frames.

    Args:
        clips: F H W 3 of 0..1 each, of the same shape, by their names.
        start, end: one image each, of the clips' size.
    """
    length, height, width = next(iter(clips.values())).shape[:3]
    across = columns * width + GAP
    rows = -(-(length + 2) // columns)
    sheet = Image.new("RGB", (len(clips) * across - GAP, HEADING + rows * height), "black")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for number, (name, video) in enumerate(clips.items()):
        draw.text((number * across + 4, 3), name, fill="white", font=font)
        for i, cell in enumerate([framed(start), *to_uint8(video), framed(end)]):
            place = number * across + i % columns * width, HEADING + i // columns * height
            sheet.paste(Image.fromarray(cell), place)
    sheet.save(path)


def framed(image: torch.Tensor, line: int = 3) -> np.ndarray:
    """1 H W 3 with a white line at its edges."""
    cell = np.full_like(to_uint8(image[0]), 255)
    cell[line:-line, line:-line] = to_uint8(image[0])[line:-line, line:-line]
    return cell

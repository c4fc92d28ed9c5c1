"""Photographs in, videos and contact sheets out."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

FPS = 8  # the models' own


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


def contact_sheet(path: Path, video: torch.Tensor, start: torch.Tensor, end: torch.Tensor, columns: int = 5) -> None:
    """Write all frames as one picture, row by row, between the given images, each in a white frame.

    Args:
        video: F H W 3 of 0..1.
        start, end: one image each, of the video's size.
    """
    cells = [framed(start), *to_uint8(video), framed(end)]
    rows = -(-len(cells) // columns)
    height, width = cells[0].shape[:2]
    sheet = Image.new("RGB", (columns * width, rows * height))
    for i, cell in enumerate(cells):
        sheet.paste(Image.fromarray(cell), (i % columns * width, i // columns * height))
    sheet.save(path)


def framed(image: torch.Tensor, line: int = 3) -> np.ndarray:
    """1 H W 3 with a white line at its edges."""
    cell = np.full_like(to_uint8(image[0]), 255)
    cell[line:-line, line:-line] = to_uint8(image[0])[line:-line, line:-line]
    return cell

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


def contact_sheet(path: Path, video: torch.Tensor, columns: int = 5) -> None:
    """Write all frames as one picture, row by row."""
    frames = to_uint8(video)
    rows = -(-len(frames) // columns)
    height, width = frames.shape[1:3]
    sheet = Image.new("RGB", (columns * width, rows * height))
    for i, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame), (i % columns * width, i // columns * height))
    sheet.save(path)

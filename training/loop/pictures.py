"""Clips as one labelled picture, and as one video."""

from pathlib import Path

import torch

FRAMES = 5  # of a clip in the picture, evenly spaced
CELL = 256  # pixels of a frame's longer side in the picture, at most
LABEL, GAP = 14, 2  # pixels above a line of frames, and around frames
LETTERS = 100  # of a label


def frames_of(video: torch.Tensor) -> torch.Tensor:
    """Frames of a clip F H W 3 side by side, H (n W) 3, made smaller to fit into cells."""
    picked = video[torch.linspace(0, len(video) - 1, min(FRAMES, len(video))).round().long()].movedim(-1, 1)
    scale = min(CELL / max(picked.shape[2:]), 1.0)
    if scale < 1:
        size = [max(round(side * scale), 1) for side in picked.shape[2:]]
        picked = torch.nn.functional.interpolate(picked, size, mode="area")
    padded = torch.nn.functional.pad(picked, (GAP, 0), value=0.25)
    return torch.cat(list(padded.movedim(1, -1)), dim=1)


def write_picture(path: Path, lines: list[tuple[str, torch.Tensor]]):
    """Write a PNG with a line of frames for each clip, its label above.

    Args:
        lines: labels, and clips F H W 3 of 0..1 that have one size.

    Returns:
        The picture, H W 3 of 0..255, as a numpy array.
    """
    import numpy as np
    from PIL import Image, ImageDraw

    rows = [(label, (frames_of(clip).clamp(0, 1) * 255).round().byte().numpy()) for label, clip in lines]
    width, step = max(row.shape[1] for _, row in rows), LABEL + rows[0][1].shape[0]
    canvas = Image.new("RGB", (width + GAP, step * len(rows) + GAP), (64, 64, 64))
    draw = ImageDraw.Draw(canvas)
    for i, (label, row) in enumerate(rows):
        text = label.encode("ascii", "replace").decode()[:LETTERS]  # PIL's own font has no other letters
        draw.text((GAP, i * step + 1), text, fill=(230, 230, 230))
        canvas.paste(Image.fromarray(row), (0, i * step + LABEL))
    temporary = path.with_suffix(".tmp")
    canvas.save(temporary, format="PNG")
    temporary.replace(path)
    return np.array(canvas)


def write_video(path: Path, table: list[list[torch.Tensor]], fps: float) -> None:
    """Write clips F H W 3 of 0..1, all of one size, as one H.264 video: a row for each list, without labels."""
    import av

    frames = torch.cat([torch.cat(row, dim=2) for row in table], dim=1)  # F (rows H) (columns W) 3
    temporary = path.with_suffix(".tmp")
    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=round(fps), options={"crf": "18"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in (frames.clamp(0, 1) * 255).round().byte().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    temporary.replace(path)

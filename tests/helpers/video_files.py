"""Write small real video files with PyAV."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TICKS = Fraction(1, 90000)  # of `write_video`'s times


def counted(count: int) -> np.ndarray:
    """Frames F H W 3 whose brightness is ten times their number."""
    return np.full((count, 48, 64, 3), 0, np.uint8) + 10 * np.arange(count, dtype=np.uint8)[:, None, None, None]


def moving(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames F H W 3 of a noisy picture that moves, so that predicted frames differ from their neighbours."""
    picture = np.random.RandomState(0).randint(0, 255, (height, width, 3), np.uint8)
    return np.stack([np.roll(picture, 3 * i, 1) for i in range(count)])


def write_video(
    path: Path,
    frames: np.ndarray,
    # how
    rate: float = 24,
    rotation: int = 0,
    codec: str = "mpeg4",
    pixels: str = "yuv420p",
    options: dict | None = None,
    # when
    times: list[float] | None = None,
    shift: int = 0,
    caption: str | None = None,
) -> Path:
    """A file of F H W 3 frames of 0..255, and its caption beside it: the file's stem, if not given.

    Args:
        times: seconds of each frame, for a variable rate.
        shift: ticks of 1/90000 s added to all packets.
    """
    path = Path(path)
    settings = {"avoid_negative_ts": "disabled"} if shift < 0 else {}
    with av.open(str(path), "w", options=settings) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        if times or shift:
            stream.time_base = stream.codec_context.time_base = TICKS
        if rotation:
            stream.set_display_rotation(rotation)
        container.start_encoding()

        def write(packets) -> None:
            for packet in packets:
                if shift:
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                container.mux(packet)

        for number, array in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(array, format="rgb24")
            if times or shift:
                seconds = times[number] if times else number / rate
                frame.time_base, frame.pts = TICKS, round(seconds / TICKS)
            write(stream.encode(frame))
        if len(frames):
            write(stream.encode())
    path.with_suffix(".txt").write_text(path.stem if caption is None else caption)
    return path

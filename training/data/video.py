"""Read one video file with PyAV: what it measures, and its frames from any place on.

PyAV, not torchcodec: torchcodec needs an FFmpeg of the system, and reads no pictures.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from .buckets import Bucket

PICTURE_SUFFIXES = (".gif", ".png", ".jpg", ".jpeg")
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", *PICTURE_SUFFIXES)

# A frame may be this many seconds early: Matroska rounds times to milliseconds. It is no whole number of ticks of any
# usual clock (1/1000, 1/90000, 1/12800 s), so no comparison depends on a rounding.
SLACK = 1 / 480
# Containers that store the presentation time of every frame and the places of keyframes, and codecs with one shown
# frame in every packet. Packets of other files (AVI, MPEG-PS, VP8's hidden frames) don't tell how many frames are
# shown or when, and a GIF has only one keyframe: those are decoded from the start.
INDEXED_FORMATS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
INDEXED_CODECS = ("h264", "hevc", "vp9", "av1", "libdav1d", "mpeg4", "mpeg2video", "mjpeg", "prores")
STEPS_BACK = 0, 1, 4, 16  # seconds: how far before the wanted frame a keyframe is looked for


@dataclasses.dataclass(frozen=True)
class Measures:
    """What a manifest says about a clip.

    Frames and rate are those of the file, not those at which it is trained. ``fps`` is the mean rate, (frames - 1) /
    (last time - first time), so frames and rate together give the exact duration also at a variable rate. Width and
    height are those of the upright picture.
    """

    frames: int
    fps: float
    width: int
    height: int


@contextmanager
def opened(path: Path) -> Iterator:
    """The container of a file and its video stream.

    Raises:
        OSError: unreadable, or without a video. The message has the reason without the path.
    """
    import av
    from av.stream import Disposition

    try:
        if not Path(path).stat().st_size:
            raise OSError("the file is empty")
        with av.open(str(path)) as container:
            videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            if not videos:
                raise OSError("no video stream")
            yield container, videos[0]
    except FileNotFoundError as error:
        raise OSError("no such file") from error
    except av.FFmpegError as error:
        raise OSError(f"can't be read as a video ({error.strerror})") from error


def indexed(container, stream) -> bool:
    """Whether the packets tell the frames and their times: see `INDEXED_FORMATS`."""
    return container.format.name in INDEXED_FORMATS and stream.codec_context.name in INDEXED_CODECS


def packets_of(container, stream) -> Iterator:
    """The packets from the current place on, without damaged ones: a decoder would stop at them.

    A file that has lost its end keeps all frames that are left.
    """
    return (packet for packet in container.demux(stream) if not packet.is_corrupt)


def decoded(packets: Iterable) -> Iterator:
    return (frame for packet in packets for frame in packet.decode())


def survey(container, stream) -> tuple:
    """The first frame, and the presentation times of all frames in order, in ticks of the stream.

    Where the packets tell the times, only the first frame is decoded. It shows that the codec can be read, and its
    size and rotation are true where the header's are not. Packets that a player doesn't show are not counted: those
    that an edit list hides, damaged ones, and those before the first frame that can be decoded.

    Raises:
        OSError: no frame, or frames without times.
    """
    first, ticks, from_packets = None, [], indexed(container, stream)
    for packet in packets_of(container, stream):
        if from_packets and packet.size and not packet.is_discard:
            ticks.append(packet.pts)
        if first is None or not from_packets:
            for frame in packet.decode():
                first = first or frame
                if not from_packets:
                    ticks.append(frame.pts)
    if first is None:
        raise OSError("no frames")
    if None in ticks or first.pts is None:
        raise OSError("frames without times")
    return first, sorted(tick for tick in (set(ticks) if from_packets else ticks) if tick >= first.pts)


def quarter_turns(frame) -> int:
    """Counterclockwise quarter turns, 0 to 3, that make a frame upright. Phones store what the sensor sees."""
    return round(frame.rotation / 90) % 4


def measure_clip(path: Path) -> Measures:
    """Measure a file by its packets; see `survey` for what is decoded.

    Raises:
        OSError: unreadable, or a video of one frame. A picture has one frame.
    """
    with opened(path) as (container, stream):
        first, ticks = survey(container, stream)
        seconds = (ticks[-1] - ticks[0]) * first.time_base
    picture = Path(path).suffix.lower() in PICTURE_SUFFIXES
    if len(ticks) == 1 and not picture:
        raise OSError("one frame: too short for a video")
    size = (first.height, first.width) if quarter_turns(first) % 2 else (first.width, first.height)
    return Measures(len(ticks), float((len(ticks) - 1) / seconds) if seconds else 1.0, *size)


def rate_of(native: float, fps: float) -> float:
    """The rate to read a clip at: 0, all frames, if it has no more than ``fps`` frames a second itself."""
    return fps if native > fps else 0.0


def at_rate(frames: Iterable, fps: float, start: int | None = None, number: int = 0) -> Iterator:
    """The first frame of every 1 / ``fps`` seconds, by presentation times.

    If a period has no frame, the picture stands still: the frame shown last comes again. So a clip of a variable rate
    keeps its speed, and its number of frames follows from its duration. With ``fps`` 0 all frames are taken.

    Args:
        frames: with ``number``, from a frame on that is shown at or before the beginning of that period.
        start: the time of the clip's first frame, in ticks; None for that of ``frames``.
        number: the first period to give.
    """
    last, shown = number - 1, None
    for frame in frames:
        if fps and frame.pts is not None:
            start = frame.pts if start is None else start
            period = math.floor((float((frame.pts - start) * frame.time_base) + SLACK) * fps)
            while shown is not None and last < period - 1:
                last += 1
                yield shown
            shown = frame
            if period <= last or period < number:
                continue
            last = period
        yield frame


def read_frames(path: Path, fps: float, first: int, count: int) -> list:
    """Frames of PyAV from number ``first`` on, at a rate: see `at_rate`.

    They are the same, to the bit, as those of decoding the file from its start. Decoding begins at a keyframe where
    the file has them.

    Raises:
        OSError: unreadable, or too short.
    """
    frames = _from_keyframe(path, fps, first, count) if first else None
    if frames is None:
        with opened(path) as (container, stream):
            frames = list(islice(at_rate(decoded(packets_of(container, stream)), fps), first, first + count))
    if len(frames) < count:
        raise OSError(f"{len(frames)} frames from {first} on, expected {count}")
    return frames


def _from_keyframe(path: Path, fps: float, first: int, count: int) -> list | None:
    """`read_frames` by seeking, or None where that gives no certain result.

    The keyframe must be shown at or before the wanted frame. Frames shown before it may need earlier ones (an open
    group of pictures), so they are skipped, and it must itself be the first frame that the decoder gives after them.
    """
    with opened(path) as (container, stream):
        if not indexed(container, stream):
            return None
        if fps:
            begin = next(decoded(packets_of(container, stream)), None)
            if begin is None:
                return None
            start = begin.pts
            target = start + math.floor((first / fps - SLACK) / stream.time_base)
        else:
            start, ticks = None, survey(container, stream)[1]
            if first >= len(ticks):
                return None
            target = ticks[first]
        found = _seek(container, stream, target)
        if found is None:
            return None
        key, packets = found
        frames = (frame for frame in decoded(packets) if frame.pts is not None and frame.pts >= key)
        begin = next(frames, None)
        if begin is None or begin.pts != key:
            return None
        frames = chain([begin], frames)
        if fps:
            picked = list(islice(at_rate(frames, fps, start, first), count))
        else:
            picked = list(islice((frame for frame in frames if frame.pts >= target), count))
        return None if len(picked) < count or any(frame.is_corrupt for frame in picked) else picked


def _seek(container, stream, target: int) -> tuple[int, Iterator] | None:
    """The time of a keyframe shown at or before ``target``, in ticks, and the packets from it on."""
    for seconds in STEPS_BACK:
        container.seek(target - math.floor(seconds / stream.time_base), stream=stream)
        packets = packets_of(container, stream)
        key = next((packet for packet in packets if packet.is_keyframe and packet.size), None)
        if key is not None and key.pts is not None and key.pts <= target:
            return key.pts, chain([key], packets)
    return None


def fit_frames(frames: Sequence, bucket: Bucket) -> torch.Tensor:
    """Frames of PyAV, each turned upright, resized and cut to a bucket on its own: F H W 3 of 0..1.

    The same as `sampling.masks.resize_image`, without floats at the file's size, which take four times as long.
    """
    pictures = [np.rot90(frame.to_ndarray(format="rgb24"), quarter_turns(frame)) for frame in frames]
    size = bucket.width, bucket.height
    fitted = [ImageOps.fit(Image.fromarray(np.ascontiguousarray(p)), size, Image.Resampling.BICUBIC) for p in pictures]
    return torch.from_numpy(np.stack(fitted)).float() / 255

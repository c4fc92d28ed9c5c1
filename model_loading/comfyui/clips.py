"""ComfyUI's VIDEO as frames with their times, and as sound, from a file or from what other nodes made.

ComfyUI's own `get_components` keeps all frames of a file in memory, and their times are lost. On 0.3.64 it also leaves
pictures of phones on their side.
"""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from ...sampling.clips import SLACK, rotated, sound_within
from .compat import trim_window

# seconds before a frame to seek to, each tried if the one before ended too late; None: no seek
SEEK_BACK = (0.0, 10.0, None)
LOST = 1.0  # seconds of pictures that may be missing at the end: what the file says of its length can be rounded
GAP = 0.03  # seconds without sound, for example of lost packets: less comes from rounded times
AUDIO = dict[str, Tensor | int]  # ComfyUI's: waveform 1 C S and sample_rate


class MadeClip:
    """A VIDEO that other nodes made, in memory. ``end`` is its length in seconds."""

    def __init__(self, video):
        components = video.get_components()
        self.images, self.audio, self.rate = components.images, components.audio, float(components.frame_rate)
        self.end = len(self.images) / self.rate

    def frames(self, start: float) -> Iterator[tuple[float, Tensor]]:
        """All frames, each with the second at which it begins, also those before ``start``."""
        return ((i / self.rate, image) for i, image in enumerate(self.images))

    @staticmethod
    def picture(frame: Tensor) -> Tensor:
        """H W 3 of 0..1."""
        return frame[..., :3]

    def sound(self, start: float, seconds: float) -> AUDIO | None:
        """The sound of a part, given in seconds; None without one."""
        if self.audio is None:
            return None
        rate = self.audio["sample_rate"]
        return {"waveform": sound_within(self.audio["waveform"], rate, 0.0, start, seconds), "sample_rate": rate}


class FileClip:
    """A VIDEO from a file, read where it is needed. ``end`` is its length in seconds.

    Times are seconds from the beginning of the VIDEO. In the file it begins at ``first``.

    Raises:
        ValueError: the file has no pictures.
    """

    def __init__(self, video):
        import av

        self.video = video
        begin, cut = trim_window(video)
        with self.opened() as (container, stream):
            self.is_mpeg_ps = container.format.name == "mpeg"  # .mpg and .vob; after a seek, times are wrong
            self.first = (container.start_time or 0) / av.time_base + begin
            self.end = self.end_in_file(container, stream) - self.first
        if cut:
            self.end = min(self.end, cut)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple]:
        """The file and its first video stream.

        Raises:
            ValueError: it has none, or what is read of it is damaged.
        """
        import av

        with av.open(self.video.get_stream_source(), mode="r") as container:
            if not container.streams.video:
                raise ValueError("the clip has no pictures, expected a video: choose another file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            try:
                yield container, stream
            except av.error.InvalidDataError as error:
                raise ValueError(
                    f"this part of the clip is damaged ({error}), expected a file that can be decoded: take another "
                    "part, or convert the file with `ffmpeg -i old.mp4 new.mp4`, which leaves out what is damaged"
                ) from error

    def end_in_file(self, container, stream) -> float:
        """The second of the file at which its pictures end.

        MKV and WebM have one duration for pictures and sound, or none, and FFmpeg's estimate for MPEG-PS is too short:
        their packets are read, without decoding.
        """
        if stream.duration is not None and not self.is_mpeg_ps:
            end = (stream.start_time or 0) + stream.duration
        else:
            end = last_end(container, stream)
        return float(end * stream.time_base)

    def frames(self, start: float) -> Iterator[tuple[float, object]]:
        """Frames from a key frame at or before ``start`` on, each with the second at which it begins.

        Raises:
            ValueError: the last one ends too early, for example in a file whose download was cut off.
        """
        end = 0.0
        for begin, frame in self.frames_around(start):
            end = begin + float((frame.duration or 0) * frame.time_base)
            yield begin, frame
        if end < self.end - LOST:  # or the last frame is held, which the packet of another frame can say
            with self.opened() as (container, stream):
                end = float(last_end(container, stream) * stream.time_base) - self.first
        if end < self.end - LOST:
            raise ValueError(
                f"the file says that the clip has {self.end:.2f} seconds, but its pictures end at {end:.2f}: get the "
                "file again, since a part of it is missing, or take only what comes before"
            )

    def frames_around(self, start: float) -> Iterator[tuple[float, object]]:
        """As `frames`, to the last that is there."""
        import av

        for back in (None,) if self.is_mpeg_ps else SEEK_BACK:
            frames = self.frames_after_seek(None if back is None else start - back)
            try:
                head = list(itertools.islice(frames, 1))
            except av.error.FFmpegError:
                if back is None:
                    raise
                continue  # some FLV can't seek to their beginning
            if back is None or (head and head[0][0] <= start + SLACK):
                yield from itertools.chain(head, frames)
                return
            frames.close()  # a seek in MPEG-TS ends between key frames, and the next one can be after the start

    def frames_after_seek(self, second: float | None) -> Iterator[tuple[float, object]]:
        """What can be decoded after a seek to a second, or the whole file."""
        with self.opened() as (container, stream):
            if second is not None:
                container.seek(int(max(second + self.first, 0.0) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time is not None:
                    yield frame.time - self.first, frame

    @staticmethod
    def picture(frame) -> Tensor:
        """H W 3 of 0..1, upright."""
        return rotated(torch.from_numpy(frame.to_ndarray(format="rgb24")), frame.rotation).float() / 255

    def sound(self, start: float, seconds: float) -> AUDIO | None:
        """The sound of a part, given in seconds; None without one. Where the file has a gap, it is silent."""
        import av

        if not self.is_mpeg_ps:
            with contextlib.suppress(av.error.FFmpegError):  # some FLV can't seek to their beginning
                return self.read_sound(start, seconds, seek=True)
        return self.read_sound(start, seconds, seek=False)

    def read_sound(self, start: float, seconds: float, seek: bool) -> AUDIO | None:
        """`sound`, read after a seek to its start, or from the beginning of the file."""
        import av

        with self.opened() as (container, _):
            # without a codec context, decoding would end the process
            streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
            if not streams:
                return None
            stream, resampler = streams[0], av.AudioResampler(format="fltp")
            parts, begin, count = [], None, 0  # count: samples so far
            if seek:
                container.seek(int((start + self.first) * av.time_base))
            for frame in container.decode(stream):
                at = frame.time - self.first
                if at > start + seconds:
                    break
                begin = at if begin is None else begin
                missing = round((at - begin) * stream.rate) - count
                for part in resampler.resample(frame):
                    wave = torch.from_numpy(part.to_ndarray())
                    if missing > GAP * stream.rate:
                        wave, missing = torch.nn.functional.pad(wave, (missing, 0)), 0
                    parts.append(wave)
                    count += wave.shape[1]
            if not parts:
                return None
            waveform = sound_within(torch.cat(parts, dim=1), stream.rate, begin, start, seconds)
        return {"waveform": waveform[None], "sample_rate": stream.rate}


def last_end(container, stream) -> int:
    """When the last of a stream's packets that are there ends, in the stream's ticks. Nothing is decoded."""
    packets = (packet for packet in container.demux(stream) if packet.pts is not None)
    return max((packet.pts + (packet.duration or 0) for packet in packets), default=0)


def open_clip(video) -> MadeClip | FileClip:
    """The frames and the sound of a VIDEO.

    Raises:
        ValueError: it is a file without pictures.
    """
    return FileClip(video) if isinstance(video, InputImpl.VideoFromFile) else MadeClip(video)


def video_file(path: Path):
    """A file as ComfyUI's VIDEO."""
    return InputImpl.VideoFromFile(str(path))


def read_mask(path: Path) -> Tensor:
    """The brightness of a picture as a MASK, 1 H W of 0..1."""
    import av

    with av.open(str(path), mode="r") as container:
        picture = next(container.decode(video=0)).to_ndarray(format="gray")
    return torch.from_numpy(picture)[None].float() / 255

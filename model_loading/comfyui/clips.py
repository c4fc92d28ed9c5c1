"""ComfyUI's VIDEO as frames with their times, and as sound, from a file or from what other nodes made.

ComfyUI's own `get_components` keeps all frames of a file in memory, and their times are lost. On 0.3.64 it also leaves
pictures of phones on their side.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from comfy_api.latest import InputImpl
from torch import Tensor

from ...sampling.clips import rotated, sound_within
from .compat import trim_window

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
            self.first = (container.start_time or 0) / av.time_base + begin
            self.end = self.seconds(container, stream) - begin
        if cut:
            self.end = min(self.end, cut)

    @contextlib.contextmanager
    def opened(self) -> Iterator[tuple]:
        """The file and its first video stream.

        Raises:
            ValueError: it has none.
        """
        import av

        with av.open(self.video.get_stream_source(), mode="r") as container:
            if not container.streams.video:
                raise ValueError("the clip has no pictures, expected a video: choose another file")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream

    @staticmethod
    def seconds(container, stream) -> float:
        """How long the pictures of the file last."""
        import av

        if stream.duration is not None:
            return float(stream.duration * stream.time_base)
        if container.duration is not None:
            return container.duration / av.time_base
        times = [frame.time for frame in container.decode(stream) if frame.time is not None]
        return (times[-1] - times[0]) * len(times) / (len(times) - 1) if len(times) > 1 else 0.0

    def frames(self, start: float) -> Iterator[tuple[float, object]]:
        """Frames from the last key frame before ``start`` on, each with the second at which it begins."""
        with self.opened() as (container, stream):
            container.seek(int((start + self.first) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time is not None:
                    yield frame.time - self.first, frame

    @staticmethod
    def picture(frame) -> Tensor:
        """H W 3 of 0..1, upright."""
        return rotated(torch.from_numpy(frame.to_ndarray(format="rgb24")), frame.rotation).float() / 255

    def sound(self, start: float, seconds: float) -> AUDIO | None:
        """The sound of a part, given in seconds; None without one."""
        import av

        with self.opened() as (container, _):
            # without a codec context, decoding would end the process
            streams = [stream for stream in container.streams.audio if stream.codec_context is not None]
            if not streams:
                return None
            (stream, *_), resampler, parts, begin = streams, av.AudioResampler(format="fltp"), [], None
            container.seek(int((start + self.first) * av.time_base))
            for frame in container.decode(stream):
                if frame.time - self.first > start + seconds:
                    break
                begin = frame.time - self.first if begin is None else begin
                parts += [torch.from_numpy(part.to_ndarray()) for part in resampler.resample(frame)]
            if not parts:
                return None
            waveform = sound_within(torch.cat(parts, dim=1), stream.rate, begin, start, seconds)
        return {"waveform": waveform[None], "sample_rate": stream.rate}


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

"""Sources of clips: procedural shapes, or folders of videos with captions.

A source has ``aspects`` and ``lengths`` (see `BucketBatches`), the ``paths`` of its clips for the log, and
``clip(index, bucket, rng)``, which returns a video, F H W 3 of 0..1 at the bucket's size, and its caption.

Videos are read with PyAV. torchcodec needs an FFmpeg of the system, and FFmpeg's own ``fps`` filter repeats frames of
slow clips and needs other code for pictures.
"""

import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch

from ...sampling.masks import resize_image
from . import shapes
from .buckets import Bucket

log = logging.getLogger(__name__)

# If several files have one name, the first of these types is used: videos before pictures.
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg")


class Clips(Protocol):
    aspects: list[float] | None
    lengths: list[int] | None
    paths: Sequence[Path]

    def clip(self, index: int, bucket: Bucket, rng) -> tuple[torch.Tensor, str]: ...


class ShapeClips:
    """Procedural clips of `shapes`. They never end; with ``count`` they repeat after that many."""

    aspects = None
    lengths = None
    paths = ()

    def __init__(self, seed: int, kinds: tuple[str, ...] = shapes.SHAPES, count: int = 0):
        self.seed, self.kinds, self.count = seed, kinds, count

    def clip(self, index: int, bucket: Bucket, rng) -> tuple[torch.Tensor, str]:
        scene = shapes.random_scene(self.seed, index % self.count if self.count else index, self.kinds)
        video = shapes.render(scene, bucket.length, bucket.height, bucket.width)
        return video, scene.caption(rng.randrange(len(shapes.GRAMMAR)))


def decoded(path: Path) -> Iterator:
    """The frames of a video or picture, as PyAV gives them.

    Raises:
        OSError: unreadable, or without a video stream.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise OSError(f"{path} has no video stream")
            yield from container.decode(video=0)
    except av.FFmpegError as error:
        raise OSError(f"{path} can't be read as a video: {error}") from error


def at_rate(frames: Iterable, fps: float) -> Iterator:
    """The first frame at or after each 1 / ``fps`` seconds, by presentation times; no frame comes twice.

    Times are rounded to ticks of the file's clock, so a frame may be half a tick early (at most 1/200 s). With ``fps``
    0 all frames are taken; so are frames without a time.
    """
    start, last = None, -1
    for frame in frames:
        if fps and frame.pts is not None:
            start = frame.pts if start is None else start
            slack = min(frame.time_base, Fraction(1, 100)) / 2
            periods = int(((frame.pts - start) * frame.time_base + slack) * Fraction(fps))
            if periods <= last:
                continue
            last = periods
        yield frame


def quarter_turns(frame) -> int:
    """Counterclockwise quarter turns, 0 to 3, that make a frame upright. Phones store what the sensor sees."""
    return round(frame.rotation / 90) % 4


def measure_clip(path: Path, fps: float) -> tuple[int, float]:
    """The number of frames at a rate, and width / height as shown. Decodes the whole file.

    Raises:
        OSError: unreadable, or empty.
    """
    frames = at_rate(decoded(path), fps)
    first = next(frames, None)
    if first is None:
        raise OSError("no frames")
    aspect = first.width / first.height
    return 1 + sum(1 for _ in frames), 1 / aspect if quarter_turns(first) % 2 else aspect


def read_clip(path: Path, fps: float, first: int, bucket: Bucket) -> torch.Tensor:
    """The frames from number ``first`` on, at a rate, resized and cut to a bucket, F H W 3 of 0..1.

    Raises:
        OSError: unreadable, or too short.
    """
    picked = islice(at_rate(decoded(path), fps), first, first + bucket.length)
    frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")).rot90(quarter_turns(frame)) for frame in picked]
    if len(frames) < bucket.length:
        raise OSError(f"{path} has {len(frames)} frames from {first} on, expected {bucket.length}")
    return resize_image(torch.stack(frames).float() / 255, bucket.width, bucket.height)


class FolderClips:
    """Videos with their captions: ``name.mp4`` beside ``name.txt``, in any depth of the folders.

    Files that can't be used are left out and named in the log, also if they disappear later. Every video is decoded
    once when the folders are read, to count its frames.

    Args:
        fps: frames a second to take, 0 for all frames: see `at_rate`.

    Raises:
        ValueError: nothing is left, or ``fps`` is negative.
    """

    def __init__(self, folders: Iterable[str | Path], fps: float = 8.0):
        if not fps >= 0:
            raise ValueError(f"fps is {fps}, expected frames a second, or 0 for all frames")
        self.fps = fps
        self.paths: list[Path] = []
        self.captions: list[str] = []
        self.aspects: list[float] = []
        self.lengths: list[int] = []
        folders = [Path(folder) for folder in folders]
        for folder in folders:
            if not folder.is_dir():
                log.warning("%s is not a folder: left out", folder)
                continue
            self._add(folder)
        if not self.paths:
            raise ValueError(
                f"no video with a caption in {', '.join(map(str, folders))}: put name.mp4 and name.txt beside it"
            )
        log.info("%d videos with captions in %s", len(self.paths), ", ".join(map(str, folders)))

    def _add(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        named = defaultdict(list)
        for path in files:
            if path.suffix.lower() in VIDEO_SUFFIXES:
                named[path.with_suffix("")].append(path)
        videos = {}
        for name, same in named.items():
            videos[name], *others = sorted(same, key=lambda path: VIDEO_SUFFIXES.index(path.suffix.lower()))
            for other in others:
                log.warning("%s is left out: %s has the same name", other, videos[name].name)
        captions = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
        for name in sorted({*videos, *captions}):
            if name not in videos:
                log.warning("%s is a caption without a video: left out", captions[name])
                continue
            if name not in captions:
                log.warning("%s is a video without a caption (%s.txt): left out", videos[name], name.name)
                continue
            try:
                length, aspect = measure_clip(videos[name], self.fps)
                caption = captions[name].read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:
                log.warning("%s: left out (%s)", videos[name].name, error)
                continue
            if not caption:
                log.warning("%s is empty: its video is used without a caption", captions[name])
            self.paths.append(videos[name])
            self.captions.append(caption)
            self.aspects.append(aspect)
            self.lengths.append(length)

    def clip(self, index: int, bucket: Bucket, rng) -> tuple[torch.Tensor, str]:
        """Clip ``index`` from a random frame on. If it can't be read any more, the next one that is long enough."""
        for offset in range(len(self.paths)):
            chosen = (index + offset) % len(self.paths)
            places = self.lengths[chosen] - bucket.length + 1
            if places < 1:
                continue
            try:
                return read_clip(self.paths[chosen], self.fps, rng.randrange(places), bucket), self.captions[chosen]
            except OSError as error:
                log.warning("%s: another clip is taken instead", error)
        raise ValueError(f"no clip can be read at {bucket}: see the warnings above")

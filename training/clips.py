"""Sources of clips: procedural shapes, or folders of videos with captions.

A source has ``aspects`` (see `BucketBatches`) and ``clip(index, bucket, rng)``, which returns a video, F H W 3 of
0..1 at the bucket's size, and its caption.
"""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch

from ..sampling.masks import resize_image
from . import shapes
from .buckets import Bucket

log = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif", ".png", ".jpg", ".jpeg")


class Clips(Protocol):
    aspects: list[float] | None

    def clip(self, index: int, bucket: Bucket, rng) -> tuple[torch.Tensor, str]: ...


class ShapeClips:
    """Procedural clips of `shapes`, as many as are asked for; with ``count``, that many over and over."""

    aspects = None

    def __init__(self, seed: int, kinds: tuple[str, ...] = shapes.SHAPES, count: int = 0):
        self.seed, self.kinds, self.count = seed, kinds, count

    def clip(self, index: int, bucket: Bucket, rng) -> tuple[torch.Tensor, str]:
        scene = shapes.random_scene(self.seed, index % self.count if self.count else index, self.kinds)
        video = shapes.render(scene, bucket.length, bucket.height, bucket.width)
        return video, scene.caption(rng.randrange(len(shapes.GRAMMAR)))


def decoded(path: Path) -> Iterator:
    """The frames of a video or picture, as PyAV gives them.

    Raises:
        OSError: unreadable, or no pictures in it.
    """
    import av

    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise OSError(f"{path} has no pictures in it")
            yield from container.decode(video=0)
    except av.FFmpegError as error:
        raise OSError(f"{path} can't be read as a video: {error}") from error


def read_clip(path: Path, bucket: Bucket, rng) -> torch.Tensor:
    """A run of consecutive frames from a random place, resized and cut to a bucket, F H W 3 of 0..1.

    Raises:
        OSError: unreadable, or too short.
    """
    count = sum(1 for _ in decoded(path))
    if count < bucket.length:
        raise OSError(f"{path} has {count} frames, expected at least {bucket.length}")
    first = rng.randrange(count - bucket.length + 1)
    picked = islice(decoded(path), first, first + bucket.length)
    video = torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in picked])
    return resize_image(video.float() / 255, bucket.width, bucket.height)


class FolderClips:
    """Videos with their captions: ``name.mp4`` beside ``name.txt``, in any depth of the folders.

    Everything that can't be used is named in the log and left out, when the folders are read and later, should a
    file vanish.

    Raises:
        ValueError: nothing is left.
    """

    def __init__(self, folders: Iterable[str | Path]):
        self.paths: list[Path] = []
        self.captions: list[str] = []
        self.aspects: list[float] = []
        folders = [Path(folder) for folder in folders]
        for folder in folders:
            if not folder.is_dir():
                log.warning("%s is no folder: left out", folder)
                continue
            self._add(folder)
        if not self.paths:
            raise ValueError(
                f"no video with a caption in {', '.join(map(str, folders))}: put name.mp4 and name.txt beside it"
            )
        log.info("%d videos with captions in %s", len(self.paths), ", ".join(map(str, folders)))

    def _add(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        videos = {path.with_suffix(""): path for path in files if path.suffix.lower() in VIDEO_SUFFIXES}
        captions = {path.with_suffix(""): path for path in files if path.suffix.lower() == ".txt"}
        for name in sorted({*videos, *captions}):
            if name not in videos:
                log.warning("%s is a caption without a video: left out", captions[name])
                continue
            if name not in captions:
                log.warning("%s is a video without a caption (%s.txt): left out", videos[name], name.name)
                continue
            try:
                frame = next(decoded(videos[name]))
                caption = captions[name].read_text(encoding="utf-8").strip()
            except (OSError, StopIteration, ValueError) as error:
                log.warning("%s: left out (%s)", videos[name].name, error or "no frames")
                continue
            self.paths.append(videos[name])
            self.captions.append(caption)
            self.aspects.append(frame.width / frame.height)

    def clip(self, index: int, bucket: Bucket, rng) -> tuple[torch.Tensor, str]:
        for offset in range(len(self.paths)):
            chosen = (index + offset) % len(self.paths)
            try:
                return read_clip(self.paths[chosen], bucket, rng), self.captions[chosen]
            except OSError as error:
                log.warning("%s: another clip is taken instead", error)
        raise ValueError(f"no clip can be read at {bucket}: see the warnings above")

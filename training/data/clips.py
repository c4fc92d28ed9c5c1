"""Sources of clips: procedural scenes, or videos with captions.

A source has ``aspects``, ``lengths`` and ``resolutions`` (see `BucketBatches`), ``path(index)`` for the log, and
``clip(index, bucket, rng)``, which returns a video, F H W 3 of 0..1 at the bucket's size, and its caption. With
``control``, videos have ``controlled(index, bucket, rng)``, which returns the control video, too.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch

from ...sampling.geometry import FRAMES_PER_SECOND
from . import scenes
from .buckets import Bucket
from .control import EDGES
from .folders import Found, list_clips, measure_all
from .video import SLACK, fit_frames, rate_of, read_frames

log = logging.getLogger(__name__)

TRIES = 32  # other clips that are tried in the place of one that can't be read


class Clips(Protocol):
    aspects: Sequence[float] | None
    lengths: Sequence[int] | None
    resolutions: Sequence[float] | None

    def path(self, index: int) -> Path: ...

    def clip(self, index: int, bucket: Bucket, rng) -> tuple[torch.Tensor, str]: ...


class SceneClips:
    """Procedural clips of `scenes`. They never end; with ``count`` they repeat after that many.

    Args:
        shapes, kinds, groups: see `scenes.random_scene`.
    """

    aspects = None
    lengths = None
    resolutions = None

    def __init__(
        self,
        seed: int,
        shapes: Sequence[str] = scenes.SHAPES,
        count: int = 0,
        kinds: Sequence[str] = tuple(scenes.KINDS),
        groups: Mapping[str, float] = scenes.BACKGROUNDS,
    ):
        self.seed, self.shapes, self.count, self.kinds, self.groups = seed, shapes, count, kinds, groups

    def clip(self, index: int, bucket: Bucket, rng) -> tuple[torch.Tensor, str]:
        number = index % self.count if self.count else index
        scene = scenes.random_scene(self.seed, number, self.shapes, self.kinds, groups=self.groups)
        video = scenes.render(scene, bucket.length, bucket.height, bucket.width)
        return video, scene.caption(rng.randrange(scenes.FORMS))


class Row(NamedTuple):
    """What is needed to read a clip."""

    path: Path
    caption: str
    control: Path | None = None


def lengths_at(frames: np.ndarray, native: np.ndarray, fps: float) -> np.ndarray:
    """How many frames `read_frames` gives of clips at a rate: see `rate_of` and `at_rate`.

    Args:
        frames, native: of the files, see `Measures`.
    """
    at = np.floor(((frames - 1) / native + SLACK) * fps) + 1
    return (np.where(native > fps, np.minimum(at, frames), frames) if fps else frames).astype(np.int64)


class VideoClips:
    """Clips of video files.

    Args:
        fps: frames a second to take, 0 for all frames. A clip with a lower rate gives all its frames.
        measures: a row of frames, rate, width and height for each clip: see `Measures`.
        control: "" for none, `EDGES`, or what stands between the name of a clip and the suffix of its control video.
    """

    def __init__(self, fps: float, measures: np.ndarray, control: str = ""):
        frames, native, width, height = np.asarray(measures, dtype=np.float64).reshape(-1, 4).T
        self.fps, self.control, self.native = fps, control, native.copy()
        self.lengths, self.aspects = lengths_at(frames, native, fps), width / height
        self.resolutions = (width + height) / 2
        self._named: set[int] = set()  # clips that were named in the log

    def row(self, index: int) -> Row:
        """What is needed to read clip ``index``."""
        raise NotImplementedError

    def path(self, index: int) -> Path:
        return self.row(index).path

    def clip(self, index: int, bucket: Bucket, rng) -> tuple[torch.Tensor, str]:
        """Clip ``index`` from a random frame on. If it can't be read, another one that is long enough.

        Raises:
            ValueError: no clip is long enough, or `TRIES` others can't be read either.
        """
        video, caption, _ = self._take(index, bucket, rng, control=False)
        return video, caption

    def controlled(self, index: int, bucket: Bucket, rng) -> tuple[torch.Tensor, str, torch.Tensor]:
        """`clip`, and the same frames of its control video, resized and cut in the same way."""
        return self._take(index, bucket, rng, control=True)

    def _take(self, index: int, bucket: Bucket, rng, control: bool) -> tuple:
        tried = 0
        for chosen in self._candidates(index, bucket, rng):
            first = rng.randrange(int(self.lengths[chosen]) - bucket.length + 1)
            tried += 1
            try:
                row = self.row(chosen)
                video = self._read(chosen, row.path, first, bucket)
                return video, row.caption, self._read(chosen, self._beside(row), first, bucket) if control else None
            except OSError as error:
                self._name(chosen, f"{error}: another clip is taken instead")
        if not tried:
            raise ValueError(
                f"no clip has {bucket.length} frames at the phase's rate, the longest has {max(self.lengths)}: give "
                "longer clips, or a size of fewer frames"
            )
        raise ValueError(
            f"no clip can be read at {bucket}, {tried} were tried: see the warnings above, and check the paths"
        )

    def _candidates(self, index: int, bucket: Bucket, rng) -> Iterator[int]:
        """``index``, then others that are long enough, in a random order."""
        if self.lengths[index] >= bucket.length:
            yield index
        others = np.flatnonzero(self.lengths >= bucket.length)
        yield from (int(others[i]) for i in rng.sample(range(len(others)), min(len(others), TRIES)))

    def _beside(self, row: Row) -> Path:
        return row.control or row.path.with_name(f"{row.path.stem}{self.control}{row.path.suffix}")

    def _read(self, index: int, path: Path, first: int, bucket: Bucket) -> torch.Tensor:
        rate = rate_of(float(self.native[index]), self.fps)
        try:
            frames = read_frames(path, rate, first, bucket.length)
        except OSError as error:
            raise OSError(f"{path}: {error}") from error
        sizes = sorted({(frame.width, frame.height) for frame in frames})
        if len(sizes) > 1:
            shown = ", ".join(f"{width} x {height}" for width, height in sizes)
            self._name(index, f"{path} has frames of {len(sizes)} sizes ({shown}): each is cut to the bucket's shape")
        return fit_frames(frames, bucket)

    def _name(self, index: int, message: str) -> None:
        """Log a message about a clip once, in each process that reads clips."""
        if index not in self._named:
            self._named.add(index)
            log.warning("%s", message)


class FolderClips(VideoClips):
    """Videos with their captions: ``name.mp4`` beside ``name.txt``, in any depth of the folders.

    Files that can't be used are left out and named in the log, also if they disappear later. The files are measured
    when the folders are read, by several processes: see `measure_clip`.

    Args:
        fps, control: see `VideoClips`.

    Raises:
        ValueError: nothing is left.
    """

    def __init__(self, folders: Iterable[str | Path], fps: float = FRAMES_PER_SECOND, control: str = ""):
        folders = [Path(folder) for folder in folders]
        found = list_clips(folders, "" if control == EDGES else control)
        self.found: list[Found] = []
        self.captions: list[str] = []
        measures = []
        for item, caption, measured in measure_all(found):
            self.found.append(item)
            self.captions.append(caption)
            measures.append((measured.frames, measured.fps, measured.width, measured.height))
        super().__init__(fps, np.array(measures), control)
        if not self.found:
            raise ValueError(
                f"no video with a caption in {', '.join(map(str, folders))}: put name.mp4 and name.txt beside it"
            )
        log.info("%d videos with captions in %s", len(self.found), ", ".join(map(str, folders)))

    @property
    def paths(self) -> list[Path]:
        return [item.path for item in self.found]

    def row(self, index: int) -> Row:
        return Row(self.found[index].path, self.captions[index], self.found[index].control)

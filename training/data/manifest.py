"""A list of clips in a JSONL file, for data sets of which folders would take too long to list and to measure.

A row is a JSON object with ``path`` (absolute, or relative to the file's folder), ``caption``, ``frames``, ``fps``,
``width`` and ``height`` (see `Measures`), and possibly ``control``, the path of a control video.
"""

import json
import logging
from array import array
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ...sampling.geometry import FRAMES_PER_SECOND
from .clips import Row, VideoClips
from .folders import list_clips, measure_all

log = logging.getLogger(__name__)

SHOWN = 5  # rows of one kind that are named; the others are counted
LONG_CAPTION = 226  # words: a word has at least one token, and T5 reads 226 tokens


class ManifestClips(VideoClips):
    """The clips of a manifest. Memory has only numbers: a path and a caption are read when their clip is.

    Rows that can't be used are named in the log and left out.

    Args:
        path: the manifest.
        fps, control: see `VideoClips`.

    Raises:
        ValueError: no row can be used.
    """

    def __init__(self, path: str | Path, fps: float = FRAMES_PER_SECOND, control: str = ""):
        self.manifest = Path(path)
        self.offsets, measures = read_numbers(self.manifest)
        super().__init__(fps, measures, control)
        log.info("%d clips in %s", len(self.offsets), self.manifest)

    def row(self, index: int) -> Row:
        with self.manifest.open("rb") as file:  # a handle that processes share would share its position
            file.seek(int(self.offsets[index]))
            line = file.readline()
        try:
            row = json.loads(line)
            base = self.manifest.parent
            return Row(base / row["path"], row["caption"], base / row["control"] if row.get("control") else None)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise OSError(f"{self.manifest} was changed while it was used: start again") from error


class _Named:
    """Log the first few rows of a kind, and count the others."""

    def __init__(self, manifest: Path, effect: str):
        self.manifest, self.effect, self.count = manifest, effect, 0

    def add(self, number: int, reason: str) -> None:
        self.count += 1
        if self.count <= SHOWN:
            log.warning("%s, row %d: %s (%s)", self.manifest, number, self.effect, reason)

    def finish(self) -> None:
        if self.count > SHOWN:
            log.warning("%s: the same for %d more rows", self.manifest, self.count - SHOWN)


def read_numbers(manifest: Path) -> tuple[np.ndarray, np.ndarray]:
    """The offsets of a manifest's usable rows in bytes, and their measures, n 4.

    Raises:
        ValueError: the file can't be read, or no row can be used.
    """
    offsets, numbers = array("q"), array("d")
    bad, long = _Named(manifest, "left out"), _Named(manifest, "T5 reads the beginning of its caption")
    offset = 0
    try:
        with manifest.open("rb", buffering=1 << 20) as file:
            for number, line in enumerate(file, 1):
                try:
                    caption, values = _parse(line)
                except KeyError as error:
                    bad.add(number, f"it lacks {error}")
                except (ValueError, TypeError) as error:
                    if line.strip():
                        bad.add(number, str(error))
                else:
                    if len(caption) > 2 * LONG_CAPTION and caption.count(" ") > LONG_CAPTION:
                        long.add(number, f"{len(caption.split())} words")
                    offsets.append(offset)
                    numbers.extend(values)
                offset += len(line)
    except OSError as error:
        raise ValueError(f"{manifest} can't be read as a manifest: {error.strerror}") from error
    bad.finish()
    long.finish()
    if not offsets:
        raise ValueError(
            f"{manifest} has no usable row, expected a JSON object in every line, with path, caption, frames, fps, "
            "width and height: make it with training/run.py manifest"
        )
    return np.frombuffer(offsets, dtype=np.int64), np.frombuffer(numbers).reshape(-1, 4)


_raw_decode = json.JSONDecoder().raw_decode  # half the time of json.loads


def _parse(line: bytes) -> tuple[str, tuple]:
    """The caption and the measures of a row.

    Raises:
        ValueError, TypeError, KeyError: it can't be used.
    """
    row, _ = _raw_decode(line.decode())
    path, caption = row["path"], row["caption"]
    frames, fps, width, height = values = row["frames"], row["fps"], row["width"], row["height"]
    if not (type(path) is type(caption) is str and frames >= 1 and 0 < fps < 1e6 and width >= 1 and height >= 1):
        raise ValueError(f"path {path!r}, caption {caption!r:.20}, frames, fps, width and height {list(values)}")
    caption.encode()  # T5's tokenizer takes no half of an emoji, such as "\ud83d"
    return caption, values


def write_manifest(
    folders: Iterable[str | Path], output: str | Path, workers: int | None = None, control: str = ""
) -> tuple[int, int]:
    """Measure the clips in folders, and append a row for each that the manifest does not have yet.

    A call that was ended can be given again: it goes on after the last whole row.

    Args:
        workers: processes, see `measure_all`.
        control: the suffix of control videos, see `list_clips`.

    Returns:
        How many rows were added, and how many clips were left out.
    """
    output = Path(output).absolute()
    output.parent.mkdir(parents=True, exist_ok=True)
    known = _repair(output)
    listed = list_clips([Path(folder).absolute() for folder in folders], control)
    found = [item for item in listed if _stored(item.path, output) not in known]
    log.info("%d clips with captions, %d of them are not in %s", len(listed), len(found), output)
    added = 0
    with output.open("ab", buffering=0) as file, tqdm(total=len(found), unit="clip") as progress:
        for item, caption, measures in measure_all(found, workers):
            row = {"path": _stored(item.path, output), "caption": caption, **vars(measures)}
            if item.control:
                row["control"] = _stored(item.control, output)
            # a name that is not UTF-8 has surrogates, which become JSON's own escapes, such as \udcff
            file.write(json.dumps(row, ensure_ascii=False).encode(errors="backslashreplace") + b"\n")
            added += 1
            progress.update()
    return added, len(found) - added


def _stored(path: Path, manifest: Path) -> str:
    """A path as a manifest has it: relative if the clip is below the manifest's folder."""
    return (path.relative_to(manifest.parent) if path.is_relative_to(manifest.parent) else path).as_posix()


def _repair(manifest: Path) -> set[str]:
    """Cut off a half-written last row; returns the paths of the others."""
    known = set()
    if not manifest.is_file():
        return known
    whole = 0
    with manifest.open("rb+") as file:
        for line in file:
            ended = line.endswith(b"\n")
            try:
                known.add(json.loads(line)["path"])
            except (ValueError, TypeError, KeyError):  # `read_numbers` names it
                if not ended:
                    log.warning("%s: its last row is not complete and is made again", manifest)
                    break
            whole += len(line)
        file.truncate(whole)
        if whole and not ended and whole == file.tell():
            file.write(b"\n")
    return known

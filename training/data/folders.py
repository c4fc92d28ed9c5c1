"""Find clips in folders, and measure them in several processes."""

import itertools
import logging
import os
import signal
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

from .video import VIDEO_SUFFIXES, Measures, measure_clip

log = logging.getLogger(__name__)

BLOCK = 256  # files for each process before the next ones are handed out
SMALL = 16  # this many files are measured sooner than processes start


class Found(NamedTuple):
    """A video, its caption's file, and its control video if there is one."""

    path: Path
    caption: Path
    control: Path | None = None


def list_clips(folders: Iterable[Path], control: str = "") -> list[Found]:
    """The videos with captions in folders, in any depth. What is left out is named in the log.

    Links to folders are followed. A folder that a link leads to again counts once.

    Args:
        control: the suffix of control videos, as in ``name_depth.mp4`` beside ``name.mp4``; "" for none.
    """
    return [item for folder in folders for item in _list_folder(folder, control)]


def _list_folder(folder: Path, control: str) -> Iterator[Found]:
    if not folder.is_dir():
        log.warning("%s is not a folder: left out", folder)
        return
    named, captions, seen = defaultdict(list), {}, set()
    for place, below, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()  # so that it is the same place on every machine that counts
        for path in (Path(place, name) for name in names):
            if path.suffix.lower() in VIDEO_SUFFIXES:
                named[path.with_suffix("")].append(path)
            elif path.suffix.lower() == ".txt":
                captions[path.with_suffix("")] = path
    videos = {}
    for name, same in named.items():
        videos[name], *others = sorted(same, key=lambda path: VIDEO_SUFFIXES.index(path.suffix.lower()))
        for other in others:
            log.warning("%s is left out: %s has the same name", other, videos[name].name)
    controls = {name.with_name(name.name + control): name for name in videos} if control else {}
    for name in sorted({*videos, *captions}):
        if name in videos and name in controls:
            continue
        partner = name.with_name(name.name + control)
        if name not in videos:
            log.warning("%s is a caption without a video: left out", captions[name])
        elif name not in captions:
            log.warning("%s is a video without a caption (%s.txt): left out", videos[name], name.name)
        elif control and partner not in videos:
            log.warning("%s is a video without a control video (%s): left out", videos[name], partner.name)
        else:
            yield Found(videos[name], captions[name], videos[partner] if control else None)


def measure_all(found: Sequence[Found], workers: int | None = None) -> Iterator[tuple[Found, str, Measures]]:
    """Clips with their captions and measures, in order. What can't be used is left out and named in the log.

    Args:
        workers: processes; None for one for each CPU core of this process, and none for a few files.
    """
    if workers is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        workers = cores if len(found) > SMALL else 0
    for item, result in zip(found, _results(found, workers), strict=True):
        if isinstance(result, str):
            log.warning("%s: left out (%s)", item.path, result)
            continue
        caption, measures = result
        if not caption:
            log.warning("%s is empty: its video is used without a caption", item.caption)
        yield item, caption, measures


def _measure(item: Found) -> tuple[str, Measures] | str:
    """A clip's caption and measures, or why it can't be used."""
    try:
        return item.caption.read_text(encoding="utf-8-sig").strip(), measure_clip(item.path)
    except UnicodeDecodeError:
        return f"{item.caption.name} is not UTF-8"
    except (OSError, ValueError) as error:
        return str(error)


def _results(found: Sequence[Found], workers: int) -> Iterator[tuple[str, Measures] | str]:
    if workers < 1:
        yield from map(_measure, found)
        return
    items, pool = iter(found), None
    try:
        while block := list(itertools.islice(items, BLOCK * workers)):
            pool = pool or ProcessPoolExecutor(workers, initializer=_ignore_interrupt)
            done = 0
            try:
                for result in pool.map(_measure, block, chunksize=4):
                    yield result
                    done += 1
            except BrokenProcessPool:
                pool = None
                yield from map(_measure_alone, block[done:])
    finally:
        if pool is not None:
            pool.shutdown(cancel_futures=True)


def _measure_alone(item: Found) -> tuple[str, Measures] | str:
    """`_measure` in a process of its own: a file that crashes FFmpeg ends that process alone."""
    try:
        with ProcessPoolExecutor(1, initializer=_ignore_interrupt) as pool:
            return pool.submit(_measure, item).result()
    except BrokenProcessPool:
        return "FFmpeg crashed while it read this file"


def _ignore_interrupt() -> None:
    """Ctrl-C is for the process that reads the results; it ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

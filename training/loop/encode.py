"""Encode the clips of a phase once, so that training needs neither the VAE nor T5. See `data.cache` for the files."""

import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from ...model_loading.standalone import open_whole
from ..data.cache import ABOUT, INDEX, LATENTS, TEXT, opened, shard_name
from ..data.clips import Clips
from ..data.samples import LATENT_CHANNELS, Samples, latent_shape, load
from ..tasks.encoders import Encoders
from ..tasks.hub import write_json
from ..tasks.origin import differences, origin
from ..tasks.parts import make_encoders
from .config import Phase, check_cacheable
from .source import open_clips, phase_draws
from .trainer import to_device

log = logging.getLogger(__name__)

MOST = 256  # entries in a shard
MOST_BYTES = 2**29  # in a shard: a process holds one in memory
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def encode(phase: Phase, folder: str | Path, state, count: int = 0, epochs: int = 0, dtype: str = "float32") -> None:
    """Write a cache of a phase's first draws, or what is missing of it.

    Every clip is encoded alone, so the files don't depend on the number of processes.

    Args:
        state: accelerate's, of the processes that share the work: see `phase.processes`.
        count: how many draws.
        epochs: passes over all clips, instead of ``count``: each has masks of its own.
        dtype: of the stored tensors, one of `DTYPES`.

    Raises:
        ValueError: the phase can't be trained from a cache, or the folder has a cache of another phase.
        OSError: a file can't be written, for example because the disk is full. What is complete stays.
    """
    check_cacheable(phase, "this phase")
    Encoding(phase, Path(folder), state, count, epochs, dtype).run()


class Captions(NamedTuple):
    """The different captions of a cache: which one each entry has, and the first entry that has each of them."""

    numbers: list[int]
    entries: list[int]


def find_captions(folder: Path, count: int, size: int) -> Captions:
    """Number the captions of a cache's entries in their order, after the empty caption, which is 0."""
    known = {_digest(b""): 0}
    numbers, entries = [], [-1]
    for first in range(0, count, size):
        with opened(folder / shard_name(LATENTS, first // size)) as shard:
            for entry in range(first, min(first + size, count)):
                digest = _digest(bytes(shard.get_tensor(f"caption.{entry}").tolist()))
                if digest not in known:
                    known[digest] = len(known)
                    entries.append(entry)
                numbers.append(known[digest])
    return Captions(numbers, entries)


def _digest(caption: bytes) -> bytes:
    return hashlib.sha256(caption).digest()[:16]


def clip_count(clips: Clips) -> int:
    """Clips of a source that ends.

    Raises:
        ValueError: it has no end.
    """
    count = len(clips.aspects) if clips.aspects is not None else getattr(clips, "count", 0)
    if not count:
        raise ValueError("these clips never end: say how many with --count, or set count in [data]")
    return count


def write_shard(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write a file under another name first, so that a file with its own name is complete.

    Raises:
        OSError: it can't be written; the bytes that it needs and what remains to be done are in the message.
    """
    from safetensors.torch import save

    data, temporary = save(tensors), path.with_suffix(".tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f"{path} can't be written ({error.strerror}): it needs {len(data)} bytes, and {free} are free; shards "
            "that were written stay: make room, and run the same command again",
        ) from error


class Encoding:
    """See `encode`."""

    def __init__(self, phase: Phase, folder: Path, state, count: int, epochs: int, dtype: str):
        self.phase, self.folder, self.state, self.dtype = phase, folder, state, DTYPES[dtype]
        self.checkpoint = open_whole(phase.model)
        self.texts = open_whole(phase.text_encoder) if phase.text_encoder else self.checkpoint
        self.clips = open_clips(replace(phase.data, cache=""))
        self.draws = self._draws(count or epochs * clip_count(self.clips))
        channels = self.checkpoint.config.in_channels
        largest = max(math.prod(latent_shape(draw.bucket)[1:]) for draw in self.draws) * channels
        features = self.checkpoint.config.max_text_seq_length * self.checkpoint.config.text_embed_dim
        self.shard_sizes = {LATENTS: self._shard_size(largest), TEXT: self._shard_size(features)}
        self.encoders: Encoders | None = None  # loaded when there is something to encode
        self.bf16 = phase.mixed_precision == "bf16"
        self.about = {
            "origin": origin(phase, self.checkpoint, self.texts),
            "seed": phase.seed,
            "channels": channels - LATENT_CHANNELS,
            "count": len(self.draws),
            "dtype": dtype,
            "mixed_precision": phase.mixed_precision,
            "shard_sizes": self.shard_sizes,
        }

    def _draws(self, count: int) -> list:
        one = replace(self.phase, batches=replace(self.phase.batches, batch_size=1))  # in the order of their numbers
        draws = phase_draws(one, self.clips, patch_t=self.checkpoint.config.patch_size_t)
        return [draw for batch in islice(draws, count) for draw in batch]

    def _shard_size(self, values: int) -> int:
        """How many tensors of so many values go into a shard."""
        return max(1, min(MOST, MOST_BYTES // (values * self.dtype.itemsize)))

    def run(self) -> None:
        self._start()
        self._make(LATENTS, len(self.draws), self._latents)
        captions = find_captions(self.folder, len(self.draws), self.shard_sizes[LATENTS])
        self._make(TEXT, len(captions.entries), lambda numbers: self._text(numbers, captions.entries))
        if self.state.is_main_process:
            self._write_index(captions.numbers)
            log.info("%s: %d clips and %d captions", self.folder, len(self.draws), len(captions.entries))
        self.state.wait_for_everyone()

    def _start(self) -> None:
        """Say what the cache is made of, or check it."""
        path = self.folder / ABOUT
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            changes = list(
                differences(*({**about, **about["origin"], "origin": None} for about in (found, self.about)))
            )
            if changes:
                raise ValueError(
                    f"{self.folder} is a cache of something else ({'; '.join(changes)}): give another folder, or "
                    "remove it"
                )
        self.state.wait_for_everyone()
        if self.state.is_main_process:
            (self.folder / INDEX).unlink(missing_ok=True)
            write_json(path, self.about)
        self.state.wait_for_everyone()

    def _make(self, kind: str, count: int, tensors: Callable[[range], dict]) -> None:
        """Write this process's share of the shards that are missing."""
        size = self.shard_sizes[kind]
        missing = [n for n in range(math.ceil(count / size)) if not (self.folder / shard_name(kind, n)).is_file()]
        self.state.wait_for_everyone()  # all have the same list
        mine = missing[self.state.process_index :: self.state.num_processes]
        if mine and self.encoders is None:
            self.encoders = self._load_encoders()
        for number in tqdm(mine, unit=f"shard of {kind}", disable=not self.state.is_main_process):
            entries = range(number * size, min((number + 1) * size, count))
            with torch.autocast(self.state.device.type, torch.bfloat16, enabled=self.bf16):  # as in training
                found = tensors(entries)
            write_shard(self.folder / shard_name(kind, number), found)
        self.state.wait_for_everyone()

    def _load_encoders(self) -> Encoders:
        device = self.state.device
        dtype = torch.bfloat16 if self.bf16 and device.type != "cpu" else torch.float32
        return make_encoders(self.phase, self.checkpoint, self.texts, dtype).to(device)

    def _latents(self, numbers: range) -> dict[str, torch.Tensor]:
        draws = self.draws[numbers.start : numbers.stop]
        samples = Samples(self.clips, self.phase.seed, self.phase.masks)
        batches = load(samples, [[draw] for draw in draws], self.phase.data.workers)
        found, chances = {}, []
        for draw, batch in zip(draws, batches, strict=True):
            encoded = self.encoders.latents(to_device(batch, self.state.device))
            found[f"latent.{draw.number}"] = encoded["latent"][0].to("cpu", self.dtype)
            if encoded["extra"] is not None and encoded["extra"].any():
                found[f"extra.{draw.number}"] = encoded["extra"][0].to("cpu", self.dtype)
            caption = batch["captions"][0].encode()
            found[f"caption.{draw.number}"] = torch.tensor(list(caption), dtype=torch.uint8)
            chances.append(batch["chance"])
        buckets = [(draw.bucket.width, draw.bucket.height, draw.bucket.length) for draw in draws]
        return {
            **found,
            "number": torch.tensor([draw.number for draw in draws]),
            "clip": torch.tensor([draw.index for draw in draws]),
            "bucket": torch.tensor(buckets, dtype=torch.int32),
            "chance": torch.cat(chances),
        }

    def _text(self, numbers: range, entries: list[int]) -> dict[str, torch.Tensor]:
        found = {}
        for number in numbers:
            caption = self._caption(entries[number]) if number else ""
            features = self.encoders.text([caption], torch.ones(1, device=self.state.device))
            found[f"text.{number}"] = features[0].to("cpu", self.dtype)
        return found

    def _caption(self, entry: int) -> str:
        with opened(self.folder / shard_name(LATENTS, entry // self.shard_sizes[LATENTS])) as shard:
            return bytes(shard.get_tensor(f"caption.{entry}").tolist()).decode()

    def _write_index(self, texts: list[int]) -> None:
        size = self.shard_sizes[LATENTS]
        buckets = sorted({draw.bucket for draw in self.draws})
        numbers = {bucket: number for number, bucket in enumerate(buckets)}
        chances = []
        for number in range(math.ceil(len(self.draws) / size)):
            with opened(self.folder / shard_name(LATENTS, number)) as shard:
                chances.append(shard.get_tensor("chance"))
        tensors = {
            "buckets": torch.tensor([(b.width, b.height, b.length) for b in buckets], dtype=torch.int32),
            "bucket": torch.tensor([numbers[draw.bucket] for draw in self.draws], dtype=torch.int32),
            "chance": torch.cat(chances),
            "text": torch.tensor(texts, dtype=torch.int32),
        }
        write_shard(self.folder / INDEX, tensors)

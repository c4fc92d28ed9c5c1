"""Encode the clips of a phase once, so that training needs neither the VAE nor T5. See `data.cache` for the files."""

import hashlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from tqdm import tqdm

from ...model_loading.files.t5 import prompt_length
from ...model_loading.standalone import open_whole
from ..data.buckets import Bucket, Draw
from ..data.cache import ABOUT, INDEX, LATENTS, TEXT, caption_of, opened, shard_name
from ..data.samples import LATENT_CHANNELS, Batch, latent_shape, load
from ..tasks.encoders import Encoders
from ..tasks.origin import differences, origin
from ..tasks.parts import make_encoders
from .config import Phase, check_cacheable
from .cpu import warn_if_bfloat16_is_slow
from .source import open_clips, phase_draws, phase_samples, worker_count
from .trainer import to_device

log = logging.getLogger(__name__)

SHARD_SIZE, SHARD_BYTES = 256, 2**29  # the most entries and bytes of a shard: a process holds one in memory
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Amount(NamedTuple):
    """How much to encode: the first ``count`` draws, or as many as ``epochs`` passes over all clips have."""

    count: int = 0
    epochs: int = 0


class Encoding:
    """The cache of a phase's first draws, which several processes write together.

    A shard is encoded by one process, so the files don't depend on the number of processes.

    Args:
        state: accelerate's, of the processes: see `phase.processes`.
        dtype: of what is stored, one of `DTYPES`.
        shard_size: the most entries of a shard.
        together: the most clips of one bucket, and the most captions, that are encoded at once. With another number
            the values differ in their last bits.

    Raises:
        ValueError: the phase can't be trained from a cache, or its clips never end and there is no count.
    """

    def __init__(
        self,
        # what
        phase: Phase,
        folder: str | Path,
        amount: Amount,
        # how
        state,
        dtype: str = "float32",
        shard_size: int = SHARD_SIZE,
        together: int = 1,
    ):
        self.together = together
        check_cacheable(phase, "the phase")
        if phase.mixed_precision == "bf16" and state.device.type == "cpu":
            warn_if_bfloat16_is_slow()
        self.phase, self.folder, self.state, self.dtype = phase, Path(folder), state, DTYPES[dtype]
        self.checkpoint = open_whole(phase.model)
        self.texts = open_whole(phase.text_encoder) if phase.text_encoder else self.checkpoint
        self.encoders: Encoders | None = None  # loaded when something is missing
        self.data = replace(phase.data, cache="")
        self.clips = open_clips(self.data)
        self.draws = self._draws(amount)
        config = self.checkpoint.config
        text = prompt_length(self.texts.tokenizer), config.text_embed_dim
        values = max(math.prod(latent_shape(draw.bucket)[1:]) for draw in self.draws) * config.in_channels
        self.sizes = {
            kind: max(1, min(shard_size, SHARD_BYTES // (n * self.dtype.itemsize)))
            for kind, n in ((LATENTS, values), (TEXT, math.prod(text)))
        }
        self.about = {
            "origin": origin(phase, self.checkpoint, self.texts),
            "seed": phase.seed,
            "count": len(self.draws),
            "clips": None if self.clips.lengths is None else len(self.clips.lengths),  # with others, draws are others
            "channels": config.in_channels - LATENT_CHANNELS,
            "text": text,
            "dtype": dtype,
            "mixed_precision": phase.mixed_precision,
            "shard_sizes": self.sizes,
        }

    def _draws(self, amount: Amount) -> list[Draw]:
        one = replace(self.phase, batches=replace(self.phase.batches, batch_size=1))  # in the order of their numbers
        draws = phase_draws(one, self.clips, config=self.checkpoint.config)
        count = amount.count
        if amount.epochs:
            shapes = self.clips.aspects
            clips = self.phase.data.count if shapes is None else len(shapes) - len(draws.too_short)
            if not clips:
                raise ValueError("these clips never end: say how many with --count, or give a count in [data]")
            count = amount.epochs * clips
        return [draw for batch in islice(draws, count) for draw in batch]

    def run(self) -> None:
        """Write the cache, or what is missing of it.

        Raises:
            ValueError: the folder has a cache of something else.
            OSError: a file can't be written, for example because the disk is full. Complete files stay.
        """
        self._start()
        shards = self._share(LATENTS, len(self.draws))
        groups = [[self.draws[entry] for entry in group] for shard in shards for group in self._groups(shard)]
        batches = load(phase_samples(self.phase, self.clips), groups, worker_count(self.data))
        self._write_shards(LATENTS, shards, lambda shard: self._latents(shard, batches))
        captions = find_captions(self.folder, len(self.draws), self.sizes[LATENTS])
        count = len(captions.entries)
        self._write_shards(TEXT, self._share(TEXT, count), lambda numbers: self._text(numbers, captions.entries))
        if self.state.is_main_process:
            self._write_index(captions.numbers)
            log.info("%s: %d clips and %d captions", self.folder, len(self.draws), count)
        self.state.wait_for_everyone()

    def _start(self) -> None:
        """Say what the cache is made of, or check that it is the same."""
        path = self.folder / ABOUT
        if path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
            wanted = json.loads(json.dumps(self.about))
            changes = list(differences(*({**about, **about["origin"], "origin": None} for about in (found, wanted))))
            if changes:
                raise ValueError(f"{self.folder} is another cache ({'; '.join(changes)}): give another folder")
        elif self.state.is_main_process:
            write_file(path, json.dumps(self.about, indent=2).encode())
        if self.state.is_main_process and self._missing(LATENTS, len(self.draws)):
            for stale in (*self.folder.glob(f"{TEXT}_*"), self.folder / INDEX):  # they may have other captions
                stale.unlink(missing_ok=True)
        self.state.wait_for_everyone()

    def _missing(self, kind: str, count: int) -> list[range]:
        """The entries of each shard that is missing."""
        size = self.sizes[kind]
        shards = (range(first, min(first + size, count)) for first in range(0, count, size))
        return [shard for shard in shards if not self._path(kind, shard).is_file()]

    def _share(self, kind: str, count: int) -> list[range]:
        """The missing shards that this process writes."""
        missing = self._missing(kind, count)
        self.state.wait_for_everyone()  # all have found the same shards missing
        return missing[self.state.process_index :: self.state.num_processes]

    def _groups(self, shard: range) -> list[list[int]]:
        """The entries of a shard that are encoded at once: those of one bucket."""
        buckets: dict[Bucket, list[int]] = {}
        for entry in shard:
            buckets.setdefault(self.draws[entry].bucket, []).append(entry)
        return [some[i : i + self.together] for some in buckets.values() for i in range(0, len(some), self.together)]

    def _path(self, kind: str, shard: range) -> Path:
        return self.folder / shard_name(kind, shard.start // self.sizes[kind])

    def _write_shards(self, kind: str, mine: list[range], tensors: Callable[[range], dict]) -> None:
        bf16, device = self.phase.mixed_precision == "bf16", self.state.device
        if mine and self.encoders is None:
            dtype = torch.bfloat16 if bf16 and device.type != "cpu" else torch.float32
            self.encoders = make_encoders(self.phase, self.checkpoint, self.texts, dtype).to(device)
        for shard in tqdm(mine, desc=kind, unit="shard", disable=not self.state.is_main_process):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):  # as in training
                made = tensors(shard)
            write_file(self._path(kind, shard), save(made))
        self.state.wait_for_everyone()

    def _latents(self, entries: range, batches: Iterator[Batch]) -> dict[str, torch.Tensor]:
        """The tensors of a shard of latents, from the next batches."""
        draws = self.draws[entries.start : entries.stop]
        made, chances = {}, torch.zeros(len(entries))
        for group in self._groups(entries):
            batch = next(batches)
            encoded = self.encoders.latents(to_device(batch, self.state.device))
            latents = encoded["latent"].to("cpu", self.dtype)
            extras = [None] * len(group) if encoded["extra"] is None else encoded["extra"].to("cpu", self.dtype)
            for entry, latent, extra, caption in zip(group, latents, extras, batch["captions"], strict=True):
                made[f"latent.{entry}"] = latent.clone()  # safetensors takes no views
                if extra is not None and extra.any():
                    made[f"extra.{entry}"] = extra.clone()
                made[f"caption.{entry}"] = torch.tensor(list(caption.encode()), dtype=torch.uint8)
            chances[[entry - entries.start for entry in group]] = batch["chance"]
        buckets = [(draw.bucket.width, draw.bucket.height, draw.bucket.length) for draw in draws]
        made["clip"] = torch.tensor([draw.index for draw in draws])
        made["bucket"] = torch.tensor(buckets, dtype=torch.int32)
        made["chance"] = chances
        return made

    def _text(self, captions: range, entries: list[int]) -> dict[str, torch.Tensor]:
        """The tensors of a shard of text features."""
        made = {}
        for start in range(captions.start, captions.stop, self.together):
            numbers = captions[start - captions.start :][: self.together]
            texts = self._captions([entries[number] for number in numbers])
            features = self.encoders.text(texts, torch.ones(len(texts), device=self.state.device))
            for number, text in zip(numbers, features.to("cpu", self.dtype), strict=True):
                made[f"text.{number}"] = text.clone()
        return made

    def _captions(self, entries: list[int]) -> list[str]:
        """The captions of entries, which ascend; -1 stands for the empty one."""
        found = []
        for number, some in groupby(entries, lambda entry: entry // self.sizes[LATENTS]):
            if number < 0:
                found += ["" for _ in some]
                continue
            with opened(self.folder / shard_name(LATENTS, number)) as shard:
                found += [caption_of(shard, entry) for entry in some]
        return found

    def _write_index(self, texts: list[int]) -> None:
        buckets = sorted({draw.bucket for draw in self.draws})
        numbers = {bucket: number for number, bucket in enumerate(buckets)}
        chances = []
        for number in range(math.ceil(len(self.draws) / self.sizes[LATENTS])):
            with opened(self.folder / shard_name(LATENTS, number)) as shard:
                chances.append(shard.get_tensor("chance"))
        index = {
            "buckets": torch.tensor([(b.width, b.height, b.length) for b in buckets], dtype=torch.int32),
            "bucket": torch.tensor([numbers[draw.bucket] for draw in self.draws], dtype=torch.int32),
            "chance": torch.cat(chances),
            "text": torch.tensor(texts, dtype=torch.int32),
        }
        write_file(self.folder / INDEX, save(index))


class Captions(NamedTuple):
    """The different captions of a cache. ``numbers``: which one each entry has. ``entries``: the first that has it."""

    numbers: list[int]
    entries: list[int]


def find_captions(folder: Path, count: int, shard_size: int) -> Captions:
    """Number the different captions of a cache in the order of its entries. Number 0 is the empty one.

    Only hashes are kept in memory: the captions of a million clips have about 1 GB.
    """
    known, found = {hashlib.sha256().digest(): 0}, Captions([], [-1])
    for first in range(0, count, shard_size):
        with opened(folder / shard_name(LATENTS, first // shard_size)) as shard:
            for entry in range(first, min(first + shard_size, count)):
                digest = hashlib.sha256(caption_of(shard, entry).encode()).digest()
                if digest not in known:
                    known[digest] = len(known)
                    found.entries.append(entry)
                found.numbers.append(known[digest])
    return found


def write_file(path: Path, data: bytes) -> None:
    """Write a file under another name first, so that a file with its own name is complete.

    Raises:
        OSError: it can't be written; the message has the bytes that it needs.
    """
    temporary = path.with_suffix(".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        needs = f"it needs {len(data)} bytes, and the disk has {shutil.disk_usage(path.parent).free} free"
        raise OSError(
            error.errno,
            f"{path.name} can't be written ({error.strerror}): {needs}. Complete files stay: make room, and run the "
            "same command again",
            str(path.parent),
        ) from error

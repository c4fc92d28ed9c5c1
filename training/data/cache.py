"""Encoded clips on disk: latents and text features in shards of safetensors.

A cache is a folder with these files; `loop.encode` writes it.

- ``cache.json``: what the clips were encoded with, how many there are, and how many are in a shard.
- ``latents_00000.safetensors`` and so on: an entry for each draw 0, 1, 2 ... Entry ``e`` has ``latent.e`` (16 t h w),
  ``extra.e`` (C t h w, only where something is known) and ``caption.e`` (UTF-8). ``clip``, ``bucket`` and ``chance``
  have a row for each entry.
- ``text_00000.safetensors`` and so on: ``text.i`` (L C), the features of the different captions. 0 is the empty one.
- ``index.safetensors``: ``bucket``, ``chance`` and ``text`` (number of the caption) of all entries. Written last.
"""

import itertools
import json
import logging
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch.utils.data import Dataset

from .buckets import Batcher, Bucket, Draw
from .samples import generators, latent_shape, noise_and_time

log = logging.getLogger(__name__)

ABOUT, INDEX = "cache.json", "index.safetensors"
LATENTS, TEXT = "latents", "text"


def shard_name(kind: str, number: int) -> str:
    return f"{kind}_{number:05}.safetensors"


class Cache:
    """A complete cache. It keeps the index in memory; `CachedSamples` reads the latents.

    Raises:
        ValueError: the cache is incomplete.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            about = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.folder} is no cache of encoded clips ({error}): run encode first") from error
        self.origin: dict = about["origin"]
        self.count: int = about["count"]
        self.seed: int = about["seed"]
        self.channels: int = about["channels"]  # of the conditioning; 0 of a text model
        self.text_shape: tuple[int, int] = tuple(about["text"])  # of a caption's features, L C
        self.shard_sizes: dict[str, int] = about["shard_sizes"]
        if not (self.folder / INDEX).is_file():
            raise ValueError(f"{self.folder} is not complete: run encode again, which writes what is missing")
        index = load_file(self.folder / INDEX)
        self.buckets = [Bucket(*row) for row in index["buckets"].tolist()]
        self.bucket, self.chance, self.text = index["bucket"].numpy(), index["chance"].numpy(), index["text"].numpy()
        self._check_shards()

    def _check_shards(self) -> None:
        counts = {LATENTS: self.count, TEXT: int(self.text.max()) + 1}
        present = {path.name for path in self.folder.iterdir()}
        shards = (
            shard_name(kind, number)
            for kind, count in counts.items()
            for number in range(math.ceil(count / self.shard_sizes[kind]))
        )
        missing = [name for name in shards if name not in present]
        if missing:
            shown = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
            raise ValueError(f"{self.folder} lacks {shown}: run encode again, which writes what is missing")

    def bucket_of(self, entry: int) -> Bucket:
        return self.buckets[self.bucket[entry]]

    def path(self, kind: str, number: int) -> Path:
        """The shard that has an entry or a caption."""
        return self.folder / shard_name(kind, number // self.shard_sizes[kind])


class CachedDraws:
    """Endless batches of `Draw` from a cache, every batch of one bucket; ``index`` is the entry.

    With the seed that the clips were encoded with, the first pass is in their order: its batches are those of training
    without a cache. All other passes are shuffled. Every process takes a slice of every batch.

    Raises:
        ValueError: the batch can't be shared among the processes.
    """

    def __init__(self, cache: Cache, batch_size: int, seed: int, rank: int = 0, world: int = 1):
        self.cache, self.seed = cache, seed
        self.batches_of = Batcher(batch_size, rank, world)

    def _entries(self) -> Iterator[int]:
        if self.seed == self.cache.seed:
            yield from range(self.cache.count)
        for epoch in itertools.count():
            order = list(range(self.cache.count))
            random.Random(f"cache {self.seed} {epoch}").shuffle(order)  # noqa: S311 - not for secrets
            yield from order

    def __iter__(self) -> Iterator[list[Draw]]:
        numbered = enumerate(self._entries())
        return self.batches_of(Draw(number, entry, self.cache.bucket_of(entry)) for number, entry in numbered)


class CachedSamples(Dataset):
    """What a transformer is trained on, by `Draw`, from a cache.

    A latent or text that is not finite or has a wrong shape is named in the log, and the next entry of the same bucket
    is taken. Files are opened for each sample, so nothing is shared between workers; opening takes half a millisecond.

    Args:
        noises: timesteps and noises for each clip.
        caption_dropout: how often a caption is replaced by the empty one.
    """

    def __init__(self, cache: Cache, seed: int, noises: int = 1, caption_dropout: float = 0.0):
        self.cache, self.seed, self.noises = cache, seed, noises
        self.caption_dropout = caption_dropout
        self.named: set[str] = set()  # what the log has named

    def __getitem__(self, draw: Draw) -> dict:
        rng, generator = generators(self.seed, draw.number)
        chance = rng.random()
        if self.seed == self.cache.seed and draw.number < self.cache.count:
            chance = float(self.cache.chance[draw.index])
        dropped = chance < self.caption_dropout
        found = self._first_whole(draw, dropped)
        return {**found, "chance": torch.tensor(chance), **noise_and_time(draw.bucket, self.noises, generator)}

    def _first_whole(self, draw: Draw, dropped: bool) -> dict:
        """The entry of a draw, or the next one of its bucket that can be used."""
        for offset in range(self.cache.count):
            entry = (draw.index + offset) % self.cache.count
            if self.cache.bucket_of(entry) != draw.bucket:
                continue
            try:
                return self._read(entry, dropped)
            except ValueError as error:
                if str(error) not in self.named:
                    log.warning("%s: another entry is taken instead", error)
                self.named.add(str(error))
        raise ValueError(
            f"{self.cache.folder} has no entry of {draw.bucket} that can be used: remove the shards that the log "
            "names, and run encode again"
        )

    def _read(self, entry: int, dropped: bool) -> dict:
        """One entry, float32.

        Raises:
            ValueError: a tensor of it can't be used.
            OSError: a shard can't be read.
        """
        shape = latent_shape(self.cache.bucket_of(entry))
        path = self.cache.path(LATENTS, entry)
        with opened(path) as shard:
            names = shard.keys()
            found = {"latent": checked(shard, path, f"latent.{entry}", shape)}
            if self.cache.channels:
                name, size = f"extra.{entry}", (self.cache.channels, *shape[1:])
                found["extra"] = checked(shard, path, name, size) if name in names else torch.zeros(size)
            found["captions"] = caption_of(shard, entry)
        text = 0 if dropped else int(self.cache.text[entry])
        path = self.cache.path(TEXT, text)
        with opened(path) as shard:
            found["context"] = checked(shard, path, f"text.{text}", self.cache.text_shape)
        return found


def opened(path: Path):
    """A shard, opened; its tensors are read when they are asked for.

    Raises:
        OSError: it is missing or broken.
    """
    try:
        return safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} can't be read ({error}): remove it, and run encode again") from error


def caption_of(shard, entry: int) -> str:
    """The caption of an entry in an opened shard of latents."""
    return shard.get_tensor(f"caption.{entry}").numpy().tobytes().decode()


def checked(shard, path: Path, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of a shard, float32.

    Raises:
        ValueError: it has another shape, or a value that is not finite.
    """
    tensor = shard.get_tensor(name).float()
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{path}: {name} has the shape {list(tensor.shape)}, expected {list(shape)}")
    if not tensor.isfinite().all():
        raise ValueError(f"{path}: {name} has values that are not finite")
    return tensor

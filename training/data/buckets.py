"""Token-length buckets: sizes and lengths with about the same number of tokens. Each batch has one bucket.

Training at a constant token length mixes resolutions and frame counts in one phase at a constant cost per sample
(the technical report of CogVideoX-Fun V1: 13312, 29952 and 53248 tokens, one phase each).
"""

import dataclasses
import itertools
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ...sampling.geometry import (
    check_size,
    frames_to_latent_t,
    latent_t_to_frames,
    legal_length,
    length_of_tokens,
    token_count,
)


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """The size and length of all clips of a batch: pixels and frames."""

    width: int
    height: int
    length: int
    base: int = dataclasses.field(default=0, compare=False)  # the resolution of its shape; 0 where sizes are listed

    @property
    def tokens(self) -> int:
        return token_count(self.width, self.height, self.length)

    @property
    def aspect(self) -> float:
        return self.width / self.height


@dataclasses.dataclass(frozen=True)
class Draw:
    """One place in a batch: a clip, its bucket, and the running number that seeds everything random about it."""

    number: int
    index: int
    bucket: Bucket


class Batcher:
    """Gathers draws into batches of one bucket. Every process takes a slice of every batch.

    Args:
        batch_size: clips in a batch, of all processes together.
        rank, world: this process and how many there are.

    Raises:
        ValueError: the batch can't be shared among the processes.
    """

    def __init__(self, batch_size: int, rank: int = 0, world: int = 1):
        if batch_size % world:
            raise ValueError(f"batch_size is {batch_size}, expected a multiple of the {world} processes")
        self.batch_size, self.share = batch_size, slice(rank, None, world)

    def __call__(self, draws: Iterable[Draw]) -> Iterator[list[Draw]]:
        waiting: dict[Bucket, list[Draw]] = defaultdict(list)
        for draw in draws:
            waiting[draw.bucket].append(draw)
            if len(waiting[draw.bucket]) == self.batch_size:
                yield waiting.pop(draw.bucket)[self.share]


def token_buckets(
    tokens: int,
    sizes: Sequence[tuple[int, int]],
    max_length: int,
    tolerance: float = 0.1,
    patch_t: int | None = None,
) -> list[Bucket]:
    """The sizes at which some length of at most ``max_length`` frames comes within ``tolerance`` of a token length.

    Args:
        tokens: latent frames x (height / 16) x (width / 16).
        sizes: (width, height) in pixels, multiples of 16.
        max_length: frames, 4n + 1.
        patch_t: latent frames per patch of the model (2 on V1.5, whose latent frames must be even), or None.

    Raises:
        ValueError: ``max_length`` is not 4n + 1, a size is no multiple of 16, or no size fits.
    """
    lower = latent_t_to_frames(max(frames_to_latent_t(max_length), 1))
    if max_length != lower:
        raise ValueError(f"max_length is {max_length} frames, expected 4n + 1: use {lower} or {lower + 4}")
    for width, height in sizes:
        check_size(width, height)
    lengths = [min(length_of_tokens(tokens, width, height), max_length) for width, height in sizes]
    legal = {length: legal_length(length, patch_t) for length in sorted(set(lengths))}  # each change is logged once
    made = [Bucket(*size, legal[length]) for size, length in zip(sizes, lengths, strict=True)]
    buckets = [bucket for bucket in made if abs(bucket.tokens - tokens) <= tolerance * tokens]
    if not buckets:
        raise ValueError(
            f"no size of {list(sizes)} comes within {tolerance:.0%} of {tokens} tokens at up to {max_length} frames: "
            "give other sizes or another token length"
        )
    return buckets


LARGEST_ZOOM = 1.25  # of a clip for a base resolution, as in VideoX-Fun's trainer


class BucketBatches:
    """Endless batches of `Draw`, every batch of one bucket.

    The same seed gives the same batches in any number of processes. Each process takes a slice of every batch, so all
    of them work on tensors of one shape.

    Args:
        buckets: see `token_buckets`.
        batch_size: clips in a batch, of all processes together.
        aspects: width / height of every clip: it goes into the bucket that is closest in shape, of a base resolution
            that is drawn. None for procedural clips, which have any size and never end.
        resolutions: the mean of width and height of every clip, in pixels: it is drawn at base resolutions below
            `LARGEST_ZOOM` times that, or at the smallest. None for all base resolutions.
        lengths: frames of every clip: it goes only into buckets that it is long enough for. Clips that are too short
            for all ``buckets`` are never drawn and are listed in ``too_short``. None for clips of any length.
        rank, world: this process and how many there are.
        earlier, earlier_share: buckets of earlier phases, and how often (0..1) one of them is drawn.

    Raises:
        ValueError: the batch can't be shared among the processes, or every clip is too short.
    """

    def __init__(
        self,
        # what to draw
        buckets: Sequence[Bucket],
        batch_size: int,
        seed: int,
        aspects: Sequence[float] | None = None,
        lengths: Sequence[int] | None = None,
        resolutions: Sequence[float] | None = None,
        # for whom
        rank: int = 0,
        world: int = 1,
        # what to repeat
        earlier: Sequence[Bucket] = (),
        earlier_share: float = 0.0,
    ):
        self.buckets = list(buckets)
        self.batches_of = Batcher(batch_size, rank, world)
        self.seed = seed
        self.aspects, self.lengths = (x if x is None else np.asarray(x) for x in (aspects, lengths))
        self.resolutions = resolutions
        self.shortest = min(bucket.length for bucket in self.buckets)
        self.too_short = np.empty(0, np.int64)
        if lengths is not None:
            self.too_short = np.flatnonzero(self.lengths < self.shortest)
            if len(self.too_short) == len(self.lengths):
                raise ValueError(
                    f"no clip is long enough: the longest has {max(self.lengths, default=0)} frames, and the shortest "
                    f"bucket takes {self.shortest}: give longer clips, or larger sizes, which take fewer frames"
                )
        self.earlier, self.earlier_share = list(earlier), earlier_share

    def _indices(self) -> Iterator[int]:
        """0, 1, 2 ... for procedural clips; otherwise every usable clip once per epoch, in a new order each time."""
        if self.aspects is None:
            yield from itertools.count()
        usable = np.delete(np.arange(len(self.aspects)), self.too_short)
        for epoch in itertools.count():
            # NumPy keeps the numbers of RandomState the same in all its versions
            order = np.random.RandomState((self.seed, epoch)).permutation(usable)
            for index in order:  # not a list, which would need eight times the memory
                yield int(index)

    def _bucket(self, index: int, rng: random.Random) -> Bucket:
        length = None if self.lengths is None else int(self.lengths[index])
        aspect = None if self.aspects is None else float(self.aspects[index])
        earlier = _fitting(self.earlier, length)
        buckets = earlier if earlier and rng.random() < self.earlier_share else _fitting(self.buckets, length)
        if aspect is None:
            return rng.choice(buckets)
        bases = sorted({bucket.base for bucket in buckets})  # rounding gives each its own aspects
        if self.resolutions is not None:
            largest = LARGEST_ZOOM * float(self.resolutions[index])
            smallest = next((base for base in bases if base), 0)  # 0: a size that is listed by itself
            bases = [base for base in bases if base < largest or base == smallest]
        base = rng.choice(bases)
        return rng.choice(_closest([bucket for bucket in buckets if bucket.base == base], aspect))

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = random.Random(f"batches {self.seed}")  # noqa: S311 - not for secrets
        numbered = enumerate(self._indices())
        return self.batches_of(Draw(number, index, self._bucket(index, rng)) for number, index in numbered)


def _fitting(buckets: list[Bucket], length: int | None) -> list[Bucket]:
    return [bucket for bucket in buckets if length is None or bucket.length <= length]


def _closest(buckets: list[Bucket], aspect: float | None) -> list[Bucket]:
    """The buckets whose shape is closest to a clip's."""
    if aspect is None:
        return buckets
    distances = [abs(bucket.aspect - aspect) for bucket in buckets]
    closest = min(distances)
    return [bucket for bucket, distance in zip(buckets, distances, strict=True) if distance == closest]

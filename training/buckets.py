"""Token-length buckets: sizes and lengths that make about the same number of tokens, and batches of one bucket each.

Training at a constant token length mixes resolutions and frame counts in one phase at a constant cost per sample
(the technical report of CogVideoX-Fun V1: 13312, 29952 and 53248 tokens, one phase each).
"""

import dataclasses
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

from ..sampling.geometry import check_size, fit_length, token_count


@dataclasses.dataclass(frozen=True, order=True)
class Bucket:
    """What every clip of a batch is brought to: pixels and frames."""

    width: int
    height: int
    length: int

    @property
    def tokens(self) -> int:
        return token_count(self.width, self.height, self.length)

    @property
    def aspect(self) -> float:
        return self.width / self.height


@dataclasses.dataclass(frozen=True)
class Draw:
    """One place in a batch: which clip, at which size, and the running number that all its randomness comes from."""

    number: int
    index: int
    bucket: Bucket


def token_buckets(
    tokens: int, sizes: Sequence[tuple[int, int]], max_length: int, tolerance: float = 0.1
) -> list[Bucket]:
    """The sizes at which some length of at most ``max_length`` frames comes within ``tolerance`` of a token length.

    Args:
        tokens: latent frames x (height / 16) x (width / 16).
        sizes: (width, height) in pixels, multiples of 16.

    Raises:
        ValueError: a size that is no multiple of 16, or no size fits.
    """
    buckets = []
    for width, height in sizes:
        check_size(width, height)
        bucket = Bucket(width, height, min(fit_length(tokens, width, height), max_length))
        if abs(bucket.tokens - tokens) <= tolerance * tokens:
            buckets.append(bucket)
    if not buckets:
        raise ValueError(
            f"no size of {list(sizes)} comes within {tolerance:.0%} of {tokens} tokens at up to {max_length} frames: "
            "give other sizes or another token length"
        )
    return buckets


class BucketBatches:
    """Endless batches of `Draw`, every batch of one bucket.

    The same seed gives the same batches, in any number of processes: each takes its slice of every batch, so that
    all of them work on tensors of one shape.

    Args:
        buckets: see `token_buckets`.
        batch_size: clips in a batch, of all processes together.
        aspects: width / height of every clip, which then goes into the bucket closest in shape; None for clips that
            can be made at any size, and in any number.
        rank, world: this process and how many there are.
        earlier, earlier_share: buckets of earlier phases' token lengths, and how often (0..1) one of them is drawn.

    Raises:
        ValueError: the batch can't be shared among the processes.
    """

    def __init__(
        self,
        # what to draw
        buckets: Sequence[Bucket],
        batch_size: int,
        seed: int,
        aspects: Sequence[float] | None = None,
        # for whom
        rank: int = 0,
        world: int = 1,
        # what to rehearse
        earlier: Sequence[Bucket] = (),
        earlier_share: float = 0.0,
    ):
        if batch_size % world:
            raise ValueError(f"batch_size is {batch_size}, expected a multiple of the {world} processes")
        self.buckets = list(buckets)
        self.batch_size = batch_size
        self.seed = seed
        self.aspects = aspects
        self.earlier, self.earlier_share = list(earlier), earlier_share
        self.share = slice(rank, None, world)

    def _indices(self, rng: random.Random) -> Iterator[int]:
        """0, 1, 2 ... of clips without end; otherwise every clip once, in a new order each time."""
        if self.aspects is None:
            number = 0
            while True:
                yield number
                number += 1
        while True:
            order = list(range(len(self.aspects)))
            rng.shuffle(order)
            yield from order

    def _bucket(self, index: int, rng: random.Random) -> Bucket:
        buckets = self.earlier if self.earlier and rng.random() < self.earlier_share else self.buckets
        if self.aspects is None:
            return rng.choice(buckets)
        closest = min(abs(bucket.aspect - self.aspects[index]) for bucket in buckets)
        return rng.choice([bucket for bucket in buckets if abs(bucket.aspect - self.aspects[index]) == closest])

    def __iter__(self) -> Iterator[list[Draw]]:
        rng = random.Random(f"batches {self.seed}")  # noqa: S311 - not for secrets
        waiting: dict[Bucket, list[Draw]] = defaultdict(list)
        for number, index in enumerate(self._indices(rng)):
            bucket = self._bucket(index, rng)
            waiting[bucket].append(Draw(number, index, bucket))
            if len(waiting[bucket]) == self.batch_size:
                yield waiting.pop(bucket)[self.share]

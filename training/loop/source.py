"""A phase's batches: its clips, its buckets, and the processes that read them."""

import logging
from collections.abc import Iterator
from itertools import islice

from ..data.buckets import Bucket, BucketBatches, token_buckets
from ..data.clips import Clips, FolderClips, ShapeClips
from ..data.samples import Batch, Samples, load
from .config import Data, Phase

log = logging.getLogger(__name__)


def open_clips(data: Data) -> Clips:
    return FolderClips(data.folders, data.fps) if data.folders else ShapeClips(data.seed, data.shapes, data.count)


def phase_draws(
    phase: Phase, clips: Clips, rank: int = 0, world: int = 1, patch_t: int | None = None
) -> BucketBatches:
    """This process's share of a phase's batches. Clips that are too short are named in the log.

    Args:
        patch_t: latent frames per patch of the trained model (2 in V1.5), or None.

    Raises:
        ValueError: no size fits the token length, or no clip is long enough.
    """
    options = phase.batches

    def buckets(tokens: int) -> list[Bucket]:
        return token_buckets(tokens, options.sizes, options.max_length, options.tolerance, patch_t)

    earlier = [bucket for tokens in options.earlier_tokens for bucket in buckets(tokens)]
    draws = BucketBatches(
        *(buckets(options.tokens), options.batch_size, phase.seed, clips.aspects, clips.lengths),
        *(rank, world),
        *(earlier, options.earlier_share),
    )
    for index in draws.too_short:
        found = f"{clips.paths[index]} has {clips.lengths[index]} frames at the phase's rate"
        log.warning("%s, expected at least %d: left out", found, draws.shortest)
    return draws


def phase_batches(
    phase: Phase, clips: Clips, rank: int = 0, world: int = 1, start: int = 0, patch_t: int | None = None
) -> Iterator[Batch]:
    """The batches of a phase from step ``start`` on; see `phase_draws` for the other arguments."""
    draws = islice(phase_draws(phase, clips, rank, world, patch_t), start, None)
    return load(phase_samples(phase, clips), draws, phase.data.workers)


def phase_samples(phase: Phase, clips: Clips) -> Samples:
    return Samples(clips, phase.seed, phase.masks, phase.batches.noises_per_clip)

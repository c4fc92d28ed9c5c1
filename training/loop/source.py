"""A phase's batches: its clips, its buckets, and the processes that read them."""

import dataclasses
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from ...model_loading.networks.config import TransformerConfig
from ...sampling.buckets import ASPECT_RATIOS_512, bucket_size
from ...sampling.geometry import latent_t_to_frames
from ..data.buckets import Bucket, BucketBatches, token_buckets
from ..data.cache import Cache, CachedDraws, CachedSamples
from ..data.clips import Clips, FolderClips, SceneClips
from ..data.manifest import ManifestClips
from ..data.samples import Batch, Samples, load
from .config import Batches, ConfigError, Data, Phase

log = logging.getLogger(__name__)

TOO_SHORT_SHOWN = 5  # clips that are named; the others are counted
# Processes of a rank that make samples, if the configuration does not say
FILE_WORKERS, MOST_WORKERS = 2, 12
SPARE_CORES = 2  # of a rank, left for training


@contextmanager
def as_config_error() -> Iterator[None]:
    """Errors in a phase's clips and lengths are the user's to fix: they are said without a traceback."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(str(error)) from error


@as_config_error()
def open_clips(data: Data) -> Clips | None:
    """The clips of a manifest, of folders, or procedural ones; None where they come from a cache.

    Raises:
        ConfigError: no clip can be used.
    """
    if data.cache:
        return None
    if data.manifest:
        return ManifestClips(data.manifest, data.fps, data.control)
    if data.folders:
        return FolderClips(data.folders, data.fps, data.control)
    return SceneClips(data.seed, data.shapes, data.count, data.kinds, data.backgrounds)


def worker_count(data: Data) -> int:
    """How many processes of each rank make samples: two for videos, of which each holds a whole batch, and for others
    as many as the rank has cores to spare."""
    if data.workers >= 0:
        return data.workers
    if data.manifest or data.folders:
        return FILE_WORKERS
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(min(cores - SPARE_CORES, MOST_WORKERS), FILE_WORKERS if data.cache else 0)


def phase_sizes(options: Batches) -> dict[tuple[int, int], int]:
    """The sizes of a phase and the base resolution of each, 0 where it is listed by itself."""
    bases = {bucket_size(shape, base): base for base in options.bases for shape in ASPECT_RATIOS_512}
    return {**dict.fromkeys(options.sizes, 0), **bases}


def length_limits(config: TransformerConfig | None) -> tuple[int | None, int | None]:
    """What lengths a model takes, as `legal_length` has it: latent frames in a patch, and the most frames."""
    if config is None:
        return None, None
    return config.patch_size_t, None if config.max_latent_t is None else latent_t_to_frames(config.max_latent_t)


def longest(options: Batches, config: TransformerConfig | None) -> int:
    """The most frames of a clip: ``max_length``, or fewer where the model takes fewer."""
    _, most = length_limits(config)
    return options.max_length if most is None else min(options.max_length, most)


@as_config_error()
def phase_buckets(options: Batches, tokens: int, config: TransformerConfig | None = None) -> list[Bucket]:
    """The buckets of a token length: of the listed sizes, and of VideoX-Fun's 40 shapes at each base resolution.

    Args:
        config: of the trained model, or None for a VAE.

    Raises:
        ConfigError: no size fits.
    """
    sizes = phase_sizes(options)
    patch_t, _ = length_limits(config)
    buckets = token_buckets(tokens, list(sizes), longest(options, config), options.tolerance, patch_t)
    return [dataclasses.replace(bucket, base=sizes[bucket.width, bucket.height]) for bucket in buckets]


@as_config_error()
def phase_draws(
    phase: Phase, clips: Clips, rank: int = 0, world: int = 1, config: TransformerConfig | None = None
) -> BucketBatches:
    """This process's share of a phase's batches. Clips that are too short are named in the log.

    Args:
        config: of the trained model, which limits the lengths, or None for a VAE.

    Raises:
        ConfigError: no size fits the token length, or no clip is long enough.
    """
    options = phase.batches
    limit = longest(options, config)
    if limit < options.max_length and rank == 0:
        log.info("max_length is %d, but the model takes at most %d frames", options.max_length, limit)
    earlier = [bucket for tokens in options.earlier_tokens for bucket in phase_buckets(options, tokens, config)]
    buckets = phase_buckets(options, options.tokens, config)
    sizes = len(phase_sizes(options))
    if len(buckets) < sizes and rank == 0:
        found = sizes - len(buckets), sizes, limit, 100 * options.tolerance, options.tokens
        log.info("%d of %d sizes are left out: no length of up to %d frames is within %.0f%% of %d tokens", *found)
    what = buckets, options.batch_size, phase.seed, clips.aspects, clips.lengths, clips.resolutions
    draws = BucketBatches(*what, rank, world, earlier, options.earlier_share)
    for index in draws.too_short[:TOO_SHORT_SHOWN].tolist():
        found = f"{clips.path(index)} has {clips.lengths[index]} frames at the phase's rate"
        log.warning("%s, expected at least %d: left out", found, draws.shortest)
    if len(draws.too_short) > TOO_SHORT_SHOWN:
        log.warning("%d more clips are too short: left out", len(draws.too_short) - TOO_SHORT_SHOWN)
    return draws


def phase_batches(
    phase: Phase,
    clips: Clips | None,
    rank: int = 0,
    world: int = 1,
    start: int = 0,
    config: TransformerConfig | None = None,
) -> Iterator[Batch]:
    """The batches of a phase from step ``start`` on; see `phase_draws` for the other arguments."""
    if phase.data.cache:
        return cached_batches(phase, rank, world, start)
    draws = islice(phase_draws(phase, clips, rank, world, config), start, None)
    return load(phase_samples(phase, clips), draws, worker_count(phase.data))


def phase_samples(phase: Phase, clips: Clips) -> Samples:
    """The samples of a phase, with its masks, noises and control videos."""
    control = phase.data.control, phase.data.edge_thresholds
    return Samples(clips, phase.seed, phase.masks, phase.batches.noises_per_clip, *control)


def cached_batches(phase: Phase, rank: int = 0, world: int = 1, start: int = 0) -> Iterator[Batch]:
    """The same from a phase's cache: batches of what the encoders would make."""
    cache, options = Cache(phase.data.cache), phase.batches
    draws = islice(CachedDraws(cache, options.batch_size, phase.seed, rank, world), start, None)
    samples = CachedSamples(cache, phase.seed, options.noises_per_clip, phase.caption_dropout)
    return load(samples, draws, worker_count(phase.data))

"""Match a generated video's colours to its source, and paste back what was to be kept."""

import logging
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .libraries import import_library
from .masks import THRESHOLD, as_frames, check_image, fit_mask

log = logging.getLogger(__name__)

FRAMES_AT_ONCE = 8
COLOR_PASSES = 3  # over the frames, to match colours: two to measure, one to match
LEAST_KEPT = 0.01  # share of the pixels: fewer don't show the colours of the whole
CONTRAST_LIMITS = (0.5, 2.0)
FLAT = 2.0  # standard deviation of L, a or b: below it there is noise, which doesn't show the contrast of the whole


def composite(
    video: Tensor,
    source: Tensor,
    mask: Tensor | None = None,
    match_colors: float = 1.0,
    paste_known: bool = True,
    on_progress: Callable | None = None,
) -> Tensor:
    """Match a generated video's colours to its source, and paste the source's pixels where they were to be kept.

    Args:
        video: F H W 3, 0..1.
        source: the same size, with as many frames or more; frames beyond the video's length are not used.
        mask: F H W, 1 = generated. Where it is 0.5 and more, VAE Encode leaves the whole pixel to the model, and so
            nothing of the source is kept there; values below blend. A mask as long as the source is cut like it.
            None: nothing is pasted, and colours are measured over the whole video.
        match_colors: 0 leaves the colours, 1 matches mean and contrast of L, a and b over the whole video (Reinhard et
            al. 2001), measured where the source was kept.
        paste_known: copy the source's exact pixels where the mask is 0.
        on_progress: called with (done, total) while colours are matched, to report progress or to interrupt.

    Returns:
        F H W 3, 0..1.

    Raises:
        ValueError: the source has fewer frames or another size, or match_colors is outside 0..1.
    """
    check_strength(match_colors)
    check_image(video, "video")
    check_image(source, "source")
    length, height, width = video.shape[:3]
    if source.shape[1:3] != (height, width):
        raise ValueError(
            f"the source is {source.shape[2]} x {source.shape[1]}, but the video is {width} x {height}: connect the "
            "source as it went into VAE Encode, at the video's size"
        )
    if len(source) < length:
        raise ValueError(
            f"the source has {len(source)} frames, but the video has {length}: connect the source of this video"
        )
    if mask is not None:
        mask = as_frames(mask)
        mask = fit_mask(mask[:length] if len(mask) == len(source) else mask, length, height, width, soft=True)
        mask = (mask / THRESHOLD).clamp(max=1)  # the mask editor paints with 0.7: else the source would shine through
    source = source[:length].to(video)
    result = recolored(video, source, mask, match_colors, on_progress) if match_colors else video.clone()
    if mask is not None and paste_known:
        for part in parts(length):
            share = mask[part, ..., None].clamp(0, 1).to(video)
            result[part] = torch.where(share == 0, source[part], torch.lerp(source[part], result[part], share))
    return result.clamp_(0, 1)


def check_strength(match_colors: float) -> None:
    """Raise a ValueError unless match_colors is 0..1."""
    if not 0 <= match_colors <= 1:
        raise ValueError(f"match_colors is {match_colors}, expected 0 (leave the colours) to 1 (match them)")


def parts(length: int, on_progress: Callable | None = None, before: int = 0, passes: int = 1) -> Iterator[slice]:
    """Slices of a few frames each: whole videos in L, a and b would take several times their memory.

    Args:
        on_progress: called with (done, total) frames before each, to report progress or to interrupt.
        before, passes: how many passes over the frames came before this one, and how many there are.
    """
    for start in range(0, length, FRAMES_AT_ONCE):
        if on_progress is not None:
            on_progress(before * length + start, passes * length)
        yield slice(start, start + FRAMES_AT_ONCE)


def recolored(
    video, source, mask, strength: float, on_progress: Callable | None = None, passes: int = COLOR_PASSES
) -> Tensor:
    """``video`` with the colours of ``source``; a ``strength`` below 1 does so in part. on_progress, passes: see
    `parts`."""
    lab_to_rgb = import_library("kornia").color.lab_to_rgb
    kept = 1.0 if mask is None else sum(float((1 - frame).clamp(0, 1).mean()) for frame in mask) / len(mask)
    if not kept:
        mask = None
    elif kept < LEAST_KEPT:
        log.warning("only %.1f %% of the source was kept, too little to match colours: they stay", 100 * kept)
        return video.clone()
    ours, our_contrast = measure(video, mask, on_progress, 0, passes)
    theirs, their_contrast = measure(source, mask, on_progress, 1, passes)
    contrast = (their_contrast / our_contrast).clamp(*CONTRAST_LIMITS)
    contrast = torch.where(torch.minimum(our_contrast, their_contrast) < FLAT, 1.0, contrast)
    result = torch.empty_like(video)
    for part in parts(len(video), on_progress, 2, passes):
        lab = to_lab(video[part])
        matched = (lab - ours.to(lab)) * contrast.to(lab) + theirs.to(lab)
        rgb = lab_to_rgb(matched.movedim(-1, 1)).movedim(1, -1)  # kornia wants B C H W
        result[part] = torch.lerp(video[part], rgb.to(video), strength)
    return result


def to_lab(video: Tensor) -> Tensor:
    """F H W 3 of RGB, 0..1 -> F H W 3 of L (0..100), a and b, float32."""
    return import_library("kornia").color.rgb_to_lab(video.float().clamp(0, 1).movedim(-1, 1)).movedim(1, -1)


def measure(
    video: Tensor, mask: Tensor | None, on_progress=None, before: int = 0, passes: int = COLOR_PASSES
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of L, a and b, [3] each, float64; pixels count by how far ``mask`` keeps them.

    on_progress, before, passes: see `parts`.
    """
    count, total, square = 0.0, torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for part in parts(len(video), on_progress, before, passes):
        lab = to_lab(video[part]).cpu().double()
        share = torch.ones(lab.shape[:3], dtype=torch.float64)
        if mask is not None:
            share -= mask[part][: len(lab)].cpu().double().clamp(0, 1)
        count += float(share.sum())
        total += (lab * share[..., None]).sum(dim=(0, 1, 2))
        square += (lab.square() * share[..., None]).sum(dim=(0, 1, 2))
    mean = total / count
    return mean, (square / count - mean.square()).clamp(min=0).sqrt()

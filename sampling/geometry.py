"""Frames and pixels, the VAE's grid, and the transformer's grid.

The VAE turns 4n + 1 frames into n + 1 latent frames, and 8 x 8 pixels into one latent pixel. A token is a patch of
2 x 2 latent pixels, and of ``patch_t`` latent frames on V1.5.
"""

import logging

log = logging.getLogger(__name__)

TEMPORAL_COMPRESSION = 4
SPATIAL_COMPRESSION = 8
FRAMES_PER_SECOND = 8  # that the models were trained at
PATCH = 2
SIZE_MULTIPLE = SPATIAL_COMPRESSION * PATCH  # a token covers 16 x 16 pixels


def frames_to_latent_t(length: int) -> int:
    """Latent frames of a video of ``length`` frames, 4n + 1: 49 -> 13."""
    return (length - 1) // TEMPORAL_COMPRESSION + 1


def latent_t_to_frames(latent_t: int) -> int:
    """Frames of a video of ``latent_t`` latent frames: 13 -> 49, 12 -> 45."""
    return (latent_t - 1) * TEMPORAL_COMPRESSION + 1


def token_count(width: int, height: int, length: int) -> int:
    """The technical report's token length: latent frames x (height / 16) x (width / 16)."""
    return frames_to_latent_t(length) * (height // SIZE_MULTIPLE) * (width // SIZE_MULTIPLE)


def length_of_tokens(tokens: int, width: int, height: int) -> int:
    """The length whose token count comes closest to ``tokens``, at least 1 frame.

    The report's 13312 tokens are 49 frames at 512 x 512, 21 at 768 x 768 and 9 at 1024 x 1024.
    """
    per_frame = token_count(width, height, 1)
    return latent_t_to_frames(max(round(tokens / per_frame), 1))


def legal_length(length: int, patch_t: int | None = None, max_length: int | None = None) -> int:
    """Round a length as `rounded_length` does. The log tells of a change with both numbers."""
    result, reasons = rounded_length(length, patch_t, max_length)
    if reasons:
        log.warning("length %d -> %d: %s", length, result, reasons)
    return result


def rounded_length(length: int, patch_t: int | None = None, max_length: int | None = None) -> tuple[int, str]:
    """Round a length down to one that a model takes, and say why; "" where it is taken as it is.

    Args:
        length: frames, at least 1.
        patch_t: latent frames in a patch of the model (2 on V1.5, which takes an even number of them), or None.
        max_length: the most frames that the model takes, or None.

    Raises:
        ValueError: ``length`` is below 1.
    """
    if length < 1:
        raise ValueError(f"length is {length}, expected at least 1 frame")
    reasons = []
    result = length
    if max_length is not None and result > max_length:
        result = max_length
        reasons.append(f"the model takes at most {max_length} frames")
    if (result - 1) % TEMPORAL_COMPRESSION:
        result = latent_t_to_frames(frames_to_latent_t(result))
        reasons.append("the VAE takes 4n + 1 frames")
    latent_t = frames_to_latent_t(result)
    if patch_t is not None and latent_t > 1 and latent_t % patch_t:
        result, _ = nearest_lengths(latent_t, patch_t)
        reasons.append(f"V1.5 takes a multiple of {patch_t} latent frames")
    return result, " and ".join(reasons)


def check_size(width: int, height: int) -> None:
    """Raise a ValueError unless width and height, in pixels, are multiples of 16."""
    for name, value in (("width", width), ("height", height)):
        if value < SIZE_MULTIPLE or value % SIZE_MULTIPLE:
            lower = max(SIZE_MULTIPLE, value // SIZE_MULTIPLE * SIZE_MULTIPLE)
            raise ValueError(
                f"{name} is {value} pixels, expected a multiple of {SIZE_MULTIPLE}: use {lower} or "
                f"{lower + SIZE_MULTIPLE}"
            )


def nearest_lengths(latent_t: int, patch_t: int) -> list[int]:
    """The lengths next to a number of latent frames that fill patches of ``patch_t``, in frames: 13, 2 -> [45, 53]."""
    below = latent_t - latent_t % patch_t
    return [latent_t_to_frames(t) for t in (below, below + patch_t) if t > 0]


def check_latent_t(latent_t: int, patch_t: int | None, max_latent_t: int | None) -> None:
    """Raise a ValueError that names legal lengths unless a model takes ``latent_t`` latent frames.

    Args:
        latent_t: latent frames of one transformer call.
        patch_t: 2 on V1.5, else None. One latent frame is legal there, too: the model appends a zero frame.
        max_latent_t: 13 on V1.0 and V1.1, which were trained on 49 frames; None on V1.5.
    """
    frames = latent_t_to_frames(latent_t)
    if max_latent_t is not None and latent_t > max_latent_t:
        longest = latent_t_to_frames(max_latent_t)
        raise ValueError(
            f"the latent has {latent_t} frames (a length of {frames}), but the model takes at most "
            f"{max_latent_t} (a length of {longest}): set length to {longest} or less, or add Context Windows, or "
            "Position Interpolation with riflex_k (5B) or a temporal_scale"
        )
    if patch_t is not None and latent_t > 1 and latent_t % patch_t:
        lower, higher = nearest_lengths(latent_t, patch_t)
        raise ValueError(
            f"the latent has {latent_t} frames (a length of {frames}), but V1.5 takes an even number of latent "
            f"frames: set length to {lower} or {higher}"
        )


def crop_region(grid_h: int, grid_w: int, base_h: int, base_w: int) -> tuple[int, int, int, int]:
    """The part of the trained grid that a run's grid covers when it is scaled to fit inside and centred.

    Rounds half to even, like ``get_resize_crop_region_for_grid`` in VideoX-Fun, with which the 5B models were trained.

    Returns:
        (top, left, bottom, right) in tokens of the trained grid.
    """
    if grid_h / grid_w > base_h / base_w:
        height, width = base_h, round(base_h / grid_h * grid_w)
    else:
        height, width = round(base_w / grid_w * grid_h), base_w
    top, left = round((base_h - height) / 2), round((base_w - width) / 2)
    return top, left, top + height, left + width

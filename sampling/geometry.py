"""Frames and pixels against the VAE's grid and the transformer's grid.

The VAE maps 4n + 1 frames to n + 1 latent frames and 8 x 8 pixels to one latent; the transformer then takes
patches of 2 x 2 latents (and of ``patch_t`` latent frames on V1.5).
"""

import logging

log = logging.getLogger(__name__)

TEMPORAL_COMPRESSION = 4
SPATIAL_COMPRESSION = 8
PATCH = 2
SIZE_MULTIPLE = SPATIAL_COMPRESSION * PATCH  # 16 pixels make one token


def frames_to_latent_t(length: int) -> int:
    """Latent frames of a video of ``length`` frames (which is 4n + 1)."""
    return (length - 1) // TEMPORAL_COMPRESSION + 1


def latent_t_to_frames(latent_t: int) -> int:
    """Frames of a video of ``latent_t`` latent frames: 13 -> 49, 12 -> 45."""
    return (latent_t - 1) * TEMPORAL_COMPRESSION + 1


def token_count(width: int, height: int, length: int) -> int:
    """The token length of the technical report: latent frames x (height / 16) x (width / 16)."""
    return frames_to_latent_t(length) * (height // SIZE_MULTIPLE) * (width // SIZE_MULTIPLE)


def length_of_tokens(tokens: int, width: int, height: int) -> int:
    """The frames that come closest to a token length at a size in pixels, at least 1.

    The report's 13312 tokens are 49 frames at 512 x 512, 21 at 768 x 768 and 9 at 1024 x 1024.
    """
    per_frame = token_count(width, height, 1)
    return latent_t_to_frames(max(round(tokens / per_frame), 1))


def legal_length(length: int, patch_t: int | None = None, max_length: int | None = None) -> int:
    """The longest length that is at most ``length`` and that a model takes; a change is logged with both numbers.

    Args:
        length: frames, at least 1.
        patch_t: latent frames per patch of the model (2 on V1.5, whose latent frames must be even), or None.
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
        result = latent_t_to_frames(latent_t - latent_t % patch_t)
        reasons.append(f"V1.5 takes a multiple of {patch_t} latent frames")
    if result != length:
        log.warning("length %d -> %d: %s", length, result, " and ".join(reasons))
    return result


def check_size(width: int, height: int) -> None:
    """Raise a ValueError unless width and height, in pixels, are multiples of 16."""
    for name, value in (("width", width), ("height", height)):
        if value < SIZE_MULTIPLE or value % SIZE_MULTIPLE:
            lower = max(SIZE_MULTIPLE, value // SIZE_MULTIPLE * SIZE_MULTIPLE)
            raise ValueError(
                f"{name} is {value} pixels, expected a multiple of {SIZE_MULTIPLE}: "
                f"use {lower} or {lower + SIZE_MULTIPLE}"
            )


def check_latent_t(latent_t: int, patch_t: int | None, max_latent_t: int | None) -> None:
    """Raise a ValueError that names the legal lengths unless a model can take ``latent_t`` latent frames.

    Args:
        latent_t: latent frames of one transformer call.
        patch_t: 2 on V1.5, else None. A single frame is legal there too (a zero frame is appended).
        max_latent_t: 13 on V1.0 and V1.1 (49 frames, the length they were trained on), None on V1.5.
    """
    frames = latent_t_to_frames(latent_t)
    if max_latent_t is not None and latent_t > max_latent_t:
        raise ValueError(
            f"the latent has {latent_t} frames (a length of {frames}), but V1.0 and V1.1 models take at most "
            f"{max_latent_t} (a length of {latent_t_to_frames(max_latent_t)}): set length to "
            f"{latent_t_to_frames(max_latent_t)} or less, or add Context Windows, or Position Interpolation with "
            "riflex_k (5B) or a temporal_scale"
        )
    if patch_t is not None and latent_t > 1 and latent_t % patch_t:
        below = latent_t - latent_t % patch_t
        legal = [latent_t_to_frames(t) for t in (below, below + patch_t)]
        raise ValueError(
            f"the latent has {latent_t} frames (a length of {frames}), but V1.5 takes an even number of latent "
            f"frames: set length to {legal[0]} or {legal[1]}"
        )


def crop_region(grid_h: int, grid_w: int, base_h: int, base_w: int) -> tuple[int, int, int, int]:
    """Where a run's grid lies in the trained grid when it is scaled to fit inside, centred.

    Returns:
        (top, left, bottom, right) in tokens of the trained grid.

    The rounding (Python's, half to even) is the one of ``get_resize_crop_region_for_grid`` in the authors'
    pipelines, which the 5B models were trained with.
    """
    if grid_h / grid_w > base_h / base_w:
        height, width = base_h, round(base_h / grid_h * grid_w)
    else:
        height, width = round(base_w / grid_w * grid_h), base_w
    top, left = round((base_h - height) / 2), round((base_w - width) / 2)
    return top, left, top + height, left + width

"""Where the shape of a clip is, its colour, its direction, and the background.

All are measured from pixels, with the palette of `shapes`, and without the prompt.
"""

import dataclasses

import torch

from ..data.shapes import BACKGROUNDS, COLOURS, DIRECTIONS

MIN_CONTRAST = 0.2  # between a pixel of the shape and the background
MIN_AREA = 0.01  # of a shape, as a share of the frame
MIN_MOTION = 0.1  # as a share of the frame
MAX_SPREAD = 0.21  # see `spread_of`; the largest ring has 0.18


def psnr(video: torch.Tensor, reference: torch.Tensor, where: torch.Tensor | None = None) -> float:
    """Peak signal-to-noise ratio in dB of values of 0..1.

    Args:
        video, reference: ... 3, of one shape.
        where: the same shape without the 3; only pixels with a value other than zero count.
    """
    error = (video - reference).square().mean(-1)
    error = error.mean() if where is None else error[where.bool()].mean()
    return float(-10 * torch.log10(error.clamp(min=1e-10)))


def background_of(video: torch.Tensor) -> torch.Tensor:
    """The background of F H W 3, H 3: a gradient from the median of the top rows to that of the bottom rows.

    Shapes never cover these rows.
    """
    top, bottom = (video[:, rows].flatten(0, 2).median(dim=0).values for rows in (slice(0, 2), slice(-2, None)))
    along = torch.linspace(0, 1, video.shape[1])[:, None]
    return top + (bottom - top) * along


def difference(video: torch.Tensor) -> torch.Tensor:
    """How far every pixel is from its background, F H W."""
    return (video - background_of(video)[:, None, :]).norm(dim=-1)


@dataclasses.dataclass(frozen=True)
class Seen:
    """The content of a clip."""

    found: bool  # a shape in the first and in the last frame
    colour: str
    background: str
    direction: str | None  # None: it does not move
    centres: torch.Tensor  # F 2, x and y in fractions of width and height, NaN where there is no shape


def nearest(colour: torch.Tensor, palette: dict[str, torch.Tensor]) -> str:
    return min(palette, key=lambda name: float((palette[name] - colour).norm()))


def centres_of(video: torch.Tensor) -> torch.Tensor:
    """The shape's centre in every frame, F 2 in fractions of width and height; NaN where there is none."""
    _, height, width, _ = video.shape
    inside = (difference(video) > MIN_CONTRAST).float()
    area = inside.sum((1, 2))
    x = (inside.sum(1) * (torch.arange(width) + 0.5)).sum(1) / width
    y = (inside.sum(2) * (torch.arange(height) + 0.5)).sum(1) / height
    centres = torch.stack([x, y], dim=1) / area.clamp(min=1)[:, None]
    centres[area < MIN_AREA * height * width] = torch.nan
    return centres


def spread_of(video: torch.Tensor) -> torch.Tensor:
    """The root mean square distance of the shape's pixels from their centre in every frame, F, in fractions of the
    shorter side; NaN if there is no shape.

    Two shapes, as in a cross-fade, have one centre but are far from it.
    """
    _, height, width, _ = video.shape
    inside = (difference(video) > MIN_CONTRAST).float()
    x, y = (centres_of(video) * torch.tensor([width, height]))[:, :, None, None].unbind(1)
    squares = (torch.arange(width) + 0.5 - x) ** 2 + (torch.arange(height)[:, None] + 0.5 - y) ** 2
    return ((inside * squares).sum((1, 2)) / inside.sum((1, 2))).sqrt() / min(height, width)


def direction_of(centres: torch.Tensor) -> str | None:
    """The named direction closest to the motion from the first centre to the last; None if there is little motion."""
    moved = centres[-1] - centres[0]
    if not moved.isfinite().all() or moved.abs().max() < MIN_MOTION:
        return None
    return max(DIRECTIONS, key=lambda name: float((torch.tensor(DIRECTIONS[name]) * moved).sum()))


def look(video: torch.Tensor) -> Seen:
    """Measure F H W 3 of 0..1."""
    far = difference(video)
    inside = far > max(MIN_CONTRAST, float(far.quantile(0.98)) / 2)  # without the blurred outline
    palette = {name: torch.tensor(value) for name, value in COLOURS.items()}
    colour = video[inside].median(dim=0).values if inside.any() else torch.full((3,), torch.nan)
    height = video.shape[1]
    along = ((torch.arange(height) + 0.5) / height)[:, None]
    backs = {n: torch.tensor(a) + (torch.tensor(b) - torch.tensor(a)) * along for n, (a, b) in BACKGROUNDS.items()}
    centres = centres_of(video)
    return Seen(
        found=bool(centres[[0, -1]].isfinite().all()),
        colour=nearest(colour, palette) if inside.any() else "",
        background=nearest(background_of(video), backs),
        direction=direction_of(centres),
        centres=centres,
    )


def has_hole(video: torch.Tensor) -> bool:
    """Whether most frames show one shape whose middle is background, such as a ring."""
    far, centres = difference(video), centres_of(video)
    _, height, width = far.shape
    holes = []
    for frame, (x, y), spread in zip(far, centres, spread_of(video), strict=True):
        if torch.isnan(x) or spread > MAX_SPREAD:
            holes.append(False)
            continue
        row, column = min(int(y * height), height - 1), min(int(x * width), width - 1)
        holes.append(bool(frame[row, column] < float(frame.quantile(0.98)) / 2))
    return sum(holes) > len(holes) / 2

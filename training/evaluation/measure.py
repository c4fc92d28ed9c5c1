"""Measures of a clip against the scene that it should show.

A clip is F H W 3 of 0..1. A `Truth` is the render of a scene, with what its subject covers and what is behind. `Seen`
is a clip beside its truth. What can't be measured in a clip, such as flicker where nothing stands still, is NaN.
"""

import dataclasses
import functools
import math
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

from ..data.scenes import DIRECTIONS, SPEEDS, Scene, covers, render
from ..data.shapes import COLOURS, NEW_SHAPE, SHAPES, cover

MIN_CONTRAST = 0.3  # between the subject's colour and a pixel of the backdrop; other pixels do not count
MIN_AREA = 0.01  # of a shape, as a share of the frame
MIN_MOTION = 0.05  # as a share of the frame; half of a slow path is 0.11
MARGIN = 2  # pixels around a shape that are not background
LEVELS = 255  # of brightness
EVERY = 3  # outlines are measured in every third frame

PATCH = 64  # pixels of a template
REACH = 2.0  # a template shows so many radii around its centre
UNIT_AREA = math.pi * (PATCH / (2 * REACH)) ** 2  # of a circle of radius 1 in a template, in pixels
ANGLES = {"circle": (0,), NEW_SHAPE: (0,), "square": range(0, 90, 15), "triangle": range(0, 120, 15)}
RADII = tuple(1 + 0.02 * i for i in range(-4, 5))  # relative to that of the found shape's area
WHOLE = slice(None)


def planes(video: torch.Tensor) -> torch.Tensor:
    """FHWC -> CFHW; sums over colours are fast there."""
    return video.movedim(-1, 0).contiguous()


def nearness(pixels: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Where colours are between two others: 0 at ``one``, 1 at ``other``, from 0.5 on they are nearer to ``other``.

    The colours are the first axis, and all broadcast.
    """
    way = other - one
    return ((pixels - one) * way).sum(0) / way.square().sum(0).clamp(min=MIN_CONTRAST**2)


def colour_planes(name: str) -> torch.Tensor:
    return torch.tensor(COLOURS[name])[:, None, None, None]


def outline(share: torch.Tensor) -> np.ndarray:
    """Points on the contour at 0.5 of H W, four per pixel, N 2 (y, x)."""
    from skimage.measure import find_contours

    dense = [np.zeros((0, 2))]
    for line in find_contours(np.pad(share.clamp(0, 1).numpy(), 1), 0.5):
        at = np.linspace(0, len(line) - 1, 4 * (len(line) - 1) + 1)
        dense.append(np.stack([np.interp(at, np.arange(len(line)), side) for side in line.T], axis=1))
    return np.concatenate(dense)


@dataclasses.dataclass(frozen=True)
class Truth:
    """What a clip should show."""

    scene: Scene
    video: torch.Tensor  # F H W 3
    backdrop: torch.Tensor  # 3 F H W, the clip without its shapes
    behind: torch.Tensor  # 3 F H W, the clip without its subject
    cover: torch.Tensor  # F H W, how much of a pixel the subject covers; 0 in a camera move
    background: torch.Tensor  # F H W, whether a pixel is away from every shape

    @cached_property
    def pixels(self) -> torch.Tensor:
        return planes(self.video)

    @cached_property
    def decided(self) -> torch.Tensor:
        """Pixels whose backdrop can be told from the subject's colour, F H W."""
        return self.tells(self.scene.subject.colour)

    @cached_property
    def outlines(self) -> dict[int, np.ndarray]:
        """The subject's outline in every `EVERY`-th frame."""
        return {i: outline(self.cover[i]) for i in range(0, len(self.cover), EVERY)}

    @cached_property
    def change(self) -> torch.Tensor:
        """The mean absolute change from frame to frame in levels of brightness, F-1 H W."""
        return self.pixels.diff(dim=1).abs().mean(0) * LEVELS

    def tells(self, colour: str) -> torch.Tensor:
        return (colour_planes(colour) - self.backdrop).square().sum(0) >= MIN_CONTRAST**2


def truth_of(scene: Scene, length: int, height: int, width: int) -> Truth:
    """The truth of a scene."""
    covered = covers(scene, length, height, width)
    near = F.max_pool2d(covered.sum(0)[:, None], 2 * MARGIN + 1, stride=1, padding=MARGIN)[:, 0]
    size = length, height, width
    layers = [render(dataclasses.replace(scene, things=things), *size) for things in ((), scene.things[:-1])]
    subject = covered[-1] if scene.things else torch.zeros(size)
    return Truth(scene, render(scene, *size), *map(planes, layers), subject, near == 0)


@dataclasses.dataclass(frozen=True)
class Seen:
    """A clip, F H W 3 of 0..1, beside its truth."""

    video: torch.Tensor
    truth: Truth

    @cached_property
    def pixels(self) -> torch.Tensor:
        return planes(self.video)

    # all pixels

    @cached_property
    def error(self) -> torch.Tensor:
        """The mean squared error of every pixel, F H W."""
        return (self.pixels - self.truth.pixels).square().mean(0)

    def psnr(self, frames: slice = WHOLE, where: torch.Tensor | None = None) -> float:
        """Peak signal-to-noise ratio in dB.

        Args:
            where: F H W; only pixels with a value other than zero count.
        """
        error = self.error[frames]
        return decibels(error if where is None else error[where[frames].bool()])

    def background_psnr(self) -> float:
        """PSNR in dB away from all shapes."""
        return self.psnr(where=self.truth.background)

    def flicker(self) -> float:
        """The mean absolute change from frame to frame where background stands still in truth, above the truth's own.

        In levels of brightness, of 255.
        """
        away, true_change = self.truth.background, self.truth.change
        still = (true_change < 1) & away[1:] & away[:-1]
        change = self.pixels.diff(dim=1).abs().mean(0) * LEVELS
        return float((change - true_change)[still].mean())

    def seam(self, mask: torch.Tensor) -> float:
        """The mean absolute error of the steps of brightness across the border of a mask, in levels of 255.

        A step is the difference of two neighbouring pixels, one inside and one outside.

        Args:
            mask: F H W, 1 = generate.
        """
        error, steps = (self.pixels - self.truth.pixels) * LEVELS, []
        for axis in (1, 2):
            steps.append(error.diff(dim=axis + 1).abs().mean(0)[mask.diff(dim=axis) != 0])
        return float(torch.cat(steps).mean())

    # where the subject is

    def presence_of(self, colour: str) -> torch.Tensor:
        """How clearly every pixel shows the subject if it has a colour, F H W; it does from 0.5 on.

        A pixel belongs to the subject if its colour is nearer to the subject's than to the true backdrop, and than to
        any other shape, by its colour and by what it shows there in truth (its outline is mixed with the backdrop).
        Where subject and backdrop can't be told apart it is the true cover.
        """
        truth, wanted = self.truth, colour_planes(colour)
        found = nearness(self.pixels, truth.backdrop, wanted)
        for thing in truth.scene.things[:-1]:
            if thing.colour != colour:
                for shown in (truth.behind, colour_planes(thing.colour)):
                    found = torch.minimum(found, nearness(self.pixels, shown, wanted))
        return torch.where(truth.tells(colour), found, truth.cover)

    @cached_property
    def presence(self) -> torch.Tensor:
        """`presence_of` the true colour."""
        return self.presence_of(self.truth.scene.subject.colour)

    @cached_property
    def iou(self) -> torch.Tensor:
        """Intersection over union of the found and the true shape in every frame, F."""
        found, true = ((share >= 0.5) & self.truth.decided for share in (self.presence, self.truth.cover))
        return (found & true).sum((1, 2)) / (found | true).sum((1, 2))

    def edge_error(self, frames: slice = WHOLE) -> float:
        """The mean distance between the found and the true outline in pixels, from each to the other.

        In a frame without a shape it is the true shape's radius. Every third frame is measured.
        """
        from scipy.spatial import cKDTree

        errors, chosen = [], range(len(self.video))[frames]
        for i, goal in self.truth.outlines.items():
            if i not in chosen:
                continue
            points = outline(self.presence[i])
            if len(points):
                errors += [cKDTree(b).query(a)[0].mean() for a, b in ((points, goal), (goal, points))]
            else:
                errors += [math.sqrt(float(self.truth.cover[i].sum()) / math.pi)] * 2
        return float(np.mean(errors))

    # what the subject is

    @cached_property
    def colour(self) -> str:
        """The colour of the palette nearest to the median of what is not behind the subject; "" if there is nothing.

        The blurred outline does not count. Every third frame is looked at.
        """
        pixels = self.pixels[:, ::EVERY]
        far = (pixels - self.truth.behind[:, ::EVERY]).square().sum(0).sqrt()
        clear = np.quantile(far.numpy(), 0.98) / 2
        inside = far > max(MIN_CONTRAST, clear)
        inside = F.max_pool2d((~inside)[:, None].float(), 3, stride=1, padding=1)[:, 0] == 0  # eroded
        if inside.float().mean() < MIN_AREA / 4:
            return ""
        median = pixels[:, inside].median(dim=1).values
        return min(COLOURS, key=lambda name: float((torch.tensor(COLOURS[name]) - median).norm()))

    @cached_property
    def shape(self) -> str:
        """The shape whose templates fit best, whatever its colour; "" if there is none."""
        if not self.colour:
            return ""
        found = patches(self.presence_of(self.colour)[::EVERY])
        fits = {shape: float(fit(*found, templates(shape, False)).mean()) for shape in (*SHAPES, NEW_SHAPE)}
        return max(fits, key=fits.get) if max(fits.values()) else ""

    def template_iou(self, shape: str) -> torch.Tensor:
        """IoU of what was found with the best fitting upright template of a shape in every frame, F; 0 without one."""
        return fit(*patches(self.presence), templates(shape, True))

    # how the subject moves

    @cached_property
    def centres(self) -> torch.Tensor:
        """The subject's centre in every frame, F 2 in fractions of width and height; NaN where there is none."""
        _, height, width, _ = self.video.shape
        centre, area = centre_and_area(self.presence)
        centre[area < MIN_AREA * height * width] = torch.nan
        return centre / torch.tensor([width, height])

    @property
    def direction(self) -> str | None:
        """The named direction closest to the motion from first to last frame; None if there is little motion."""
        moved = self.centres[-1] - self.centres[0]
        if not moved.isfinite().all() or moved.abs().max() < MIN_MOTION:
            return None
        return max(DIRECTIONS, key=lambda name: float((torch.tensor(DIRECTIONS[name]) * moved).sum()))

    @property
    def path(self) -> float:
        """The distance from the first centre to the last, of a clip that shows a whole path; 0 without a subject."""
        return float((self.centres[-1] - self.centres[0]).norm().nan_to_num(0))

    @property
    def speed(self) -> str:
        """The word whose path is closest in length."""
        return min(SPEEDS, key=lambda word: abs(SPEEDS[word] - self.path))

    @property
    def speed_error(self) -> float:
        """How far the length of the path is from the prompt's, as a share of it."""
        return abs(self.path / SPEEDS[self.truth.scene.speed] - 1)


def decibels(error: torch.Tensor) -> float:
    """PSNR of squared errors of values of 0..1, at most 100."""
    return float(-10 * torch.log10(error.mean().clamp(min=1e-10)))


def psnr(video: torch.Tensor, reference: torch.Tensor) -> float:
    """Peak signal-to-noise ratio in dB of values of 0..1."""
    return decibels((video - reference).square())


def cross_fade(video: torch.Tensor) -> torch.Tensor:
    """A clip's first frame that turns into its last one."""
    along = torch.linspace(0, 1, len(video)).view(-1, 1, 1, 1)
    return (1 - along) * video[:1] + along * video[-1:]


def centre_and_area(share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The centre of what is found in every frame, F 2 (x, y) in pixels, NaN where nothing is; and its area, F.

    Pixels of an outline count in part, from 0.25 to 0.75.
    """
    inside = (2 * share - 0.5).clamp(0, 1)
    area = inside.sum((1, 2))
    x = (inside.sum(1) * (torch.arange(share.shape[2]) + 0.5)).sum(1) / area
    y = (inside.sum(2) * (torch.arange(share.shape[1]) + 0.5)).sum(1) / area
    return torch.stack([x, y], dim=1), area


@functools.cache
def templates(shape: str, upright: bool) -> torch.Tensor:
    """A shape at several angles and sizes, N pixels of 0 or 1. The middle size has the area of `UNIT_AREA`."""
    angles = (0,) if upright else ANGLES[shape]

    def drawn(radius: float) -> torch.Tensor:
        count = len(angles)
        centre, size = torch.full((count, 2), 0.5), torch.full((count,), radius / (2 * REACH))
        return cover(shape, centre, size, torch.tensor(angles).float(), PATCH, PATCH) >= 0.5

    unit = math.sqrt(UNIT_AREA / float(drawn(1.0)[0].sum()))
    return torch.cat([drawn(unit * radius) for radius in RADII]).flatten(1).float()


def patches(share: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What is around the centre of a found shape, scaled to one area: F pixels of 0 or 1; and whether it exists, F."""
    _, height, width = share.shape
    centre, area = centre_and_area(share)
    radius = (area / math.pi).sqrt()
    step = (torch.arange(PATCH) + 0.5) / PATCH * 2 - 1
    x, y = (centre[:, axis, None] + step * REACH * radius[:, None] for axis in (0, 1))
    grid = torch.stack([x[:, None, :].expand(-1, PATCH, -1), y[:, :, None].expand(-1, -1, PATCH)], dim=-1)
    grid = grid / torch.tensor([width, height]) * 2 - 1
    seen = F.grid_sample(share[:, None].clamp(0, 1), grid.nan_to_num(-2), align_corners=False)
    return (seen[:, 0] >= 0.5).flatten(1).float(), area >= MIN_AREA * height * width


def fit(found: torch.Tensor, exists: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """IoU of every found shape with the template that fits best, F."""
    common = found @ wanted.T
    whole = found.sum(1).clamp(min=UNIT_AREA)  # more than is in the patch, if a part is outside of it
    return (common / (whole[:, None] + wanted.sum(1) - common)).max(1).values * exists

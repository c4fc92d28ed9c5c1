"""Procedural clips: shapes that move, turn or grow over a background, and a camera that moves over a photograph.

A clip is computed from its `Scene`, and a scene from a seed and a number. So a data set takes no disk space, and
another seed gives clips that were never trained. Coordinates are fractions of the width and height, x to the right and
y down. Sizes are fractions of the shorter side.
"""

import dataclasses
import random
from collections.abc import Mapping, Sequence

import torch

from .backgrounds import GRADIENTS, HELD_OUT_PHOTO, NAMES, PHOTOS, STILL, TEXTURES, View, gradient, photograph
from .backgrounds import window_of as window_of_picture
from .shapes import COLOURS, NEW_SHAPE, SHAPES, cover

DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}
SPEEDS = {"slowly": 0.22, "": 0.38, "quickly": 0.54}  # the length of a path
PANS = {"slowly": 0.14, "": 0.26, "quickly": 0.38}  # the same of a camera, in fractions of its window
ZOOM = 1.6  # of a camera, from the first to the last frame
TURN = 60.0  # degrees
GROWTH = 1.8  # of the radius
SIZES = (0.14, 0.21)  # radius
REACH = {"triangle": 1.35}  # how far the tip of an upright shape is from its centre, in radii; 1 of the others
PATH_FRAMES = 17  # of a whole path; shorter clips show its beginning, at the same speed
HELD_OUT = 1_000_000  # seeds from here on are for the evaluation; no configuration may train on them
NEGATIVE = ""  # the caption after dropout in training, and so the negative prompt of guidance

GRAMMAR = {
    "move": (
        "a {colour} {shape} moves {way} over the {background}",
        "a {colour} {shape} moving {way} over the {background}",
        "the {colour} {shape} goes {way} over the {background}",
        "{colour} {shape} moves {way} , {background}",
    ),
    "pass": (
        "a {colour} {shape} moves {way} before the {second} over the {background}",
        "the {colour} {shape} goes {way} before a {second} , {background}",
    ),
    "turn": (
        "a {colour} {shape} turns {way} over the {background}",
        "the {colour} {shape} turning {way} , {background}",
    ),
    "grow": (
        "a {colour} {shape} {way} over the {background}",
        "the {colour} {shape} {way} , {background}",
    ),
    "pan": (
        "the camera pans {way} over the {background}",
        "camera pans {way} , {background}",
    ),
    "zoom": (
        "the camera zooms {way} on the {background}",
        "camera zooms {way} , {background}",
    ),
}
FORMS = 4  # forms of a caption that are drawn
KINDS = {"move": 0.5, "pass": 0.12, "turn": 0.08, "grow": 0.08, "pan": 0.15, "zoom": 0.07}  # how often
BACKGROUNDS = {"gradient": 0.5, "texture": 0.15, "photo": 0.35}  # how often, behind shapes
GROUPS = {"gradient": tuple(GRADIENTS), "texture": tuple(TEXTURES), "photo": tuple(PHOTOS)}


@dataclasses.dataclass(frozen=True)
class Thing:
    """A shape of a scene, in the first and in the last frame of its path. ``angle``: degrees, clockwise."""

    colour: str
    shape: str
    start: tuple[float, float]
    end: tuple[float, float]
    radius: tuple[float, float]
    angle: tuple[float, float] = (0.0, 0.0)


@dataclasses.dataclass(frozen=True)
class Scene:
    """What a clip shows.

    ``things`` are from back to front; the last one is what the caption is about. ``way`` is the direction of a motion,
    "grows" or "shrinks", or "in" or "out", and ``speed`` a key of `SPEEDS`. ``path``: the camera's, over a picture.
    """

    kind: str
    background: str
    way: str
    speed: str = ""
    things: tuple[Thing, ...] = ()
    path: tuple[View, View] = STILL

    @property
    def subject(self) -> Thing:
        return self.things[-1]

    def caption(self, form: int = 0) -> str:
        """A sentence of the grammar; ``form`` chooses which."""
        grammar = GRAMMAR[self.kind]
        words = {"way": f"{self.way} {self.speed}".strip(), "background": self.background}
        if self.things:
            words |= {"colour": self.subject.colour, "shape": self.subject.shape}
            words["second"] = f"{self.things[0].colour} {self.things[0].shape}"
        return grammar[form % len(grammar)].format(**words)


def vocabulary() -> list[str]:
    """Every word of the grammar, with the new shape's."""
    fixed = " ".join(form for forms in GRAMMAR.values() for form in forms).split()
    words = [word for word in fixed if not word.startswith("{") and word != ","]
    ways = "grows", "shrinks", "in", "out"
    speeds = (speed for speed in SPEEDS if speed)
    return list(dict.fromkeys([*words, ",", *COLOURS, *SHAPES, NEW_SHAPE, *DIRECTIONS, *speeds, *ways, *NAMES]))


def pick(rng: random.Random, weights: dict[str, float]) -> str:
    return rng.choices(list(weights), list(weights.values()))[0]


def inside(rng: random.Random, low: float, high: float) -> float:
    """A random place of a range, its middle if it is empty."""
    return rng.uniform(low, high) if low < high else (low + high) / 2


def straight(rng: random.Random, direction: str, distance: float, margin: float) -> tuple[tuple, tuple]:
    """A path of a length in a direction that keeps a margin to the frame's edges: its first and last point."""
    step = DIRECTIONS[direction]
    ends = []
    for axis in (0, 1):
        reach = margin + abs(step[axis]) * distance / 2
        middle = inside(rng, reach, 1 - reach)
        ends.append((middle - step[axis] * distance / 2, middle + step[axis] * distance / 2))
    (x0, x1), (y0, y1) = ends
    return (x0, y0), (x1, y1)


def random_scene(
    seed: int,
    index: int,
    shapes: Sequence[str] = SHAPES,
    kinds: Sequence[str] = tuple(KINDS),
    backgrounds: Sequence[str] = NAMES,
    groups: Mapping[str, float] = BACKGROUNDS,
) -> Scene:
    """The ``index``-th scene of a seed; shapes stay inside the frame on their whole path.

    Args:
        shapes: of the shape that the caption is about.
        kinds: keys of `KINDS`, in these proportions.
        backgrounds: names of `backgrounds`.
        groups: how often each group of them is behind shapes; keys of `BACKGROUNDS`.
    """
    rng = random.Random(f"scene {seed} {index}")  # noqa: S311 - not for secrets
    kind = pick(rng, {name: KINDS[name] for name in kinds})
    if kind in ("pan", "zoom"):
        return camera_scene(rng, kind, [name for name in backgrounds if name in (*PHOTOS, *HELD_OUT_PHOTO)])
    names = {group: [n for n in backgrounds if n in GROUPS[group]] for group in groups}
    group = pick(rng, {group: groups[group] for group in groups if names[group]})
    background = rng.choice(names[group])
    path = STILL
    if background not in GRADIENTS:
        size = rng.uniform(0.35, 0.8)
        path = (random_view(rng, size),) * 2
    colour, shape = rng.choice(list(COLOURS)), rng.choice(list(shapes))
    radius = rng.uniform(*SIZES)
    if kind in ("move", "pass"):
        return moving(rng, kind, background, path, (colour, shape, radius))
    if kind == "turn":
        place = tuple(rng.uniform(0.32, 0.68) for _ in range(2))
        way = rng.choice(["left", "right"])
        shape = "square" if shape == "circle" else shape  # a circle can't be seen turning
        thing = Thing(colour, shape, place, place, (radius * 1.1,) * 2, (0.0, TURN if way == "right" else -TURN))
        return Scene(kind, background, way, things=(thing,), path=path)
    way = rng.choice(["grows", "shrinks"])
    small = rng.uniform(0.10, 0.15)
    margin = REACH.get(shape, 1.0) * small * GROWTH
    place = tuple(rng.uniform(margin, 1 - margin) for _ in range(2))
    radii = (small, small * GROWTH) if way == "grows" else (small * GROWTH, small)
    return Scene(kind, background, way, things=(Thing(colour, shape, place, place, radii),), path=path)


def moving(
    rng: random.Random, kind: str, background: str, path: tuple[View, View], about: tuple[str, str, float]
) -> Scene:
    """A shape that moves along a straight path, perhaps before another one that stands in its way."""
    colour, shape, radius = about
    way, speed = rng.choice(list(DIRECTIONS)), rng.choice(list(SPEEDS))
    reach = REACH.get(shape, 1.0)
    radius = min(radius, (1 - SPEEDS[speed]) / 2 / reach)  # there is room for the path
    start, end = straight(rng, way, SPEEDS[speed], reach * radius)
    things = [Thing(colour, shape, start, end, (radius, radius))]
    if kind == "pass":
        other = rng.choice([name for name in COLOURS if name != colour])
        size = rng.uniform(*SIZES)
        step = DIRECTIONS[way]
        shift = rng.uniform(-0.6, 0.6) * radius
        middle = ((a + b) / 2 + (1 - abs(s)) * shift for a, b, s in zip(start, end, step, strict=True))
        behind = rng.choice(SHAPES)
        margin = REACH.get(behind, 1.0) * size
        place = tuple(min(max(m, margin), 1 - margin) for m in middle)
        things.insert(0, Thing(other, behind, place, place, (size, size)))
    return Scene(kind, background, way, speed, tuple(things), path)


def random_view(rng: random.Random, size: float, direction: str = "", distance: float = 0.0) -> View:
    """A view inside a picture that has room for a move; fractions refer to a square picture and window."""
    step = DIRECTIONS.get(direction, (0, 0))
    place = []
    for axis in (0, 1):
        low = high = size / 2
        low += max(-step[axis], 0) * distance * size
        high += max(step[axis], 0) * distance * size
        place.append(inside(rng, low, 1 - high))
    return View(*place, size)


def camera_scene(rng: random.Random, kind: str, photos: Sequence[str]) -> Scene:
    """A camera that moves over a photograph.

    Raises:
        ValueError: there is no photograph among the backgrounds.
    """
    if not photos:
        raise ValueError(f"a scene of the kind {kind!r} needs a photograph, expected one of {list(PHOTOS)}")
    photo = rng.choice(list(photos))
    if kind == "zoom":
        way, wide = rng.choice(["in", "out"]), rng.uniform(0.6, 0.9)
        view = random_view(rng, wide)
        near = View(view.x, view.y, wide / ZOOM)
        return Scene(kind, photo, way, path=(view, near) if way == "in" else (near, view))
    way, speed = rng.choice(list(DIRECTIONS)), rng.choice(list(PANS))
    size, distance = rng.uniform(0.4, 0.65), PANS[speed]
    first = random_view(rng, size, way, distance)
    x, y = (s * distance * size for s in DIRECTIONS[way])
    return Scene(kind, photo, way, speed, path=(first, View(first.x + x, first.y + y, size)))


def along(length: int) -> torch.Tensor:
    """How far along the path every frame is, [F] of 0..1. Things stay at the end of their path."""
    return (torch.arange(length) / (PATH_FRAMES - 1)).clamp(max=1)


def between(first: Sequence[float] | float, last: Sequence[float] | float, length: int) -> torch.Tensor:
    """What lies on a path, in every frame: F ..."""
    a, b = torch.tensor(first), torch.tensor(last)
    return a + (b - a) * along(length).view(-1, *[1] * a.dim())


def covers(scene: Scene, length: int, height: int, width: int) -> torch.Tensor:
    """What every thing covers, with those before it ignored: N F H W of 0..1."""
    found = [
        cover(
            *(thing.shape, between(thing.start, thing.end, length)),
            *(between(*thing.radius, length), between(*thing.angle, length), height, width),
        )
        for thing in scene.things
    ]
    return torch.stack(found) if found else torch.zeros(0, length, height, width)


def backdrop(scene: Scene, length: int, height: int, width: int) -> torch.Tensor:
    """A scene without its things, F H W 3 of 0..1."""
    if scene.background in GRADIENTS:
        return gradient(scene.background, height).expand(length, -1, width, -1)
    window = window_of_picture(scene.background, height, width)
    path = tuple(fitted(view, window) for view in scene.path)
    return photograph(scene.background, path, along(length), height, width).expand(length, -1, -1, -1)


def fitted(view: View, window: tuple[float, float]) -> View:
    """A view of a square picture as one of a picture whose largest window is ``window`` (height and width).

    Where the window is as large as the picture, the places are the same. Where it is smaller there is more room.
    """
    place = []
    for at, part in ((view.x, window[1]), (view.y, window[0])):
        place.append(0.5 + (at - 0.5) * part)
    return View(*place, view.size)


def render(scene: Scene, length: int, height: int, width: int) -> torch.Tensor:
    """A scene as F H W 3 of 0..1, float32."""
    video = backdrop(scene, length, height, width)
    for thing, covered in zip(scene.things, covers(scene, length, height, width)[..., None], strict=True):
        video = covered * torch.tensor(COLOURS[thing.colour]) + (1 - covered) * video
    return video if scene.things else video.clone()

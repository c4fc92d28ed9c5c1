"""How well a clip follows given edges: the measure of Control models."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..data.control import draw_edges
from ..data.scenes import PATH_FRAMES, Scene
from .measure import truth_of

THRESHOLDS = 0.1, 0.2  # of nano_control.toml, see `draw_edges`
SCALES = 0.7, 1.0, 1.4, 2.0, 2.8  # of the thresholds, see `best_f_score`
OUTLINED = 0.9  # of an outline's pixels must be near an edge
OUTLINED_SIZE = 64  # pixels; with 128 the shares differ by a few hundredths


def edges_of(video: torch.Tensor) -> torch.Tensor:
    """The edges that a Control model gets: see `draw_edges`."""
    return draw_edges(video, THRESHOLDS)


class Edges(NamedTuple):
    """How the edges of a video agree with given ones; each from 0 to 1."""

    precision: float  # the share of its edge pixels that are within a pixel of a given one
    recall: float  # the share of the given edge pixels that are within a pixel of one of its own

    @property
    def f_score(self) -> float:
        """The harmonic mean of precision and recall (van Rijsbergen 1979)."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def near(edges: torch.Tensor) -> torch.Tensor:
    """The pixels within one of an edge, also diagonally: F H W of bool to the same."""
    return F.max_pool2d(edges[:, None].float(), 3, stride=1, padding=1)[:, 0] > 0


def compare_edges(video: torch.Tensor, given: torch.Tensor, thresholds: tuple[float, float] = THRESHOLDS) -> Edges:
    """Compare the edges of a video with given ones, over all pixels of all frames.

    The edges of the video are drawn as for training: see `draw_edges`. Where there are no edges, none is wrong.

    Args:
        video: F H W 3 of 0..1.
        given: F H W 3 of 0..1, white edges on black, of the same shape.

    Raises:
        ValueError: the shapes differ.
    """
    if video.shape != given.shape:
        raise ValueError(f"the edges have the shape {list(given.shape)}, expected the video's {list(video.shape)}")
    found, wanted = draw_edges(video, thresholds)[..., 0] > 0.5, given.mean(-1) > 0.5
    return Edges(share(near(wanted)[found]), share(near(found)[wanted]))


def best_f_score(video: torch.Tensor, given: torch.Tensor) -> float:
    """The F-score, 0 to 1, at the thresholds that suit the video best, of `THRESHOLDS` times each of `SCALES`.

    So it tells where edges are, not how strong they are: a decoder adds faint edges and weakens others. This is the
    "optimal image scale" of Arbelaez et al. 2011, "Contour Detection and Hierarchical Image Segmentation".

    Args:
        video, given: see `compare_edges`.
    """
    low, high = THRESHOLDS
    return max(compare_edges(video, given, (low * scale, high * scale)).f_score for scale in SCALES)


def outlined(scene: Scene) -> bool:
    """Whether the edges of a scene show its shape's outline, so that they can be followed.

    A shape that differs from its backdrop in colour alone has no edges, since they are drawn from brightness.
    """
    truth = truth_of(scene, PATH_FRAMES, OUTLINED_SIZE, OUTLINED_SIZE)
    inside, edges = truth.cover >= 0.5, edges_of(truth.video).mean(-1) > 0.5
    return share(near(edges)[near(inside) & ~inside]) >= OUTLINED


def share(flags: torch.Tensor) -> float:
    return float(flags.float().mean()) if len(flags) else 1.0

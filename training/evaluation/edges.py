"""How well a clip follows given edges: the measure of Control models."""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..data.control import draw_edges

THRESHOLDS = 0.1, 0.2  # of nano_control.toml, see `draw_edges`


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


def share(flags: torch.Tensor) -> float:
    return float(flags.float().mean()) if len(flags) else 1.0

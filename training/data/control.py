"""Control videos that are drawn from a clip."""

import numpy as np
import torch

EDGES = "edges"  # the value of ``[data] control`` that draws edges
# Thresholds of Canny's method, for brightness from 0 to 1: the defaults of ComfyUI's Canny node. VideoX-Fun's have
# nearly the same values, 100 and 200 of 255.
THRESHOLDS = 0.4, 0.8


def draw_edges(video: torch.Tensor, thresholds: tuple[float, float] = THRESHOLDS) -> torch.Tensor:
    """White edges on black, by Canny's method as in ComfyUI's Canny node: F H W 3 of 0..1 to the same.

    Each frame is drawn alone, which needs less memory.

    Args:
        thresholds: as in the node: of the brightness gradient at an edge, and at one that starts a chain of edges.
    """
    from kornia.filters import canny

    found = [canny(frame.movedim(-1, 0)[None], *thresholds, hysteresis=False)[1][0, 0].numpy() for frame in video]
    edges = np.stack([join(weak_or_strong > 0, weak_or_strong == 1) for weak_or_strong in found])
    return torch.from_numpy(edges).float()[..., None].expand(-1, -1, -1, 3).contiguous()


def join(edges: np.ndarray, strong: np.ndarray) -> np.ndarray:
    """The edges H W that a chain of neighbours connects to a strong one: the last step of Canny's method.

    The same as kornia's, which goes over the whole picture for every pixel of the longest chain and takes ten times as
    long.
    """
    width = edges.shape[1] + 2
    left, joined = np.pad(edges & ~strong, 1).ravel(), np.pad(strong, 1).ravel()
    around = np.array([-width - 1, -width, -width + 1, -1, 1, width - 1, width, width + 1])
    front = np.flatnonzero(joined)
    while len(front):
        near = (front[:, None] + around).ravel()
        front = np.unique(near[left[near]])
        left[front], joined[front] = False, True
    return joined.reshape(-1, width)[1:-1, 1:-1]

"""Optical flow between two frames: where each pixel of the first is in the second."""

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
LEAST_LEVEL = 16  # pixels of a pyramid's smallest picture
RADIUS, STEPS = 3, 4  # of Lucas and Kanade: half a window in pixels, and the repetitions at each level
MEDIAN = 5  # pixels: side of the median's window
DAMPING = 3e-4  # a window is flat below this square of the slope (0..1 a pixel): noise has less, edges have more
RAFT_MULTIPLE, RAFT_LEAST = 8, 128  # pixels: RAFT looks at an eighth of the size, and halves it three times more


def lucas_kanade(first: Tensor, second: Tensor) -> Tensor:
    """The flow of a pyramid of Lucas and Kanade (1981), dense as in Le Besnerais and Champagnat (2005).

    It needs no weights. It assumes that neighbouring pixels move alike and keep their brightness. After each level a
    median removes what does not fit its neighbours (Sun, Roth and Black 2010).

    Args:
        first, second: H W 3, 0..1.

    Returns:
        2 H W, x and y in pixels: ``first[y, x]`` is at ``second[y + flow[1], x + flow[0]]``.
    """
    luma = torch.tensor(LUMA).to(first)
    pyramid = [torch.stack([first @ luma, second @ luma])[:, None]]
    while min(pyramid[-1].shape[2:]) >= 2 * LEAST_LEVEL:
        pyramid.append(F.avg_pool2d(pyramid[-1], 2, ceil_mode=True, count_include_pad=False))
    flow = pyramid[-1].new_zeros(2, *pyramid[-1].shape[2:])
    for level in reversed(pyramid):
        finer = F.interpolate(flow[None], size=level.shape[2:], mode="bilinear")[0]
        flow = finer if level is pyramid[-1] else 2 * finer
        for _ in range(STEPS):
            flow = flow_step(level[:1], level[1:], flow)
        flow = median(flow)
    return flow


def flow_step(first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
    """A better 2 H W flow between 1 1 H W pictures: the least squares of each pixel's window."""
    warped = read(second[0], pixel_grid(flow) + flow)[None]
    padded = F.pad(warped, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    wanted = first - warped + dx * flow[0] + dy * flow[1]
    products = torch.cat([dx * dx, dx * dy, dy * dy, dx * wanted, dy * wanted], 1)
    xx, xy, yy, x, y = F.avg_pool2d(products, 2 * RADIUS + 1, 1, RADIUS, count_include_pad=False)[0]
    xx, yy, x, y = xx + DAMPING, yy + DAMPING, x + DAMPING * flow[0], y + DAMPING * flow[1]
    return torch.stack([yy * x - xy * y, xx * y - xy * x]) / (xx * yy - xy * xy)


def median(flow: Tensor) -> Tensor:
    """x and y of a 2 H W flow, each the median of its neighbours."""
    padded = F.pad(flow[:, None], (MEDIAN // 2,) * 4, mode="replicate")
    return F.unfold(padded, MEDIAN).median(1).values.view_as(flow)


def raft_flow(raft: torch.nn.Module, first: Tensor, second: Tensor) -> Tensor:
    """The flow of torchvision's RAFT.

    Args:
        raft: ``raft_large`` or ``raft_small``.
        first, second: H W 3, 0..1.

    Returns:
        2 H W, as `lucas_kanade` gives it.
    """
    height, width = first.shape[:2]
    size = [max(RAFT_LEAST, -(-side // RAFT_MULTIPLE) * RAFT_MULTIPLE) for side in (height, width)]
    pair = torch.stack([first, second]).movedim(-1, 1) * 2 - 1  # BHWC -> BCHW, -1..1
    padded = F.pad(pair, (0, size[1] - width, 0, size[0] - height), mode="replicate")
    return raft(padded[:1], padded[1:])[-1][0, :, :height, :width]


def pixel_grid(field: Tensor) -> Tensor:
    """x and y of every pixel of a C H W field: 2 H W."""
    rows, columns = (torch.arange(side, device=field.device, dtype=field.dtype) for side in field.shape[1:])
    return torch.stack(torch.meshgrid(columns, rows, indexing="xy"))


def read(field: Tensor, places: Tensor) -> Tensor:
    """C H W values at 2 H W places (x, y in pixels), bilinear; beyond the edge, those of the edge."""
    height, width = field.shape[1:]
    grid = torch.stack([(2 * places[0] + 1) / width, (2 * places[1] + 1) / height], -1) - 1
    return F.grid_sample(field[None], grid[None], padding_mode="border", align_corners=False)[0]

"""How well a mask follows a square of a photograph that moves over another: ``python tools/measure_masks.py``.

Needs scikit-image, which has the photographs, and a flow to compare with. Prints the table of docs/beyond.md, and the
time of a flow.
"""

import argparse
import itertools
import time

from pack import load_pack

load_pack()

import torch  # noqa: E402
from cogvideox_fun.sampling.follow import follow_mask  # noqa: E402
from cogvideox_fun.sampling.optical_flow import lucas_kanade  # noqa: E402
from media import photographs  # noqa: E402
from torch import Tensor  # noqa: E402
from tqdm import tqdm  # noqa: E402

SIZE, SIDE, LENGTH = (160, 240), 56, 17
PLACES = ((60, 60), (200, 150), (340, 100), (20, 220))  # top and left of what is seen of the background
PATCHES = ((120, 200), (250, 420))  # and of the square
MOTIONS = ((2, 0), (4, 0), (8, 0), (4, 2))  # pixels a frame, to the right: of the square, and of the camera


def moving_square(
    step: float, camera: float = 0.0, size=(96, 96), side=28, length=LENGTH, place=(60, 60), patch=(120, 200)
) -> tuple[Tensor, Tensor]:
    """A square of one photograph that moves over another: F H W 3, and its true mask, F H W."""
    (background,), (other,) = photographs()
    (height, width), (top, left) = size, place
    lefts = [left + round(camera * i) for i in range(length)]
    video = torch.stack([background[top : top + height, x : x + width] for x in lefts])
    mask = torch.zeros(length, height, width)
    square = other[patch[0] : patch[0] + side, patch[1] : patch[1] + side]
    above = (height - side) // 2
    for i in range(length):
        x = 8 + round(step * i)
        video[i, above : above + side, x : x + side] = square[:, : max(width - x, 0)]
        mask[i, above : above + side, x : x + side] = 1
    return video, mask


def overlap(found: Tensor, true: Tensor) -> Tensor:
    """IoU of each frame but the first."""
    found, true = found[1:] >= 0.5, true[1:] >= 0.5
    return (found & true).sum((1, 2)) / (found | true).sum((1, 2))


def follow(video: Tensor, mask: Tensor, flow=lucas_kanade) -> Tensor:
    """The H W ``mask`` of the first frame in all frames."""
    return follow_mask(mask, len(video), lambda a, b: flow(video[a], video[b]))


def ilk(first: Tensor, second: Tensor) -> Tensor:
    """The flow of scikit-image's optical_flow_ilk, as `lucas_kanade` gives it."""
    from skimage.color import rgb2gray
    from skimage.registration import optical_flow_ilk

    flow = optical_flow_ilk(rgb2gray(first.numpy()), rgb2gray(second.numpy()), radius=5)
    return torch.from_numpy(flow[::-1].copy()).float()  # row, column -> x, y


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print("| square, camera | mask | IoU, mean | IoU in the last frame, mean | worst |")
    print("|---|---|---|---|---|")
    for step, camera in MOTIONS:
        scenes = [
            moving_square(step, camera, SIZE, SIDE, place=place, patch=patch)
            for place, patch in itertools.product(PLACES, PATCHES)
        ]
        for name, flow in (("still", None), ("Lucas-Kanade", lucas_kanade), ("scikit-image's ILK", ilk)):
            values = []
            for video, true in tqdm(scenes, desc=f"{step} {camera} {name}", leave=False):
                found = follow(video, true[0], flow) if flow else true[:1].expand_as(true)
                values.append(overlap(found, true))
            seen = torch.stack(values)
            last = seen[:, -1]
            print(f"| {step}, {camera} | {name} | {seen.mean():.2f} | {last.mean():.2f} | {last.min():.2f} |")
    torch.set_num_threads(1)
    first, second = torch.rand(2, 480, 720, 3)
    lucas_kanade(first, second)
    start = time.process_time()
    lucas_kanade(first, second)
    print(f"Lucas-Kanade at 720 x 480: {time.process_time() - start:.1f} seconds on one core")


if __name__ == "__main__":
    main()

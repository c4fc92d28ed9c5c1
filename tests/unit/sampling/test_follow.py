"""A mask that follows: exactly with known flows, and with classical flows of real pictures."""

import numpy as np
import pytest
import torch
from cogvideox_fun.sampling.follow import follow_mask, lost_at
from cogvideox_fun.sampling.optical_flow import RAFT_LEAST, lucas_kanade, pixel_grid, raft_flow
from cogvideox_fun.tools import media
from make_example import EXAMPLES, NAME
from measure_masks import follow, ilk, moving_square, overlap
from PIL import Image

SIZE, SIDE, LENGTH = 96, 28, 17  # of `moving_square`


def known(motion):
    """The flow of frames whose pixels are at ``motion(place, frame)``, which are 2 H W, from frame to frame."""
    here = pixel_grid(torch.zeros(2, SIZE, SIZE))

    def flow(a: int, b: int) -> torch.Tensor:
        return motion(motion(here, -a), b) - here

    return flow


def panned(step: float, size: tuple[int, int] = (SIZE, SIZE), length: int = LENGTH) -> torch.Tensor:
    """A photograph that moves to the left by whole pixels."""
    (photograph, _), (height, width) = media.photographs(), size
    left = [60 + round(step * i) for i in range(length)]
    return torch.stack([photograph[0, 60 : 60 + height, x : x + width] for x in left])


@pytest.mark.parametrize("step", [(3.0, 0.0), (-2.0, 1.0), (0.25, -0.5)])
def test_a_soft_mask_is_moved_and_not_blurred(step):
    """By whole pixels exactly; by parts of a pixel as if the first frame were read there once."""
    step = torch.tensor(step)[:, None, None]
    here = pixel_grid(torch.zeros(2, SIZE, SIZE))

    def hill(centre: torch.Tensor) -> torch.Tensor:
        return (1 - (here - centre).square().sum(0).sqrt() / 20).clamp(0, 1)

    centre = torch.full((2, 1, 1), 48.0)
    moved = follow_mask(hill(centre), 9, known(lambda place, frame: place + step * frame))
    for frame in range(9):
        exact = 1e-5 if float(step.abs().max()) >= 1 else 0.02  # a bilinear read cuts the tip of the hill
        assert (moved[frame] - hill(centre + step * frame)).abs().max() < exact


def test_a_mask_grows_with_its_object():
    """5 % a frame about the middle, there and back: a disc of 12 pixels has 12 * 1.05^8 after eight frames."""
    middle = (SIZE - 1) / 2
    radius = (pixel_grid(torch.zeros(2, SIZE, SIZE)) - middle).square().sum(0).sqrt()

    def disc(size: float) -> torch.Tensor:
        return (radius < size).float()

    grown = follow_mask(disc(12), 9, known(lambda place, frame: middle + (place - middle) * 1.05**frame))
    true = torch.stack([disc(12 * 1.05**frame) for frame in range(9)])
    assert (overlap(grown, true) > 0.95).all(), "but for the pixels that its edge runs through"


def test_what_was_hidden_is_not_part_of_the_mask():
    """An object moves over a still background, with its true flow: it leaves no trail, whether fast or slow."""
    for step in (3, 1):
        _, true = moving_square(step)

        def flow(a: int, b: int, true=true, step=step) -> torch.Tensor:
            return torch.stack([true[a] * step * (b - a), torch.zeros(SIZE, SIZE)])

        found = follow_mask(true[0], LENGTH, flow)
        allowed = 2 * LENGTH**0.5 + 1  # pixels behind it at the end, of the 16 or 48 that it has moved by
        assert (found - true).clamp(min=0).sum((1, 2)).max() <= SIDE * allowed
        assert (true - found).clamp(min=0).sum((1, 2)).max() <= SIDE


def test_the_edge_of_the_picture_is_continued():
    """The camera moves to the right: what comes in belongs to a mask that touches the edge, and to no other."""
    flow = known(lambda place, frame: place - torch.tensor([3.0, 0.0])[:, None, None] * frame)
    mask = torch.zeros(SIZE, SIZE)
    mask[40:60, 70:] = 1
    mask[10:30, 70:90] = 1
    moved = follow_mask(mask, 9, flow)
    assert moved[8, 40:60, 46:].all() and not moved[8, :, :46].any()
    assert moved[8, 10:30, 46:66].all() and not moved[8, 10:30, 66:].any()


@pytest.mark.parametrize("flow", [lucas_kanade, ilk])
@pytest.mark.parametrize("step, camera", [(3, 0), (1, 0), (0.4, 0), (2, 1)])
def test_a_mask_follows_a_square(flow, step, camera):
    """The classical flows need no weights. The mask that stays is shown beside it."""
    video, true = moving_square(step, camera)
    still = overlap(true[:1].expand_as(true), true)
    found = overlap(follow(video, true[0], flow), true)
    assert found.min() > 0.9 and still[-1] < 0.7


def test_a_mask_follows_the_square_of_the_nano_models_clip():
    """It has one colour, and so no flow inside but what the median brings there from its edge."""
    video = media.read_video(EXAMPLES / f"{NAME}.mp4")
    red = (video[..., 0] - video[..., 1:].amax(-1) > 0.2).float()
    with Image.open(EXAMPLES / f"{NAME}.first.png") as picture:
        painted = torch.from_numpy(np.array(picture)).float() / 255
    assert (painted * red[0]).sum() == red[0].sum() > 0.8 * painted.sum(), "it covers the square, and little more"
    assert overlap(follow(video, red[0]), red).min() > 0.8


@pytest.mark.parametrize("step", [2, 20])
def test_the_flow_of_a_panned_photograph(step):
    """To a tenth of a pixel in most places, also with a step of more than a window."""
    first, second = panned(step, (160, 240), 2)
    error = (lucas_kanade(first, second) - torch.tensor([-step, 0.0])[:, None, None]).square().sum(0).sqrt()
    inside = error[:, step + 8 :]  # what leaves the picture can't be found
    assert inside.median() < 0.1 and (inside < 1).float().mean() > 0.85


def test_a_lost_mask_is_noticed():
    """Less than a tenth in the picture; a tenth still is enough; empty from the start; and not lost."""
    mask = torch.zeros(SIZE, SIZE)
    mask[40:60, 4:24] = 1
    gone = follow_mask(mask, 9, known(lambda place, frame: place - torch.tensor([4.0, 0.0])[:, None, None] * frame))
    assert lost_at(gone) == 6 and not gone[6:].any()
    few = mask.repeat(4, 1, 1)
    few[1:, 42:] = 0  # 2 of 20 rows
    few[2:, 40, 4] = 0
    assert lost_at(few) == 2
    assert lost_at(torch.zeros(3, 8, 8)) == 0 and lost_at(mask.repeat(4, 1, 1)) is None


def test_one_frame_and_progress():
    told = []
    mask = torch.rand(SIZE, SIZE)
    assert torch.equal(follow_mask(mask, 1, None), mask[None])
    follow_mask(mask, 4, known(lambda place, frame: place), lambda *done: told.append(done))
    assert told == [(0, 3), (1, 3), (2, 3)]


@pytest.mark.parametrize("height, width", [(96, 130), (200, 136), (48, 80)])
def test_raft_gets_what_it_was_trained_on(height, width):
    """-1..1, multiples of 8 from 128 pixels on; its last answer is cut to the picture. The real one: tests/host."""
    first, second = panned(2, (height, width), 2)

    class Raft(torch.nn.Module):
        def forward(self, a, b):
            assert a.shape == b.shape and a.shape[:2] == (1, 3)
            assert all(side % 8 == 0 and side >= RAFT_LEAST for side in a.shape[2:])
            assert torch.allclose(a[0, :, :height, :width].movedim(0, -1), first * 2 - 1)
            assert torch.equal(b[0, :, -1, -1], second[-1, -1] * 2 - 1), "the edge is continued"
            place = pixel_grid(a[0])[None]
            return [torch.zeros_like(place), place]

    found = raft_flow(Raft(), first, second)
    assert torch.equal(found, pixel_grid(torch.zeros(2, height, width)))

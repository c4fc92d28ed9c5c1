"""Masks grown, blurred and inverted, and the sheets that show them."""

import sys

import numpy
import pytest
import torch
from cogvideox_fun.sampling import mask_edit, sheets
from cogvideox_fun.sampling.mask_edit import adjust_mask
from cogvideox_fun.sampling.masks import fit_mask
from PIL import Image, ImageDraw, ImageFilter
from torch.utils._python_dispatch import TorchDispatchMode


@pytest.fixture
def mask():
    """A square of 10 x 12 that moves, over four frames of 64 x 80."""
    mask = torch.zeros(4, 64, 80)
    for i, frame in enumerate(mask):
        frame[20:30, 20 + i : 32 + i] = 1
    return mask


@pytest.mark.parametrize("pixels", [1, 5, 40])  # the last in two steps
def test_grow_by_a_square(mask, pixels):
    """As a maximum over windows says, to the bit."""
    size = 2 * pixels + 1
    expected = torch.nn.functional.max_pool2d(mask[:, None], size, stride=1, padding=pixels)[:, 0]
    assert torch.equal(adjust_mask(mask, grow=pixels), expected)
    assert torch.equal(adjust_mask(1 - mask, grow=-pixels), 1 - expected), "what is kept grows"


class Work(TorchDispatchMode):
    """Counts the values that torch computes."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.values += result.numel() if isinstance(result, torch.Tensor) else 0
        return result


def test_the_largest_growth_is_no_work_of_its_size():
    """Windows that double find a maximum of 1025 values in 11 steps an axis: 167 values a pixel with padding, where
    kernels of 65 pixels computed 10,500 and took 0.9 seconds a frame."""
    mask = torch.zeros(1, 480, 720)
    mask[:, 20:30, 20:32] = 1
    with Work() as work:
        grown = adjust_mask(mask, grow=512)
    assert grown[:, :541, :543].all() and not grown[:, :, 544:].any()
    assert work.values < 300 * mask.numel()


def test_every_frame_is_told_before_it_begins(mask):
    told = []
    adjust_mask(mask, grow=1, on_progress=lambda *args: told.append(args))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize("options", [{"grow": 2**64}, {"grow": -513}, {"blur": 129.0}, {"blur": float("nan")}])
def test_out_of_range(mask, options):
    (name,) = options
    with pytest.raises(ValueError, match=f"{name} is .*, expected .* pixels"):
        adjust_mask(mask, **options)


def test_shrinking_undoes_growing(mask):
    assert torch.equal(adjust_mask(adjust_mask(mask, grow=9), grow=-9), mask)
    assert adjust_mask(mask, grow=-5).sum() == 0 < adjust_mask(mask, grow=-4).sum()


def test_the_edge_of_the_picture_is_no_edge_of_the_region():
    """A region that reaches the picture's edge stays there when it shrinks."""
    mask = torch.ones(1, 32, 32)
    mask[:, :, 16:] = 0
    assert torch.equal(adjust_mask(mask, grow=-4)[0, :, :12], torch.ones(32, 12))
    assert adjust_mask(mask, grow=-4)[0, :, 12:].sum() == 0


def test_blur(mask):
    """The mean stays, the edge is half, and three sigma away nothing has changed."""
    soft = adjust_mask(mask, blur=2.0)
    assert abs(float(soft.mean() - mask.mean())) < 1e-5
    large = torch.zeros(1, 64, 64)
    large[:, :, 32:] = 1
    soft = adjust_mask(large, blur=4.0)[0, 32]
    assert torch.equal(soft[:19], torch.zeros(19)) and (soft[45:] > 1 - 1e-5).all()
    assert abs(float(soft[31] + soft[32]) - 1) < 1e-5 and 0 < soft[25] < soft[31] < 0.5


def test_invert_comes_first(mask):
    assert torch.equal(adjust_mask(adjust_mask(mask, invert=True), invert=True), mask)
    assert torch.equal(adjust_mask(mask, grow=3, invert=True), adjust_mask(1 - mask, grow=3))


def test_one_mask_over_a_video_is_worked_out_once(monkeypatch, mask):
    """And a moving one frame by frame, with the same result."""
    calls = []
    kept = mask_edit.grown
    monkeypatch.setattr(mask_edit, "grown", lambda *args: calls.append(1) or kept(*args))
    still = mask[:1].expand(4, -1, -1)
    result = adjust_mask(still, grow=3, blur=1.5)
    assert len(calls) == 1 and all(torch.equal(frame, result[0]) for frame in result)
    assert torch.equal(result[0], adjust_mask(mask, grow=3, blur=1.5)[0]) and len(calls) == 5


def test_what_goes_in_is_not_overwritten(mask):
    before = mask.clone()
    for options in ({}, {"invert": True}, {"grow": 2}, {"blur": 1.0}):
        adjust_mask(mask, **options).fill_(0.5)
    assert torch.equal(mask, before)


def test_bad_input(monkeypatch, mask):
    with pytest.raises(ValueError, match="blur is -1, expected 0 to 128"):
        adjust_mask(mask, blur=-1)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "kornia", None)
        with pytest.raises(RuntimeError, match="needs kornia.*pip install kornia"):
            adjust_mask(mask, blur=1.0)
    with pytest.raises(ValueError, match="expected \\[frames, height, width\\]"):
        adjust_mask(mask[None, None])


@pytest.mark.parametrize("length, shown", [(1, [0]), (5, [0, 1, 2, 3, 4]), (49, 16), (1001, 16)])
def test_which_frames_a_sheet_shows(length, shown):
    frames = sheets.chosen(length)
    assert frames == shown if isinstance(shown, list) else len(frames) == shown
    assert frames[0] == 0 and frames[-1] == length - 1


def cells(sheet: torch.Tensor, height: int, width: int, count: int) -> list[torch.Tensor]:
    """The pictures of a sheet, h w 3 each."""
    found = []
    for i in range(count):
        y = sheets.GAP + i // sheets.COLUMNS * (height + sheets.LABEL + sheets.GAP) + sheets.LABEL
        x = sheets.GAP + i % sheets.COLUMNS * (width + sheets.GAP)
        found.append(sheet[0, y : y + height, x : x + width])
    return found


def test_a_sheet_of_a_video_shows_what_is_known():
    """Known frames as they are, generated ones in stripes of two greys, and a region in part."""
    video = torch.zeros(9, 48, 96, 3)
    video[..., 0] = torch.linspace(0.2, 1, 9)[:, None, None]
    mask = torch.ones(9, 48, 96)
    mask[0], mask[-1], mask[1, :, :48] = 0, 0, 0
    shown = cells(sheets.video_sheet(video, mask), 48, 96, 9)
    for frame in (0, 8):
        assert (shown[frame] - video[frame]).abs().max() < 0.01
    assert len(shown[4].unique()) == 2 and (shown[4][..., 0] == shown[4][..., 2]).all()
    assert (shown[1][:, :48] - video[1, :, :48]).abs().max() < 0.01 and len(shown[1][:, 48:].unique()) == 2


def test_a_sheet_of_a_mask_shows_its_values():
    mask = torch.tensor([0.0, 0.25, 1.0])[:, None, None].expand(3, 6, 12)
    for picture, value in zip(cells(sheets.mask_sheet(mask), 48, 96, 3), (0, 0.25, 1), strict=True):
        assert (picture - value).abs().max() < 0.01


def test_a_sheet_stays_small():
    sheet = sheets.video_sheet(torch.rand(1001, 16, 32, 3), torch.ones(1001, 16, 32))
    assert sheet.shape[1] <= 400 and sheet.shape[2] <= 800
    assert sheets.mask_sheet(torch.ones(1, 1, 300)).shape[3] == 3, "a line of a mask"


SHAPES = {"rectangle": ImageDraw.ImageDraw.rectangle, "ellipse": ImageDraw.ImageDraw.ellipse}


def mask_picture(shape: str, size: tuple[int, int], soft: float = 0.0) -> Image.Image:
    """A white shape on black, its edge blurred by a Gaussian."""
    picture = Image.new("L", size, 0)
    box = [size[0] * 0.21, size[1] * 0.2, size[0] * 0.73, size[1] * 0.81]
    SHAPES[shape](ImageDraw.Draw(picture), box, fill=255)
    return picture.filter(ImageFilter.GaussianBlur(soft)) if soft else picture


def as_the_authors(picture: Image.Image) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture scaled to 240 x 160 by bicubic, 0..1, and what of it their code generates: 240 of 255 and above."""
    scaled = numpy.array(picture.resize((240, 160)))
    return torch.from_numpy(scaled).float()[None] / 255, torch.from_numpy(numpy.where(scaled < 240, 0.0, 1.0)).float()


@pytest.mark.parametrize("shape", SHAPES)
class TestMaskPicturesOfTheAuthors:
    """What the help of Adjust Mask says of them."""

    def test_black_and_white_at_the_videos_size(self, shape):
        mask, theirs = as_the_authors(mask_picture(shape, (240, 160)))
        assert torch.equal(fit_mask(adjust_mask(mask), 1, 160, 240)[0], theirs)

    @pytest.mark.parametrize("size", [(480, 320), (360, 240), (300, 200), (120, 80), (80, 53)])
    def test_scaled_to_the_video(self, shape, size):
        mask, theirs = as_the_authors(mask_picture(shape, size))
        ours = fit_mask(adjust_mask(mask, grow=-1), 1, 160, 240)
        inner, outer = adjust_mask(ours, grow=-1)[0], adjust_mask(ours, grow=1)[0]
        assert (inner <= theirs).all() and (theirs <= outer).all()
        assert torch.equal((mask[0] > 0.94).float(), theirs), "ThresholdMask at 0.94"

    @pytest.mark.parametrize("soft", [2, 4, 8])
    def test_with_a_soft_edge(self, shape, soft):
        mask, theirs = as_the_authors(mask_picture(shape, (240, 160), soft))

        def off(grow: int) -> float:
            return float((fit_mask(adjust_mask(mask, grow), 1, 160, 240)[0] - theirs).abs().sum() / theirs.sum())

        assert off(round(-1.4 * soft)) < 0.3 * off(0)

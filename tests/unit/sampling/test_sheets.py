"""The contact sheets that the mask nodes show."""

import pytest
import torch
from cogvideox_fun.sampling import sheets


@pytest.mark.parametrize("length, count", [(1, 1), (5, 5), (49, 16), (1001, 16)])
def test_which_frames_a_sheet_shows(length, count):
    frames = sheets.chosen(length)
    assert len(frames) == count and frames[0] == 0 and frames[-1] == length - 1


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
    assert sheets.mask_sheet(torch.ones(1, 1, 300)).shape[3] == 3, "a mask one pixel high"

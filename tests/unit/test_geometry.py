import logging

import pytest
from cogvideox_fun.sampling import geometry


@pytest.mark.parametrize("length, latent_t", [(1, 1), (5, 2), (45, 12), (49, 13), (85, 22)])
def test_frames_and_latent_frames(length, latent_t):
    assert geometry.frames_to_latent_t(length) == latent_t
    assert geometry.latent_t_to_frames(latent_t) == length


@pytest.mark.parametrize(
    "length, patch_t, max_length, expected",
    [
        (49, None, None, 49),
        (50, None, None, 49),
        (52, None, None, 49),
        (53, None, None, 53),
        (3, None, None, 1),
        (81, None, 49, 49),
        (49, 2, None, 45),  # 13 latent frames are odd
        (53, 2, None, 53),
        (1, 2, None, 1),  # one frame is legal on V1.5
        (5, 2, None, 5),
        (9, 2, None, 5),
    ],
)
def test_legal_length(length, patch_t, max_length, expected, caplog):
    with caplog.at_level(logging.WARNING):
        assert geometry.legal_length(length, patch_t, max_length) == expected
    if length == expected:
        assert not caplog.records
    else:
        assert f"length {length} -> {expected}" in caplog.text


def test_length_below_one():
    with pytest.raises(ValueError, match="length is 0"):
        geometry.legal_length(0)


@pytest.mark.parametrize("width, height, words", [(725, 480, "width is 725.*720 or 736"), (720, 8, "height is 8")])
def test_sizes_that_are_no_multiple_of_16(width, height, words):
    with pytest.raises(ValueError, match=words):
        geometry.check_size(width, height)


def test_too_many_latent_frames():
    geometry.check_latent_t(13, None, 13)
    with pytest.raises(ValueError, match="length of 53.*49 or less"):
        geometry.check_latent_t(14, None, 13)


def test_odd_latent_frames_on_v15():
    geometry.check_latent_t(1, 2, None)
    geometry.check_latent_t(12, 2, None)
    with pytest.raises(ValueError, match="13 frames.*set length to 45 or 53"):
        geometry.check_latent_t(13, 2, None)


@pytest.mark.parametrize(
    "grid, region",
    [
        ((30, 45), (0, 0, 30, 45)),
        ((32, 32), (0, 8, 30, 38)),  # (45 - 30) / 2 = 7.5 rounds to even
        ((3, 5), (2, 0, 29, 45)),  # (30 - 27) / 2 = 1.5 rounds to even
        ((64, 36), (0, 14, 30, 31)),
    ],
)
def test_crop_region(grid, region):
    assert geometry.crop_region(*grid, 30, 45) == region

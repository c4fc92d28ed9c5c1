"""Lengths, sizes, tokens and aspect-ratio buckets."""

import pytest
from cogvideox_fun.sampling import geometry
from cogvideox_fun.sampling.buckets import ASPECT_RATIOS_512, bucket_size, closest_bucket
from hypothesis import given
from hypothesis import strategies as some
from tried import tried

# the keys of VideoX-Fun's ASPECT_RATIO_512: height / width, to two decimals
KEYS = (
    "0.25 0.26 0.27 0.28 0.32 0.33 0.35 0.4 0.42 0.48 0.5 0.52 0.57 0.6 0.68 0.72 0.78 0.82 0.88 0.94 1.0 1.07 1.13 "
    "1.21 1.29 1.38 1.46 1.67 1.75 2.0 2.09 2.4 2.5 2.89 3.0 3.11 3.62 3.75 3.88 4.0"
).split()
# latent frames per patch, and the most frames
models = some.tuples(some.sampled_from([None, 2]), some.one_of(some.none(), some.integers(1, 200)))


def is_legal(length: int, patch_t: int | None, most: int | None) -> bool:
    latent_t = (length + 3) / 4
    fits = most is None or length <= most
    return fits and latent_t % 1 == 0 and (patch_t is None or latent_t == 1 or latent_t % patch_t == 0)


@tried
@given(some.integers(1, 2000), models)
def test_a_length_becomes_the_longest_legal_one_below_it(length, model):
    found = geometry.legal_length(length, *model)
    assert is_legal(found, *model) and found <= length
    assert not any(is_legal(other, *model) for other in range(found + 1, length + 1))
    assert geometry.latent_t_to_frames(geometry.frames_to_latent_t(found)) == found


def test_a_changed_length_is_logged(caplog):
    assert geometry.legal_length(49) == 49 and not caplog.records
    geometry.legal_length(49, 2)
    assert "length 49 -> 45: V1.5 takes a multiple of 2 latent frames" in caplog.text
    with pytest.raises(ValueError, match="length is 0"):
        geometry.legal_length(0)


@tried
@given(some.integers(1, 500), some.sampled_from([None, 2]), some.one_of(some.none(), some.integers(1, 50)))
def test_an_illegal_latent_is_refused_and_the_error_names_legal_lengths(latent_t, patch_t, most):
    frames = geometry.latent_t_to_frames(latent_t)
    longest = None if most is None else geometry.latent_t_to_frames(most)
    if is_legal(frames, patch_t, longest):
        return geometry.check_latent_t(latent_t, patch_t, most)
    with pytest.raises(ValueError, match=f"length of {frames}") as error:
        geometry.check_latent_t(latent_t, patch_t, most)
    told = str(error.value).split("set length to ")[1].split(" or ")[: 1 if most and latent_t > most else 2]
    assert all(int(length) == longest or abs(int(length) - frames) == 4 for length in told)


@pytest.mark.parametrize(
    "width, height, words", [(725, 480, "width is 725.*720 or 736"), (720, 8, "height is 8.*16 or 32")]
)
def test_sizes_are_multiples_of_16(width, height, words):
    geometry.check_size(720, 16)
    with pytest.raises(ValueError, match=words):
        geometry.check_size(width, height)


@tried
@given(some.integers(1, 100_000), some.integers(1, 128), some.integers(1, 128))
def test_no_length_comes_closer_to_a_token_length(tokens, columns, rows):
    width, height = 16 * columns, 16 * rows
    length = geometry.length_of_tokens(tokens, width, height)
    off = abs(geometry.token_count(width, height, length) - tokens)
    assert length % 4 == 1
    for other in (length - 4, length + 4):
        assert other < 1 or abs(geometry.token_count(width, height, other) - tokens) >= off


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


def test_the_buckets_are_those_of_videox_fun():
    assert [round(height / width, 2) for height, width in ASPECT_RATIOS_512] == [float(key) for key in KEYS]
    # of 720 x 480, the key 0.68 is closer to 0.667 than 0.6
    sizes = {(1, 1): (512, 512), (1920, 1080): (384, 672), (720, 480): (416, 608), (9000, 1): (256, 1024)}
    assert {size: closest_bucket(*size) for size in sizes} == sizes


@pytest.mark.parametrize("base", [512, 704, 1280])
def test_bucket_sizes_are_rounded_down_to_multiples_of_16(base):
    for bucket in ASPECT_RATIOS_512:
        for side, exact in zip(bucket_size(bucket, base), (s * base / 512 for s in reversed(bucket)), strict=True):
            assert side % 16 == 0 and 0 <= exact - side < 16

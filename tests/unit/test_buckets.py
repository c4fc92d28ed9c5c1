"""The authors' aspect-ratio buckets."""

import pytest
from cogvideox_fun.sampling.buckets import ASPECT_RATIOS_512, bucket_size, closest_bucket, ratio_key

# the keys of the authors' ASPECT_RATIO_512: height / width, to two decimals
KEYS = (
    "0.25 0.26 0.27 0.28 0.32 0.33 0.35 0.4 0.42 0.48 0.5 0.52 0.57 0.6 0.68 0.72 0.78 0.82 0.88 0.94 1.0 1.07 1.13 "
    "1.21 1.29 1.38 1.46 1.67 1.75 2.0 2.09 2.4 2.5 2.89 3.0 3.11 3.62 3.75 3.88 4.0"
).split()


def test_there_are_the_authors_forty():
    assert [ratio_key(*bucket) for bucket in ASPECT_RATIOS_512] == [float(key) for key in KEYS]


@pytest.mark.parametrize(
    "width, height, expected",
    [
        (1, 1, (512, 512)),
        (1920, 1080, (384, 672)),
        (1080, 1920, (672, 384)),
        (720, 480, (416, 608)),
        (9000, 1, (256, 1024)),
    ],
)
def test_a_picture_gets_the_bucket_closest_in_height_to_width(width, height, expected):
    assert closest_bucket(width, height) == expected


@pytest.mark.parametrize("base", range(512, 1281, 64))
def test_sizes_are_rounded_down_to_multiples_of_16(base):
    for bucket in ASPECT_RATIOS_512:
        width, height = bucket_size(bucket, base)
        exact_height, exact_width = (side * base / 512 for side in bucket)
        assert width % 16 == 0 and 0 <= exact_width - width < 16
        assert height % 16 == 0 and 0 <= exact_height - height < 16

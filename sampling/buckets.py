"""VideoX-Fun's aspect-ratio buckets at any base resolution."""

from .geometry import SIZE_MULTIPLE

BASE = 512  # the resolution of the table

# Height and width in pixels: ASPECT_RATIO_512 of VideoX-Fun's bucket sampler. Its keys are height / width, rounded to
# two decimals.
ASPECT_RATIOS_512 = (
    (256, 1024), (256, 992), (256, 960), (256, 928), (288, 896), (288, 864), (288, 832), (320, 800),
    (320, 768), (352, 736), (352, 704), (352, 672), (384, 672), (384, 640), (416, 608), (416, 576),
    (448, 576), (448, 544), (480, 544), (480, 512), (512, 512), (512, 480), (544, 480), (544, 448),
    (576, 448), (576, 416), (608, 416), (640, 384), (672, 384), (704, 352), (736, 352), (768, 320),
    (800, 320), (832, 288), (864, 288), (896, 288), (928, 256), (960, 256), (992, 256), (1024, 256),
)  # fmt: skip


def closest_bucket(width: int, height: int) -> tuple[int, int]:
    """The bucket, (height, width) at 512, whose key in that table is closest to height / width. Of two, the first."""
    return min(ASPECT_RATIOS_512, key=lambda bucket: abs(round(bucket[0] / bucket[1], 2) - height / width))


def bucket_size(bucket: tuple[int, int], base_resolution: int) -> tuple[int, int]:
    """Width and height in pixels of a bucket at a base resolution, rounded down to multiples of 16."""
    height, width = (int(side / BASE * base_resolution / SIZE_MULTIPLE) * SIZE_MULTIPLE for side in bucket)
    return width, height

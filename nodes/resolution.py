"""Choose width, height and length together."""

from math import gcd

from comfy_api.latest import io

from ..sampling.buckets import ASPECT_RATIOS_512, bucket_size, closest_bucket
from ..sampling.geometry import length_of_tokens, token_count
from ..sampling.masks import check_image
from . import common
from .latents import fit_length
from .messages import show_message


def label(bucket: tuple[int, int]) -> str:
    """A bucket, (height, width), as width:height in lowest terms."""
    height, width = bucket
    return f"{width // gcd(height, width)}:{height // gcd(height, width)}"


BUCKETS = {label(bucket): bucket for bucket in ASPECT_RATIOS_512}


class Resolution(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "latent",
            "size, aspect ratio, bucket, width and height, video size, token length, base resolution, "
            "CogVideoXFunResizeToClosestBucket",
            node_id="CogVideoXFunResolution",
            display_name="CogVideoX-Fun Resolution",
            description="Choose a size that the models were trained on, and a length. The node shows the result.",
            inputs=[
                common.integer(
                    "base_resolution", (512, 512, 1280, 64), "Side in pixels of a square with the same area."
                ),
                common.choice(
                    "aspect_ratio",
                    BUCKETS,
                    "Width to height, VideoX-Fun's 40 buckets. Not used with an image.",
                    default="7:4",
                ),
                common.integer(
                    "token_length",
                    (0, 0, 200_000),
                    "Choose the length by this number of tokens; 0 = off. Training used 13312, 29952 and 53248.",
                ),
                common.length_input(),
                io.Image.Input(
                    "image", optional=True, tooltip="Use the bucket closest to this image instead of aspect_ratio."
                ),
                common.length_model_input(),
            ],
            outputs=[
                io.Int.Output(display_name="width", tooltip="In pixels, a multiple of 16."),
                io.Int.Output(display_name="height", tooltip="In pixels, a multiple of 16."),
                io.Int.Output(display_name="length", tooltip="In frames, 4n + 1."),
            ],
        )

    @classmethod
    def execute(
        cls, base_resolution=512, aspect_ratio="7:4", token_length=0, length=49, image=None, model=None
    ) -> io.NodeOutput:
        common.one_of("aspect_ratio", aspect_ratio, BUCKETS)
        bucket = BUCKETS[aspect_ratio]
        if image is not None:
            check_image(image, "image")
            bucket = closest_bucket(image.shape[2], image.shape[1])
        width, height = bucket_size(bucket, base_resolution)
        if token_length:
            length = length_of_tokens(token_length, width, height)
        length = fit_length(length, model)
        tokens = token_count(width, height, length)
        show_message(f"{width} x {height} ({label(bucket)}), {length} frames, {tokens} tokens")
        return io.NodeOutput(width, height, length)

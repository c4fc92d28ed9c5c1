"""Width, height and length together."""

from math import gcd

from comfy_api.latest import io
from server import PromptServer

from ..sampling.buckets import ASPECT_RATIOS_512, bucket_size, closest_bucket
from ..sampling.geometry import length_of_tokens, token_count
from ..sampling.masks import check_image
from . import common
from .latents import fit_length


def label(bucket: tuple[int, int]) -> str:
    """A bucket, (height, width), as width:height in lowest terms."""
    height, width = bucket
    divisor = gcd(height, width)
    return f"{width // divisor}:{height // divisor}"


BUCKETS = {label(bucket): bucket for bucket in ASPECT_RATIOS_512}


class Resolution(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunResolution",
            search_aliases=(
                "size",
                "aspect ratio",
                "bucket",
                "width and height",
                "video size",
                "token length",
                "base resolution",
                "CogVideoXFunResizeToClosestBucket",
            ),
            display_name="Resolution",
            category=f"{common.CATEGORY}/latent",
            description="Choose a size that the models were trained on, and the length that goes with it. What was "
            "chosen is shown on the node.",
            inputs=[
                io.Int.Input(
                    "base_resolution",
                    default=512,
                    min=512,
                    max=1280,
                    step=64,
                    tooltip="The side of the square with the same area, in pixels.",
                ),
                io.Combo.Input(
                    "aspect_ratio",
                    options=list(BUCKETS),
                    default="7:4",
                    tooltip="Width to height, of the authors' 40 buckets. Not used with an image.",
                ),
                io.Int.Input(
                    "token_length",
                    default=0,
                    min=0,
                    max=200_000,
                    tooltip="0 = off. Else the length whose latent frames x height / 16 x width / 16 come "
                    "closest to this: the models were trained at 13312, 29952 and 53248.",
                ),
                common.length_input(),
                io.Image.Input(
                    "image", optional=True, tooltip="Its proportions choose the bucket instead of aspect_ratio."
                ),
                common.optional_model_input(),
            ],
            outputs=[
                io.Int.Output(display_name="width", tooltip="In pixels, a multiple of 16."),
                io.Int.Output(display_name="height", tooltip="In pixels, a multiple of 16."),
                io.Int.Output(display_name="length", tooltip="In frames, 4n + 1."),
            ],
            hidden=[io.Hidden.unique_id],
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
        if cls.hidden is not None and cls.hidden.unique_id:
            tokens = token_count(width, height, length)
            text = f"{width} x {height} ({label(bucket)}), {length} frames, {tokens} tokens"
            PromptServer.instance.send_progress_text(text, cls.hidden.unique_id)
        return io.NodeOutput(width, height, length)

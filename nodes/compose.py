"""A generated video beside its source: colours matched, and what was kept pasted back."""

from comfy_api.latest import io

from ..sampling.composite import composite
from . import common


class CompositeSource(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunCompositeSource",
            display_name="Composite with Source",
            category=f"{common.CATEGORY}/video",
            search_aliases=("color match", "colour match", "paste back", "color transfer", "inpaint composite"),
            description="After video to video or region inpainting: give the result the colours of the video that it "
            "was made from, and that video's own pixels where they were to be kept.",
            inputs=[
                io.Image.Input("video", tooltip="The generated video, from VAE Decode."),
                io.Image.Input(
                    "source",
                    tooltip="The video as it went into VAE Encode: of the same size, with as many frames or more.",
                ),
                io.Float.Input(
                    "match_colors",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How far mean and contrast of the colours follow the source, 0 = not at all. Measured "
                    "over the whole video, with a mask where the source was kept.",
                ),
                io.Boolean.Input(
                    "paste_known",
                    default=True,
                    tooltip="Take the source's own pixels where the mask is 0. The VAE changes them a little.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=f"{common.MASK_TOOLTIP} Between them both are blended. Without a mask nothing is pasted.",
                ),
            ],
            outputs=[io.Image.Output(display_name="video", tooltip="The frames of the generated video.")],
        )

    @classmethod
    def execute(cls, video, source, match_colors=1.0, paste_known=True, mask=None) -> io.NodeOutput:
        return io.NodeOutput(composite(video, source, mask, match_colors, paste_known))

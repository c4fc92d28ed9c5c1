"""Put a generated video back into its source."""

from comfy_api.latest import io

from ..model_loading.comfyui.model import progress_callback
from ..sampling.composite import composite
from . import common


class CompositeSource(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "video",
            "color match, colour match, paste back, color transfer, inpaint composite",
            node_id="CogVideoXFunCompositeSource",
            display_name="Composite with Source",
            description="Match a generated video's colours to its source, and paste back what was to be kept.",
            inputs=[
                io.Image.Input("video", tooltip="The generated video, from CogVideoX-Fun VAE Decode."),
                io.Image.Input(
                    "source",
                    tooltip="The video that was encoded: the same size, as many frames or more.",
                ),
                common.number(
                    "match_colors",
                    (1.0, 0.0, 1.0, 0.05),
                    "How far colours and contrast are matched to the source; 0 = off.",
                ),
                io.Boolean.Input(
                    "paste_known", default=True, tooltip="Paste the source's own pixels where the mask is 0."
                ),
                io.Mask.Input("mask", optional=True, tooltip=f"{common.MASK_TOOLTIP} Values below 0.5 blend."),
            ],
            outputs=[io.Image.Output(display_name="video", tooltip="The finished video.")],
        )

    @classmethod
    def execute(cls, video, source, match_colors=1.0, paste_known=True, mask=None) -> io.NodeOutput:
        return io.NodeOutput(composite(video, source, mask, match_colors, paste_known, progress_callback()))

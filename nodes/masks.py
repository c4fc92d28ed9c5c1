"""Start and end images to a video and its mask; masks to the latent's size."""

from comfy_api.latest import io

from ..sampling.masks import build_start_end, mask_to_latent
from . import common
from .latents import fit_length, latent_shape


class StartEndImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXFunStartEndImage",
            display_name="Start/End Image Mask Builder",
            category=f"{common.CATEGORY}/mask",
            description="Make a video that begins and ends with given images, and the mask of what is to be generated "
            "between them. Without images everything is generated.",
            inputs=[
                *common.size_inputs(),
                common.length_input(),
                io.Combo.Input(
                    "fit",
                    options=["crop", "stretch"],
                    default="crop",
                    tooltip="How an image of another shape is brought to size. crop keeps its proportions and cuts "
                    "the longer side evenly; stretch distorts it, as the authors' code does.",
                ),
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="The image that the video begins with; several frames are continued as a clip.",
                ),
                io.Image.Input("end_image", optional=True, tooltip="The image, or frames, that the video ends with."),
                common.optional_model_input(),
            ],
            outputs=[
                io.Image.Output(display_name="video", tooltip="Start, filling and end, for VAE Encode."),
                io.Mask.Output(display_name="mask", tooltip=common.MASK_TOOLTIP),
            ],
        )

    @classmethod
    def execute(
        cls, width=720, height=480, length=49, fit="crop", start_image=None, end_image=None, model=None
    ) -> io.NodeOutput:
        length = fit_length(length, model)
        return io.NodeOutput(*build_start_end(width, height, length, start_image, end_image, fit))


class MaskResize3D(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXFunMaskResize3D",
            display_name="Mask Resize 3D",
            category=f"{common.CATEGORY}/mask",
            description="Bring a mask over a video to a latent's frames, height and width: the first alone, then "
            "the others together.",
            inputs=[
                io.Mask.Input(
                    "mask", tooltip=f"{common.MASK_TOOLTIP} One frame, or as many as the video. Any height and width."
                ),
                io.Latent.Input("latent", tooltip="The latent whose size the mask is brought to."),
                io.Boolean.Input(
                    "soft",
                    default=False,
                    tooltip="Let a feathered mask through. Off: at and above 0.5 is generated, below is kept, as the "
                    "models were trained.",
                ),
            ],
            outputs=[io.Mask.Output(display_name="latent mask", tooltip=common.MASK_TOOLTIP)],
        )

    @classmethod
    def execute(cls, mask, latent, soft=False) -> io.NodeOutput:
        return io.NodeOutput(mask_to_latent(mask, *latent_shape(latent)[2:], soft=soft))

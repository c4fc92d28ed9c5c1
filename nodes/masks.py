"""Start and end images to a video and its mask; masks adjusted, and brought to the latent's size."""

import logging
from collections.abc import Callable

import torch
from comfy_api.latest import io, ui

from ..model_loading.comfyui.model import progress_callback
from ..sampling.mask_edit import MAX_BLUR, MAX_GROW, adjust_mask
from ..sampling.masks import FITS, build_start_end, mask_to_latent
from ..sampling.sheets import mask_sheet, video_sheet
from . import common
from .latents import fit_length, latent_shape

log = logging.getLogger(__name__)


def preview(make_sheet: Callable[[], torch.Tensor]) -> ui.PreviewImage | None:
    """A picture under the node; what goes wrong with it costs the picture and not the run."""
    try:
        return ui.PreviewImage(make_sheet())
    except (OSError, RuntimeError) as error:
        log.warning("no preview of the mask: %s", error)
        return None


class StartEndImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunStartEndImage",
            display_name="Start/End Image Mask Builder",
            category=f"{common.CATEGORY}/mask",
            shows_picture=True,
            search_aliases=(
                "i2v",
                "img2vid",
                "image to video",
                "first last frame",
                "flf2v",
                "start image",
                "end image",
                "CogVideoXFunInpaintSampler",
                "CogVideoImageEncodeFunInP",
            ),
            description="Make a video that begins and ends with given images, and the mask of what is to be generated "
            "between them. Without images everything is generated. The picture below shows both: what is striped is "
            "generated.",
            inputs=[
                *common.size_inputs(),
                common.length_input(),
                io.Combo.Input(
                    "fit",
                    options=list(FITS),
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
        common.one_of("fit", fit, FITS)
        length = fit_length(length, model)
        video, mask = build_start_end(width, height, length, start_image, end_image, fit)
        return io.NodeOutput(video, mask, ui=preview(lambda: video_sheet(video, mask)))


class MaskResize3D(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunMaskResize3D",
            display_name="Mask Resize 3D",
            category=f"{common.CATEGORY}/mask",
            shows_picture=True,
            search_aliases=("latent mask", "resize mask", "inpaint mask", "video mask"),
            description="Bring a mask over a video to a latent's frames, height and width: the first alone, then "
            "the others together. The picture below shows the latent's frames: white is generated, black is kept.",
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
        resized = mask_to_latent(mask, *latent_shape(latent)[2:], soft=soft)
        return io.NodeOutput(resized, ui=preview(lambda: mask_sheet(resized)))


class MaskAdjust(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunMaskAdjust",
            display_name="Adjust Mask",
            category=f"{common.CATEGORY}/mask",
            shows_picture=True,
            search_aliases=("grow mask", "expand mask", "shrink mask", "blur mask", "feather mask", "invert mask"),
            description="Invert, then grow, then blur a mask, each frame on its own.",
            inputs=[
                io.Mask.Input("mask", tooltip=common.MASK_TOOLTIP),
                io.Int.Input(
                    "grow",
                    default=0,
                    min=-MAX_GROW,
                    max=MAX_GROW,
                    tooltip="Pixels by which what is generated grows in every direction, by a square; negative "
                    "shrinks it. A region that covers its object with 16 pixels to spare leaves no seam of it.",
                ),
                io.Float.Input(
                    "blur",
                    default=0.0,
                    min=0.0,
                    max=MAX_BLUR,
                    step=0.5,
                    tooltip="Sigma of a Gaussian blur in pixels, 0 = none. VAE Encode and Mask Resize 3D cut at 0.5 "
                    "unless soft is on; Composite with Source blends by it: grow by three times as much there, so "
                    "that the blend falls outside the region.",
                ),
                io.Boolean.Input(
                    "invert",
                    default=False,
                    tooltip="Turn the mask round first: for masks that are white where the picture is kept.",
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip=common.MASK_TOOLTIP)],
        )

    @classmethod
    def execute(cls, mask, grow=0, blur=0.0, invert=False) -> io.NodeOutput:
        common.check_numbers(grow=grow, blur=blur)
        adjusted = adjust_mask(mask, grow, blur, invert, progress_callback())
        return io.NodeOutput(adjusted, ui=preview(lambda: mask_sheet(adjusted)))

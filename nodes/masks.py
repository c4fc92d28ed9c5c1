"""Start and end images to a video and its mask; adjust masks and resize them to the latent."""

import logging
from collections.abc import Callable

from comfy_api.latest import io, ui
from torch import Tensor

from ..model_loading.comfyui.model import progress_callback
from ..sampling.mask_edit import MAX_BLUR, MAX_GROW, adjust_mask
from ..sampling.masks import FITS, build_start_end, mask_to_latent
from ..sampling.sheets import mask_sheet, video_sheet
from . import common
from .latents import fit_length, latent_shape

log = logging.getLogger(__name__)


def preview(make_sheet: Callable[[], Tensor]) -> ui.PreviewImage | None:
    """A picture under the node, or none where it can't be written, for example on a full disk."""
    try:
        return ui.PreviewImage(make_sheet())
    except (OSError, RuntimeError) as error:
        log.warning("no preview of the mask: %s", error)
        return None


class StartEndImage(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "mask",
            "i2v, img2vid, image to video, first last frame, flf2v, start image, end image, "
            "CogVideoXFunInpaintSampler, CogVideoImageEncodeFunInP",
            node_id="CogVideoXFunStartEndImage",
            display_name="Start/End Image Mask Builder",
            shows_picture=True,
            description="Make a video with given start and end images, and a mask of what to generate in between.",
            inputs=[
                *common.size_inputs(),
                common.length_input(),
                common.fit_input(),
                io.Image.Input(
                    "start_image", optional=True, tooltip="The first frame. Several frames are continued as a clip."
                ),
                io.Image.Input("end_image", optional=True, tooltip="The last frame, or several last frames."),
                common.length_model_input(),
                common.integer(
                    "start_frames",
                    (0, 0, 1001),
                    "How many frames of start_image are used, counted from its end: 9 continues a clip by its last 9 "
                    "frames. 0 uses all.",
                    optional=True,
                ),
            ],
            outputs=[
                io.Image.Output(display_name="video", tooltip="Start, filling and end, for VAE Encode."),
                io.Mask.Output(display_name="mask", tooltip=common.MASK_TOOLTIP),
            ],
        )

    @classmethod
    def execute(
        cls,
        width=720,
        height=480,
        length=49,
        fit="crop",
        start_image=None,
        end_image=None,
        model=None,
        start_frames=0,
    ) -> io.NodeOutput:
        common.one_of("fit", fit, FITS)
        length = fit_length(length, model)
        if start_frames < 0:
            raise ValueError(f"start_frames is {start_frames}, expected 0 (all frames) or more")
        if start_image is not None:
            start_image = start_image[-start_frames:]  # 0: all
        video, mask = build_start_end(width, height, length, start_image, end_image, fit)
        return io.NodeOutput(video, mask, ui=preview(lambda: video_sheet(video, mask)))


class MaskResize3D(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "mask",
            "latent mask, resize mask, inpaint mask, video mask",
            node_id="CogVideoXFunMaskResize3D",
            display_name="Mask Resize 3D",
            shows_picture=True,
            description="Resize a mask over a video to the frames, height and width of a latent.",
            inputs=[
                io.Mask.Input(
                    "mask", tooltip=f"{common.MASK_TOOLTIP} One frame, or as many as the video. Any height and width."
                ),
                io.Latent.Input("latent", tooltip="The latent whose size the mask gets."),
                io.Boolean.Input(
                    "soft", default=False, tooltip="Keep values between 0 and 1. Off: 0.5 and above is generated."
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
            "mask",
            "grow mask, expand mask, shrink mask, blur mask, feather mask, invert mask",
            node_id="CogVideoXFunMaskAdjust",
            display_name="Adjust Mask",
            shows_picture=True,
            description="Invert, then grow, then blur each frame of a mask.",
            inputs=[
                io.Mask.Input("mask", tooltip=common.MASK_TOOLTIP),
                common.integer(
                    "grow",
                    (0, -MAX_GROW, MAX_GROW),
                    "Pixels by which white grows in every direction; negative values shrink it.",
                ),
                common.number("blur", (0.0, 0.0, MAX_BLUR, 0.5), "Sigma of a Gaussian blur in pixels; 0 = off."),
                io.Boolean.Input(
                    "invert",
                    default=False,
                    tooltip="Invert the mask before the other edits: for masks with white = keep.",
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip=common.MASK_TOOLTIP)],
        )

    @classmethod
    def execute(cls, mask, grow=0, blur=0.0, invert=False) -> io.NodeOutput:
        common.check_numbers(grow=grow, blur=blur)
        adjusted = adjust_mask(mask, grow, blur, invert, progress_callback())
        return io.NodeOutput(adjusted, ui=preview(lambda: mask_sheet(adjusted)))

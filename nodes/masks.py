"""Start and end images to a video and its mask; masks that follow a video, are adjusted, and resized to the latent."""

import logging
from collections.abc import Callable

from comfy_api.latest import io, ui
from torch import Tensor

from ..model_loading.comfyui.model import progress_callback
from ..model_loading.comfyui.optical_flow import find_raft, flow_of, weight_files
from ..sampling.follow import follow_mask, lost_at
from ..sampling.mask_edit import MAX_BLUR, MAX_GROW, adjust_mask
from ..sampling.masks import FITS, as_frames, build_start_end, check_image, fit_mask, mask_to_latent
from ..sampling.sheets import mask_sheet, video_sheet
from . import common
from .latents import fit_length, latent_shape
from .model_files import fingerprint

log = logging.getLogger(__name__)

HUB = "https://huggingface.co/Comfy-Org/void-model/resolve/main/optical_flow"
RAFT = f"{HUB}/raft_large_C_T_SKHT_V2-ff5fadd5.safetensors"
NO_RAFT = (
    "no RAFT found, so a simpler optical flow is used, which may lose fast motion: "
    f"for RAFT, put {RAFT} into models/optical_flow"
)
LOST = (
    "less than a tenth of the mask is left from frame %d on: its object has left the picture, is hidden, or was lost "
    "by the optical flow. Use a shorter part of the clip, or start at a frame where the object is visible"
)
EMPTY = "the mask of the first frame is empty: paint the object there, white is what is generated"


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
                    "start_image", optional=True, tooltip="The first frame, or several: the video continues them."
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


class MaskFollow(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "mask",
            "mask follows motion, track mask, mask tracking, video mask, optical flow, RAFT, rotoscope, moving mask",
            node_id="CogVideoXFunMaskFollow",
            display_name="Propagate Mask",
            shows_picture=True,
            description="Move a mask of the first frame with the motion of a video, by optical flow.",
            inputs=[
                io.Image.Input("images", tooltip="The frames, from Clip to Frames."),
                io.Mask.Input("mask", tooltip="The mask of the first frame. Another size is stretched to the frames."),
                io.Custom("OPTICAL_FLOW").Input(
                    "optical_flow",
                    optional=True,
                    tooltip="From Load Optical Flow Model. Not connected: RAFT from models/optical_flow if it is "
                    "there, else a simpler flow that needs no model.",
                ),
            ],
            outputs=[io.Mask.Output(display_name="mask", tooltip="A mask for each frame.")],
        )

    @classmethod
    def fingerprint_inputs(cls, **_inputs):
        return fingerprint(*weight_files())

    @classmethod
    def execute(cls, images, mask, optical_flow=None) -> io.NodeOutput:
        check_image(images, "images")
        length, height, width, _ = images.shape
        mask = as_frames(mask)
        if len(mask) > 1:
            log.warning("the mask has %d frames: only the first is used", len(mask))
        first = fit_mask(mask[:1], 1, height, width, soft=True)[0]
        raft = find_raft() if optical_flow is None else optical_flow
        if raft is None:
            log.warning(NO_RAFT)
        flow = flow_of(raft, height, width)
        followed = follow_mask(first, length, lambda a, b: flow(images[a], images[b]), progress_callback())
        lost = lost_at(followed)
        if lost == 0:
            log.warning(EMPTY)
        elif lost is not None:
            log.warning(LOST, lost + 1)
        return io.NodeOutput(followed, ui=preview(lambda: video_sheet(images, followed)))

"""What a model is conditioned on beside the text."""

import node_helpers
import torch
from comfy_api.latest import io

from ..model_loading.comfyui.model import CONTROL_PERCENTS
from ..sampling.masks import as_frames
from . import common
from .latents import latent_shape


def with_values(positive, negative, values: dict, latent: dict | None = None) -> io.NodeOutput:
    """Both conditionings with values added, and a latent to sample: by default an empty one of the same size.

    What an earlier node set for its own video goes: its mask, and its part of the schedule.
    """
    values = {"concat_mask": None, CONTROL_PERCENTS: None, **values}
    positive, negative = (node_helpers.conditioning_set_values(c, values) for c in (positive, negative))
    return io.NodeOutput(positive, negative, latent or {"samples": torch.zeros_like(values["concat_latent_image"])})


def size_text(shape) -> str:
    return " x ".join(map(str, shape))


class InpaintConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "conditioning",
            "inpaint, inpainting, image to video, i2v, img2vid, first last frame, flf2v, fill, masked video, "
            "CogVideoXFunInpaintSampler, InpaintModelConditioning, CogVideoImageEncodeFunInP",
            node_id="CogVideoXFunInpaintConditioning",
            display_name="Inpaint Conditioning",
            description="Give an InP model its masked video and the mask of what to generate.",
            inputs=[
                *common.prompt_inputs(),
                io.Latent.Input("masked_latent", tooltip="From VAE Encode, with the mask."),
                io.Mask.Input("mask", tooltip=f"From Mask Resize 3D, at the latent's size. {common.MASK_TOOLTIP}"),
            ],
            outputs=common.conditioning_outputs(),
        )

    @classmethod
    def execute(cls, positive, negative, masked_latent, mask) -> io.NodeOutput:
        size, mask = latent_shape(masked_latent)[2:], as_frames(mask)
        if mask.shape != size:
            raise ValueError(
                f"the mask is {size_text(mask.shape)}, but the latent is {size_text(size)} (frames x height x width): "
                "resize the mask to the latent with Mask Resize 3D"
            )
        values = {"concat_latent_image": masked_latent["samples"], "concat_mask": mask[None, None]}
        return with_values(positive, negative, values)


class ControlConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "conditioning",
            "control, controlnet, pose, canny, depth, openpose, v2v control, CogVideoXFunV2VSampler",
            node_id="CogVideoXFunControlConditioning",
            display_name="Control Conditioning",
            description="Give a Control or Pose model the video to follow, such as edges or skeletons.",
            inputs=[
                *common.prompt_inputs(),
                io.Latent.Input("control_latent", tooltip="The control video, from VAE Encode without a mask."),
                common.number(
                    "strength", (1.0, 0.0, 10.0, 0.01), "Strength of the control; 1 as in training, 0 is off."
                ),
                common.number(
                    "start_percent", (0.0, 0.0, 1.0, 0.001), "Fraction of sampling at which control starts, 0 to 1."
                ),
                common.number(
                    "end_percent", (1.0, 0.0, 1.0, 0.001), "Fraction of sampling at which control ends, 0 to 1."
                ),
            ],
            outputs=common.conditioning_outputs(),
        )

    @classmethod
    def execute(
        cls, positive, negative, control_latent, strength=1.0, start_percent=0.0, end_percent=1.0
    ) -> io.NodeOutput:
        latent_shape(control_latent)
        common.check_numbers(strength=strength, start_percent=start_percent, end_percent=end_percent)
        if start_percent > end_percent:
            raise ValueError(
                f"start_percent is {start_percent}, expected at most end_percent ({end_percent}): swap the two"
            )
        values = {"concat_latent_image": control_latent["samples"] * strength}
        if (start_percent, end_percent) != (0.0, 1.0):
            values[CONTROL_PERCENTS] = (start_percent, end_percent)
        return with_values(positive, negative, values)


class ImageConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "conditioning",
            "i2v, img2vid, image to video, CogVideoX I2V, first frame, CogVideoImageEncode",
            node_id="CogVideoXFunImageConditioning",
            display_name="Image Conditioning",
            description="Give an image-to-video model of the original CogVideoX (not a Fun model) its first frame.",
            inputs=[
                *common.prompt_inputs(),
                io.Latent.Input(
                    "image_latent", tooltip="One image of the video's size, from VAE Encode without a mask."
                ),
                io.Latent.Input("latent", tooltip="From Empty Latent, at the video's size and length."),
            ],
            outputs=common.conditioning_outputs("The latent, for the sampler."),
        )

    @classmethod
    def execute(cls, positive, negative, image_latent, latent) -> io.NodeOutput:
        image, video = latent_shape(image_latent)[2:], latent_shape(latent)[2:]
        if image[1:] != video[1:] or image[0] > video[0]:
            raise ValueError(
                f"the image's latent is {size_text(image)}, but the video's is {size_text(video)} (frames x height x "
                "width): resize the image to the video's width and height before VAE Encode"
            )
        return with_values(positive, negative, {"concat_latent_image": image_latent["samples"]}, latent)

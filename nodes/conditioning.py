"""What the model is conditioned on beside the text."""

import node_helpers
import torch
from comfy_api.latest import io

from ..model_loading.comfyui.model import CONTROL_PERCENTS
from ..sampling.masks import as_frames
from . import common
from .latents import latent_shape


def with_values(positive, negative, values: dict, latent: dict | None = None) -> io.NodeOutput:
    """Both conditionings with the values added, and a latent to sample: empty, of the conditioning's size, if None."""
    positive, negative = (node_helpers.conditioning_set_values(c, values) for c in (positive, negative))
    return io.NodeOutput(positive, negative, latent or {"samples": torch.zeros_like(values["concat_latent_image"])})


class InpaintConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunInpaintConditioning",
            search_aliases=(
                "inpaint",
                "inpainting",
                "image to video",
                "i2v",
                "img2vid",
                "first last frame",
                "flf2v",
                "fill",
                "masked video",
                "CogVideoXFunInpaintSampler",
                "InpaintModelConditioning",
                "CogVideoImageEncodeFunInP",
            ),
            display_name="Inpaint Conditioning",
            category=f"{common.CATEGORY}/conditioning",
            description="Give an InP model its reference video and the mask of what to generate.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="What the video should show."),
                io.Conditioning.Input("negative", tooltip="What the video should not show."),
                io.Latent.Input("masked_latent", tooltip="From VAE Encode, with the mask."),
                io.Mask.Input("mask", tooltip=f"From Mask Resize 3D, at the latent's size. {common.MASK_TOOLTIP}"),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the same size, for the sampler."),
            ],
        )

    @classmethod
    def execute(cls, positive, negative, masked_latent, mask) -> io.NodeOutput:
        shape = latent_shape(masked_latent)
        mask = as_frames(mask)
        if mask.shape != shape[2:]:
            raise ValueError(
                f"the mask is {' x '.join(map(str, mask.shape))}, but the latent {' x '.join(map(str, shape[2:]))} "
                "(frames x height x width): bring the mask to the latent's size with Mask Resize 3D"
            )
        values = {"concat_latent_image": masked_latent["samples"], "concat_mask": mask[None, None]}
        return with_values(positive, negative, values)


class ControlConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunControlConditioning",
            search_aliases=(
                "control",
                "controlnet",
                "pose",
                "canny",
                "depth",
                "openpose",
                "v2v control",
                "CogVideoXFunV2VSampler",
            ),
            display_name="Control Conditioning",
            category=f"{common.CATEGORY}/conditioning",
            description="Give a Control or Pose model the video that it follows, such as edges or skeletons.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="What the video should show."),
                io.Conditioning.Input("negative", tooltip="What the video should not show."),
                io.Latent.Input(
                    "control_latent", tooltip="From VAE Encode without a mask: the control video, at the video's size."
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=10.0,
                    step=0.01,
                    tooltip="What the control latent is multiplied by; 1 is how the models were trained, 0 is none.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="From where on the schedule the control counts, 0 to 1, as in ControlNet.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.001,
                    tooltip="Up to where on the schedule the control counts, 0 to 1.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler."),
                io.Latent.Output(display_name="latent", tooltip="An empty latent of the same size, for the sampler."),
            ],
        )

    @classmethod
    def execute(
        cls, positive, negative, control_latent, strength=1.0, start_percent=0.0, end_percent=1.0
    ) -> io.NodeOutput:
        latent_shape(control_latent)
        common.check_numbers(strength=strength, start_percent=start_percent, end_percent=end_percent)
        if start_percent > end_percent:
            raise ValueError(
                f"start_percent is {start_percent}, after end_percent {end_percent}, and the control would never "
                "count: swap the two"
            )
        values = {"concat_latent_image": control_latent["samples"] * strength}
        if (start_percent, end_percent) != (0.0, 1.0):
            values[CONTROL_PERCENTS] = (start_percent, end_percent)
        return with_values(positive, negative, values)


class ImageConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunImageConditioning",
            search_aliases=("i2v", "img2vid", "image to video", "CogVideoX I2V", "first frame", "CogVideoImageEncode"),
            display_name="Image Conditioning",
            category=f"{common.CATEGORY}/conditioning",
            description="Give one of CogVideoX's own image-to-video models (32 channels) its first frame. The Fun "
            "models take Inpaint Conditioning instead.",
            inputs=[
                io.Conditioning.Input("positive", tooltip="What the video should show."),
                io.Conditioning.Input("negative", tooltip="What the video should not show."),
                io.Latent.Input(
                    "image_latent", tooltip="From VAE Encode without a mask: one image, at the video's size."
                ),
                io.Latent.Input("latent", tooltip="From Empty Latent, at the video's size and length."),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="For the sampler."),
                io.Latent.Output(display_name="latent", tooltip="The latent, for the sampler."),
            ],
        )

    @classmethod
    def execute(cls, positive, negative, image_latent, latent) -> io.NodeOutput:
        given, wanted = latent_shape(image_latent), latent_shape(latent)
        if given[3:] != wanted[3:] or given[2] > wanted[2]:
            image, video = (" x ".join(map(str, shape[2:])) for shape in (given, wanted))
            raise ValueError(
                f"the image's latent is {image}, but the video's {video} (frames x height x width): bring "
                "the image to the video's width and height before VAE Encode"
            )
        return with_values(positive, negative, {"concat_latent_image": image_latent["samples"]}, latent)

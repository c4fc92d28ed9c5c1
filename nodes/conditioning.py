"""What the model is conditioned on beside the text."""

import node_helpers
import torch
from comfy_api.latest import io

from ..sampling.masks import as_frames
from . import common
from .latents import latent_shape


class InpaintConditioning(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="CogVideoXFunInpaintConditioning",
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
        positive, negative = (node_helpers.conditioning_set_values(c, values) for c in (positive, negative))
        return io.NodeOutput(positive, negative, {"samples": torch.zeros_like(masked_latent["samples"])})

"""Videos to latents and back, and empty latents."""

import logging

import comfy.model_management
import torch
from comfy_api.latest import io

from ..model_loading.comfyui.model import length_limits, model_of
from ..model_loading.comfyui.vae import ComfyVAE
from ..sampling.geometry import SPATIAL_COMPRESSION, check_size, frames_to_latent_t, legal_length
from ..sampling.inpaint import reference_pixels
from ..sampling.masks import check_image, fit_mask
from . import common
from .messages import show_message

log = logging.getLogger(__name__)

TO_START = "use CogVideoX-Fun Empty Latent for a new video, or CogVideoX-Fun VAE Encode"
TO_DECODE = "connect a latent that a CogVideoX-Fun model sampled, or decode this one with the VAE of its own model"


def fit_length(length: int, model=None) -> int:
    """Round a length down to 4n + 1 and, given a model, to what it takes; changes are logged."""
    return legal_length(length, *(length_limits(model, length) if model is not None else ()))


def latent_shape(latent: dict, remedy: str = TO_START) -> tuple[int, ...]:
    """The shape of a video's LATENT, B 16 T h w.

    Raises:
        ValueError: it is of another family of models.
    """
    samples, ratio = latent["samples"], latent.get("downscale_ratio_spacial", SPATIAL_COMPRESSION)
    if samples.is_nested or samples.ndim != 5 or samples.shape[1] != 16 or ratio != SPATIAL_COMPRESSION:
        shape = "a list of tensors" if samples.is_nested else f"the shape {list(samples.shape)}"
        raise ValueError(
            f"the latent is of another family of models ({shape} at 1 / {ratio} of the video's size), expected "
            f"[batch, 16, frames, height / 8, width / 8]: {remedy}"
        )
    return tuple(samples.shape)


def check_vae(vae) -> None:
    """Raise a ValueError unless a VAE is the pack's. Others have neither the models' chunks nor their scaling."""
    if vae is None:
        raise ValueError("the VAE is empty: the model's folder has no vae, so load one with Load CogVideoX-Fun VAE")
    if not isinstance(vae, ComfyVAE):
        family = type(getattr(vae, "first_stage_model", vae)).__name__
        raise ValueError(f"the VAE is of another family ({family}): load the model's own with Load CogVideoX-Fun VAE")


def empty_latent(batch_size: int, length: int, height: int, width: int) -> torch.Tensor:
    """A latent of zeros for a video of ``length`` frames of ``height`` x ``width`` pixels."""
    size = frames_to_latent_t(length), height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION
    return torch.zeros(batch_size, 16, *size, device=comfy.model_management.intermediate_device())


def auto_noise(model, sample_posterior: bool) -> tuple[float, str]:
    """The noise augmentation that a MODEL asks for, and the reason."""
    if sample_posterior:
        return 0.0, "the start of video to video gets none"
    if model is None:
        return 0.0, "no model is connected"
    noise = model_of(model).config.reference_noise
    return noise, "the model's configuration asks for it" if noise else "the model's configuration asks for none"


class VAEEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "latent",
            "encode video, image to latent, video to video, v2v, vid2vid, mask video, inpaint, CogVideoImageEncode, "
            "CogVideoImageEncodeFunInP, CogVideoXFunV2VSampler",
            node_id="CogVideoXFunVAEEncode",
            display_name="CogVideoX-Fun VAE Encode",
            description="Encode a video. With a mask, what is to be generated is painted black, as InP models expect.",
            inputs=[
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("video", tooltip="RGB frames: width and height multiples of 16, 4n + 1 frames."),
                *common.tile_inputs(),
                common.number(
                    "noise_augmentation",
                    (-1.0, -1.0, 1.0, 0.0001),
                    "Noise on the kept pixels, as a standard deviation. -1 = auto: 0.0563 if the connected model asks "
                    "for it (V1.1 InP models do), else 0.",
                    round=False,
                ),
                # fixed: with a new seed after every run the video would be encoded again every time
                common.seed_input(
                    "noise_seed",
                    "Seed of the noise augmentation and of sample_posterior. Use another seed than the sampler's: "
                    "equal seeds give equal noise.",
                    changes=False,
                ),
                io.Mask.Input(
                    "mask", optional=True, tooltip=f"{common.MASK_TOOLTIP} One frame, or as many as the video."
                ),
                io.Boolean.Input(
                    "sample_posterior",
                    default=False,
                    optional=True,
                    tooltip="Draw the latent from the VAE's distribution, as VideoX-Fun does for video to video.",
                ),
                io.Model.Input(
                    "model", optional=True, tooltip="The model that samples the video, for the auto noise."
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For Inpaint Conditioning, or the sampler.")],
        )

    @classmethod
    def execute(
        cls,
        # what
        vae,
        video,
        # how
        tile_size=0,
        overlap=64,
        noise_augmentation=-1.0,
        noise_seed=0,
        mask=None,
        sample_posterior=False,
        model=None,
    ) -> io.NodeOutput:
        common.check_numbers(noise_augmentation=noise_augmentation)
        check_vae(vae)
        check_image(video, "video")
        if noise_augmentation < 0:
            noise_augmentation, reason = auto_noise(model, sample_posterior)
            text = f"noise augmentation: {noise_augmentation:g}, {reason}"
            log.info(text)
            show_message(text)
        video = video[: fit_length(len(video))]
        length, height, width, _ = video.shape
        check_size(width, height)
        if mask is not None:
            mask = fit_mask(mask, length, height, width)
            if not mask.any():
                log.warning("the mask keeps everything: nothing will be generated (1, white, is what is generated)")
            if mask.all():
                return io.NodeOutput({"samples": empty_latent(1, length, height, width)})
        pixels = reference_pixels(video, mask, noise_augmentation, noise_seed)
        pixels = pixels.add_(1).div_(2)  # ComfyUI's VAE takes 0..1
        tile, overlap = common.fit_tiles(tile_size, overlap)
        if sample_posterior:
            samples = vae.encode_draw(pixels, noise_seed, tile, overlap)
        else:
            samples = vae.encode_tiled(pixels, tile_x=tile, overlap=overlap)
        return io.NodeOutput({"samples": samples})


class VAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "latent",
            "decode video, latent to video, latent to image, CogVideoDecode, tiled decode",
            node_id="CogVideoXFunVAEDecode",
            display_name="CogVideoX-Fun VAE Decode",
            description="Decode a video in chunks of frames. A longer video needs no more memory.",
            inputs=[
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Latent.Input("latent", tooltip="The latent from the sampler."),
                *common.tile_inputs(),
            ],
            outputs=[io.Image.Output(display_name="video", tooltip="Frames, 0 to 1.")],
        )

    @classmethod
    def execute(cls, vae, latent, tile_size=0, overlap=64) -> io.NodeOutput:
        check_vae(vae)
        latent_shape(latent, TO_DECODE)
        tile, overlap = (n // SPATIAL_COMPRESSION for n in common.fit_tiles(tile_size, overlap))
        video = vae.decode_tiled(latent["samples"], tile_x=tile, overlap=overlap)
        return io.NodeOutput(video.reshape(-1, *video.shape[-3:]))  # BTHWC -> (BT)HWC, as ComfyUI's node does


class EmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "latent",
            "empty, empty latent video, text to video, t2v, txt2vid, new latent, CogVideoXFunT2VSampler",
            node_id="CogVideoXFunEmptyLatent",
            display_name="CogVideoX-Fun Empty Latent",
            description="An empty latent, the start of text to video.",
            inputs=[
                *common.size_inputs(),
                common.length_input(),
                common.integer("batch_size", (1, 1, 64), "How many videos are sampled at once."),
                common.length_model_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For the sampler.")],
        )

    @classmethod
    def execute(cls, width=720, height=480, length=49, batch_size=1, model=None) -> io.NodeOutput:
        check_size(width, height)
        return io.NodeOutput({"samples": empty_latent(batch_size, fit_length(length, model), height, width)})

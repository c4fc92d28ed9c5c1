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

log = logging.getLogger(__name__)


def fit_length(length: int, model=None) -> int:
    """Round a length down to 4n + 1 and, given a model, to what it takes; changes are logged."""
    if model is None:
        return legal_length(length)
    return legal_length(length, *length_limits(model))


def latent_shape(latent: dict) -> tuple[int, ...]:
    """The shape of a video's LATENT, B 16 T h w.

    Raises:
        ValueError: it is of another family.
    """
    samples, ratio = latent["samples"], latent.get("downscale_ratio_spacial", SPATIAL_COMPRESSION)
    if samples.is_nested or samples.ndim != 5 or samples.shape[1] != 16 or ratio != SPATIAL_COMPRESSION:
        shape = "a list of tensors" if samples.is_nested else f"the shape {list(samples.shape)}"
        raise ValueError(
            f"the latent is of another family of models ({shape} at 1 / {ratio} of the video's size), expected "
            "[batch, 16, frames, height / 8, width / 8]: use CogVideoX-Fun Empty Latent for a new video, or "
            "CogVideoX-Fun VAE Encode"
        )
    return tuple(samples.shape)


def check_vae(vae) -> None:
    """Raise a ValueError unless a VAE is the pack's, which alone has the models' chunks and scaling."""
    if vae is None:
        raise ValueError("the VAE is empty: the model's folder has no vae, so load one with Load CogVideoX-Fun VAE")
    if not isinstance(vae, ComfyVAE):
        family = type(getattr(vae, "first_stage_model", vae)).__name__
        raise ValueError(f"the VAE is of another family ({family}): load the model's own with Load CogVideoX-Fun VAE")


def empty_latent(batch_size: int, latent_t: int, latent_h: int, latent_w: int) -> torch.Tensor:
    device = comfy.model_management.intermediate_device()
    return torch.zeros(batch_size, 16, latent_t, latent_h, latent_w, device=device)


def noise_of(model, sample_posterior: bool) -> tuple[float, str]:
    """The reference noise that a MODEL asks for, and why it is that."""
    if sample_posterior:
        return 0.0, "the start of video to video gets none"
    if model is None:
        return 0.0, "no model is connected"
    noise = model_of(model).config.reference_noise
    return noise, "the model's configuration asks for it" if noise else "the model's configuration asks for none"


def encode(
    # what
    vae,
    video,
    mask,
    # how
    tile_size: int,
    overlap: int,
    noise_augmentation: float,
    noise_seed: int,
    sample_posterior: bool,
) -> torch.Tensor:
    """A video, black where the mask generates, as an unscaled latent; zeros, without the VAE, if it keeps nothing."""
    check_vae(vae)
    check_image(video, "video")
    video = video[: fit_length(len(video))]
    length, height, width, _ = video.shape
    check_size(width, height)
    if mask is not None:
        mask = fit_mask(mask, length, height, width)
        if not mask.any():
            log.warning("the mask keeps everything: nothing will be generated (1, white, is what is generated)")
        if mask.all():
            grid = height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION
            return empty_latent(1, frames_to_latent_t(length), *grid)
    tile, overlap = common.fit_tiles(tile_size, overlap)
    pixels = (reference_pixels(video, mask, noise_augmentation, noise_seed) + 1) / 2  # a VAE of the host takes 0..1
    if sample_posterior:
        return vae.encode_draw(pixels, noise_seed, tile, overlap)
    return vae.encode_tiled(pixels, tile_x=tile, tile_y=tile, overlap=overlap) if tile else vae.encode(pixels)


class VAEEncode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunVAEEncode",
            search_aliases=(
                "encode video",
                "image to latent",
                "video to video",
                "v2v",
                "vid2vid",
                "mask video",
                "inpaint",
                "CogVideoImageEncode",
                "CogVideoImageEncodeFunInP",
                "CogVideoXFunV2VSampler",
            ),
            display_name="VAE Encode",
            category=f"{common.CATEGORY}/latent",
            description="Encode a video. With a mask, what is to be generated is black, which is how the InP models "
            "know their reference video.",
            inputs=[
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Image.Input("video", tooltip="Frames, RGB; width and height multiples of 16, 4n + 1 frames."),
                *common.tile_inputs(),
                io.Float.Input(
                    "noise_augmentation",
                    default=-1.0,
                    min=-1.0,
                    max=1.0,
                    step=0.0001,
                    round=False,
                    tooltip="Noise added to the kept pixels, as a standard deviation. -1 = auto: 0.0563 if the "
                    "configuration of the connected model asks for it, as V1.1's InP models do, else 0. The node "
                    "shows what it took.",
                ),
                # fixed: a seed that changed after every run would encode the video again every time
                common.seed_input(
                    "noise_seed",
                    "Seed of the noise augmentation and of sample_posterior.",
                    control_after_generate=False,
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip=f"{common.MASK_TOOLTIP} One frame, or as many as the video. If it keeps nothing, the "
                    "latent is zero and the VAE is not run.",
                ),
                io.Boolean.Input(
                    "sample_posterior",
                    default=False,
                    optional=True,
                    tooltip="Draw the latent from the VAE's distribution, by noise_seed, instead of taking its mode. "
                    "The authors do so for the start of video to video, and not for a reference or control video.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The model that samples the video. Its configuration says what auto noise is.",
                ),
            ],
            hidden=[io.Hidden.unique_id],
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
        shown = None
        if noise_augmentation < 0:
            noise_augmentation, reason = noise_of(model, sample_posterior)
            said = f"noise augmentation: {noise_augmentation:g}, {reason}"
            log.info(said)
            shown = common.show_text(cls, said)
        samples = encode(vae, video, mask, tile_size, overlap, noise_augmentation, noise_seed, sample_posterior)
        return io.NodeOutput({"samples": samples}, ui=shown)


class VAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunVAEDecode",
            search_aliases=("decode video", "latent to video", "latent to image", "CogVideoDecode", "tiled decode"),
            display_name="VAE Decode",
            category=f"{common.CATEGORY}/latent",
            description="Decode a video chunk by chunk; memory does not grow with its length.",
            inputs=[
                io.Vae.Input("vae", tooltip="The model's VAE."),
                io.Latent.Input("latent", tooltip="The latent that the sampler returned."),
                *common.tile_inputs(),
            ],
            outputs=[io.Image.Output(display_name="video", tooltip="Frames, 0 to 1.")],
        )

    @classmethod
    def execute(cls, vae, latent, tile_size=0, overlap=64) -> io.NodeOutput:
        check_vae(vae)
        latent_shape(latent)
        tile, overlap = (n // SPATIAL_COMPRESSION for n in common.fit_tiles(tile_size, overlap))
        samples = latent["samples"]
        video = vae.decode_tiled(samples, tile_x=tile, tile_y=tile, overlap=overlap) if tile else vae.decode(samples)
        return io.NodeOutput(video.reshape(-1, *video.shape[-3:]))  # BTHWC -> (BT)HWC, as the host's node does


class EmptyLatent(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunEmptyLatent",
            search_aliases=(
                "empty",
                "empty latent video",
                "text to video",
                "t2v",
                "txt2vid",
                "new latent",
                "CogVideoXFunT2VSampler",
            ),
            display_name="Empty Latent",
            category=f"{common.CATEGORY}/latent",
            description="The start of text to video: a latent without content.",
            inputs=[
                *common.size_inputs(),
                common.length_input(),
                io.Int.Input("batch_size", default=1, min=1, max=64, tooltip="How many videos are sampled at once."),
                common.optional_model_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For the sampler.")],
        )

    @classmethod
    def execute(cls, width=720, height=480, length=49, batch_size=1, model=None) -> io.NodeOutput:
        check_size(width, height)
        latent_t = frames_to_latent_t(fit_length(length, model))
        grid = height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION
        return io.NodeOutput({"samples": empty_latent(batch_size, latent_t, *grid)})

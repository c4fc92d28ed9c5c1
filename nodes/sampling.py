"""Noise to video: the Sampler and the Scheduler."""

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io
from torch import Tensor

from ..model_loading.comfyui.model import model_of
from ..model_loading.comfyui.samplers import (
    CogVideoXDDIM,
    DiffusersSampler,
    checked,
    run_sigmas,
    with_dynamic_guidance,
)
from ..sampling.diffusers_samplers import DIFFUSERS_SAMPLERS
from ..sampling.geometry import frames_to_latent_t, latent_t_to_frames
from ..sampling.masks import as_frames, mask_to_latent
from . import common
from .latents import latent_shape

DDIM = "cogvideox_ddim"


def sampler_names() -> list[str]:
    """All names, read at each call: other packs may add theirs after this one is imported."""
    return [DDIM, *comfy.samplers.SAMPLER_NAMES, *DIFFUSERS_SAMPLERS]


def cfg_input():
    tooltip = "Strength of the guidance; 1 = off and twice as fast."
    return common.number("cfg", (6.0, 0.0, 100.0, 0.1), tooltip, round=0.01)


def sampler_input():
    return common.choice(
        "sampler_name",
        sampler_names(),
        "cogvideox_ddim is VideoX-Fun's DDIM_Cog. cogvideox_ddim_origin is the default of its scripts, DDIM_Origin, "
        "and of its nodes, DDIM. They differ only on 2B models. All cogvideox_ names except cogvideox_ddim are "
        "diffusers' schedulers: they don't use the 2B models' SNR shift, and cogvideox_pndm needs 4 steps or more. "
        "The rest are ComfyUI's samplers.",
    )


def dynamic_cfg_input():
    tooltip = "Change cfg from step to step, like VideoX-Fun's use_dynamic_cfg."
    return io.Boolean.Input("dynamic_cfg", default=False, optional=True, tooltip=tooltip)


def noise_mask(latent: dict) -> Tensor | None:
    """A LATENT's noise mask as float, since ComfyUI can't resize bools; None if it has none.

    A mask with all frames of the video becomes [1, 1, T, h, w], as by Mask Resize 3D. ComfyUI would resize it evenly
    over time, but the first latent frame stands for one frame and the others for four: a first frame that is to be
    kept would be generated. One with the frames of all B videos of a batch, one after the other, as Repeat Latent
    Batch makes it, becomes [B, 1, T, h, w], and one with a picture for each video [B, 1, 1, h, w].
    """
    mask, (batch, _, latent_t, *size) = latent.get("noise_mask"), latent["samples"].shape
    if mask is None:
        return None
    if mask.ndim > 4 or (latent_t == 1 and (batch == 1 or len(mask) != batch)):
        return mask.float()
    if batch > 1 and len(mask) % batch == 0 and len(mask) != latent_t_to_frames(latent_t):
        videos = as_frames(mask.float()).chunk(batch)
        if len(videos[0]) in (1, latent_t):
            return torch.stack(videos)[:, None]
        if frames_to_latent_t(len(videos[0])) == latent_t:
            return torch.stack([mask_to_latent(video, latent_t, *size, soft=True) for video in videos])[:, None]
    if frames_to_latent_t(len(mask)) == latent_t:
        return mask_to_latent(as_frames(mask), latent_t, *size, soft=True)[None, None]
    return mask.float()


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "sampling",
            "ksampler, sample, denoise, generate, ddim, video to video, v2v, vid2vid, t2v, i2v, CogVideoSampler, "
            "CogVideoXFunT2VSampler, CogVideoXFunInpaintSampler, CogVideoXFunV2VSampler",
            node_id="CogVideoXFunSampler",
            display_name="CogVideoX-Fun Sampler",
            description="Sample a video with VideoX-Fun's DDIM, or with another sampler, on the model's own schedule.",
            inputs=[
                common.model_input(),
                *common.prompt_inputs(),
                io.Latent.Input("latent", tooltip="Empty for a new video, an encoded video for video to video."),
                common.seed_input("seed", "Seed of the noise, which is the same on every device.", changes=True),
                common.steps_input(),
                cfg_input(),
                sampler_input(),
                *common.schedule_inputs(),
                dynamic_cfg_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="For VAE Decode.")],
        )

    @classmethod
    def execute(
        cls,
        # what to sample
        model,
        positive,
        negative,
        latent,
        # how to sample
        seed=0,
        steps=50,
        cfg=6.0,
        sampler_name=DDIM,
        spacing="auto",
        denoise=1.0,
        dynamic_cfg=False,
    ) -> io.NodeOutput:
        common.check_numbers(cfg=cfg, denoise=denoise)
        common.one_of("sampler_name", sampler_name, sampler_names())
        common.one_of("spacing", spacing, common.SPACING_OPTIONS)
        latent_shape(latent)
        samples = latent["samples"].float()  # 0.3.64 and 0.8.0 draw the noise in its type, and fp16 overflows
        batch_index = latent.get("batch_index")
        sigmas = run_sigmas(model, steps, spacing, denoise)
        if len(sigmas) == 0:  # denoise 0 returns the input, as in KSampler
            return io.NodeOutput(latent)
        run = model_of(model).schedule, steps, spacing, denoise
        if sampler_name == DDIM:
            sampler = CogVideoXDDIM(*run)
        elif sampler_name in DIFFUSERS_SAMPLERS:
            # ComfyUI draws noise for all latents of a batch up to the last one wanted
            drawn = max(batch_index or [len(samples) - 1]) + 1
            sampler = DiffusersSampler(sampler_name, seed, drawn, *run)
        else:
            sampler = comfy.samplers.sampler_object(sampler_name)
        if dynamic_cfg and cfg > 1:
            model = with_dynamic_guidance(model, steps)
        samples = comfy.sample.sample_custom(
            model,
            comfy.sample.prepare_noise(samples, seed, batch_index),
            cfg,
            sampler,
            sigmas,
            positive,
            negative,
            samples,
            noise_mask=noise_mask(latent),
            callback=checked(latent_preview.prepare_callback(model, len(sigmas) - 1)),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        return io.NodeOutput({**latent, "samples": samples})


class Scheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "sampling",
            "sigmas, noise schedule, steps, basic scheduler, trailing, BasicScheduler",
            node_id="CogVideoXFunScheduler",
            display_name="CogVideoX-Fun Scheduler",
            description="The model's own noise schedule as SIGMAS, for SamplerCustom and SamplerCustomAdvanced.",
            inputs=[common.model_input(), common.steps_input(), *common.schedule_inputs()],
            outputs=[io.Sigmas.Output(display_name="SIGMAS", tooltip="Noise levels, descending, ending with 0.")],
        )

    @classmethod
    def execute(cls, model, steps=50, spacing="auto", denoise=1.0) -> io.NodeOutput:
        common.check_numbers(denoise=denoise)
        common.one_of("spacing", spacing, common.SPACING_OPTIONS)
        return io.NodeOutput(run_sigmas(model, steps, spacing, denoise))

"""Noise to video: the Sampler and the Scheduler."""

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io

from ..model_loading.comfyui.model import model_of
from ..model_loading.comfyui.samplers import (
    NOT_FINITE,
    CogVideoXDDIM,
    DiffusersSampler,
    checked,
    run_sigmas,
    with_dynamic_guidance,
)
from ..sampling.diffusers_samplers import DIFFUSERS_SAMPLERS
from . import common
from .latents import latent_shape

DDIM = "cogvideox_ddim"
SAMPLERS = [DDIM, *comfy.samplers.SAMPLER_NAMES, *DIFFUSERS_SAMPLERS]


class Sampler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunSampler",
            search_aliases=(
                "ksampler",
                "sample",
                "denoise",
                "generate",
                "ddim",
                "video to video",
                "v2v",
                "vid2vid",
                "t2v",
                "i2v",
                "CogVideoSampler",
                "CogVideoXFunT2VSampler",
                "CogVideoXFunInpaintSampler",
                "CogVideoXFunV2VSampler",
            ),
            display_name="Sampler",
            category=f"{common.CATEGORY}/sampling",
            description="Sample a video with the authors' DDIM, or with any sampler of the host over the model's own "
            "schedule.",
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX-Fun model."),
                io.Conditioning.Input("positive", tooltip="What the video should show."),
                io.Conditioning.Input("negative", tooltip="What the video should not show."),
                io.Latent.Input("latent", tooltip="Empty for a new video; an encoded video for video to video."),
                common.seed_input(
                    "seed",
                    "Seed of the noise. The same seed gives the same video on every device.",
                    control_after_generate=True,
                ),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Steps that are run."),
                io.Float.Input(
                    "cfg",
                    default=6.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="Strength of the guidance by the prompt. 1 turns it off and halves the time.",
                ),
                io.Combo.Input(
                    "sampler_name",
                    options=SAMPLERS,
                    default=DDIM,
                    tooltip="cogvideox_ddim is the authors' sampler, to the digit. The other names with cogvideox_ "
                    "are the schedulers of their recipes, from diffusers. Of all these only cogvideox_ddim knows the "
                    "SNR shift of the 2B models, as in the authors' code. cogvideox_pndm needs 4 steps or more. The "
                    "rest are the host's samplers, with the shift.",
                ),
                io.Combo.Input(
                    "spacing", options=common.SPACING_OPTIONS, default="auto", tooltip=common.SPACING_TOOLTIP
                ),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=common.DENOISE_TOOLTIP),
                io.Boolean.Input(
                    "dynamic_cfg",
                    default=False,
                    optional=True,
                    tooltip="Change the guidance from step to step as the authors' use_dynamic_cfg does.",
                ),
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
        common.one_of("sampler_name", sampler_name, SAMPLERS)
        common.one_of("spacing", spacing, common.SPACING_OPTIONS)
        latent_shape(latent)
        sigmas = run_sigmas(model, steps, spacing, denoise)
        run = model_of(model).schedule, steps, spacing, denoise
        if sampler_name == DDIM:
            sampler = CogVideoXDDIM(*run)
        elif sampler_name in DIFFUSERS_SAMPLERS:
            # as the host draws them: those of a batch that come before the last one wanted are drawn, too
            drawn = max(latent.get("batch_index") or [len(latent["samples"]) - 1]) + 1
            sampler = DiffusersSampler(sampler_name, seed, drawn, *run)
        else:
            sampler = comfy.samplers.sampler_object(sampler_name)
        if dynamic_cfg and cfg > 1:
            model = with_dynamic_guidance(model, steps)
        samples = latent["samples"]
        if not torch.isfinite(samples).all():
            raise ValueError("the given latent holds NaN or infinity: check the node that made it")
        if len(sigmas) == 0:  # denoise 0: as KSampler, nothing is done
            return io.NodeOutput({**latent, "samples": samples})
        noise = comfy.sample.prepare_noise(samples, seed, latent.get("batch_index"))
        samples = comfy.sample.sample_custom(
            model,
            noise,
            cfg,
            sampler,
            sigmas,
            positive,
            negative,
            samples,
            noise_mask=latent.get("noise_mask"),
            callback=checked(latent_preview.prepare_callback(model, len(sigmas) - 1)),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=seed,
        )
        if not torch.isfinite(samples).all():
            raise ValueError(NOT_FINITE)
        return io.NodeOutput({**latent, "samples": samples})


class Scheduler(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunScheduler",
            search_aliases=("sigmas", "noise schedule", "steps", "basic scheduler", "trailing", "BasicScheduler"),
            display_name="Scheduler",
            category=f"{common.CATEGORY}/sampling",
            description="The model's own noise schedule as SIGMAS, for SamplerCustom and SamplerCustomAdvanced.",
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX-Fun model."),
                io.Int.Input("steps", default=50, min=1, max=1000, tooltip="Steps that are run."),
                io.Combo.Input(
                    "spacing", options=common.SPACING_OPTIONS, default="auto", tooltip=common.SPACING_TOOLTIP
                ),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01, tooltip=common.DENOISE_TOOLTIP),
            ],
            outputs=[io.Sigmas.Output(display_name="SIGMAS", tooltip="Noise levels, descending, ending with 0.")],
        )

    @classmethod
    def execute(cls, model, steps=50, spacing="auto", denoise=1.0) -> io.NodeOutput:
        common.check_numbers(denoise=denoise)
        common.one_of("spacing", spacing, common.SPACING_OPTIONS)
        return io.NodeOutput(run_sigmas(model, steps, spacing, denoise))

"""The schedulers that the authors' recipes name, as diffusers has them.

Their configuration is the model's own, read as the authors read it: these classes know no SNR shift, so a 2B runs on
the unshifted schedule here (only `sampling.schedule.cogvideox_ddim` honours it). diffusers is imported when one runs.
"""

import inspect
from collections.abc import Callable

import torch

from .schedule import NoiseSchedule, is_new

RECIPES = {  # our name -> diffusers' class
    "cogvideox_ddim_origin": "DDIMScheduler",
    "cogvideox_euler": "EulerDiscreteScheduler",
    "cogvideox_euler_a": "EulerAncestralDiscreteScheduler",
    "cogvideox_dpm++": "DPMSolverMultistepScheduler",
    "cogvideox_pndm": "PNDMScheduler",
}


def make_scheduler(name: str, schedule: NoiseSchedule, spacing: str = "auto"):
    """A scheduler of diffusers over a model's schedule.

    Args:
        name: a key of `RECIPES`.

    Raises:
        RuntimeError: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise RuntimeError(
            f"the sampler {name} is diffusers', which can't be imported ({error}): install it into ComfyUI's Python "
            "with pip install diffusers, or choose cogvideox_ddim"
        ) from error
    config = schedule.to_config()
    if spacing != "auto":
        config["timestep_spacing"] = spacing
    return getattr(diffusers, RECIPES[name]).from_config(config)


def run_recipe(
    # what to sample
    name: str,
    schedule: NoiseSchedule,
    predict: Callable[[torch.Tensor, float], torch.Tensor],
    # from what
    noise: torch.Tensor,
    latent: torch.Tensor,
    seed: int,
    # how
    steps: int,
    spacing: str = "auto",
    denoise: float = 1.0,
    callback: Callable[[int, int, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Sample as the authors' pipelines do: the scheduler's start, its timesteps and its steps.

    Args:
        name: a key of `RECIPES`.
        predict: (x, timestep) -> the guided v-prediction of a variance-preserving latent; the timestep is 0..999 and
            can be a fraction (Euler, with linspace).
        noise: unit noise.
        latent: what is noised where ``denoise`` is below 1.
        seed: of Euler A's noise, drawn on the CPU.
        steps, denoise: see `NoiseSchedule.run_timesteps`.
        callback: called after each step with (step, total, denoised, x).
    """
    _, total = schedule.run_timesteps(steps, spacing, denoise)
    scheduler = make_scheduler(name, schedule, spacing)
    scheduler.set_timesteps(total)
    timesteps = scheduler.timesteps[(total - steps) * scheduler.order :]
    generator = torch.Generator("cpu").manual_seed(seed)
    random = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    if is_new(denoise):
        x = noise * scheduler.init_noise_sigma
    else:
        x = scheduler.add_noise(latent, noise, timesteps[:1])
        torch.randn(noise.shape, generator=generator)  # what the noise was drawn as: a step must not add it twice
    for step, timestep in enumerate(timesteps):
        scaled = scheduler.scale_model_input(x, timestep)
        v = predict(scaled, float(timestep))
        x = scheduler.step(v, timestep, x, **random).prev_sample
        if callback is not None:
            alpha = scheduler.alphas_cumprod[round(float(timestep))].item()
            callback(step, len(timesteps), alpha**0.5 * scaled - (1 - alpha) ** 0.5 * v, x)
    return x

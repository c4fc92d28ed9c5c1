"""The schedulers of diffusers that VideoX-Fun offers.

Their configuration is the model's own. These classes know no SNR shift, so a 2B runs on the unshifted schedule, as in
VideoX-Fun; only `sampling.schedule.cogvideox_ddim` uses the shift. diffusers is imported when one runs.
"""

import inspect
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .libraries import import_library
from .schedule import NoiseSchedule, starts_from_noise

PNDM_STEPS = 4  # its first four steps are Runge-Kutta's

DIFFUSERS_SAMPLERS = {  # our name -> diffusers' class
    "cogvideox_ddim_origin": "DDIMScheduler",
    "cogvideox_euler": "EulerDiscreteScheduler",
    "cogvideox_euler_a": "EulerAncestralDiscreteScheduler",
    "cogvideox_dpm++": "DPMSolverMultistepScheduler",
    "cogvideox_pndm": "PNDMScheduler",
}


def make_scheduler(name: str, schedule: NoiseSchedule, spacing: str = "auto"):
    """A scheduler of diffusers with a model's schedule; ``name`` is a key of `DIFFUSERS_SAMPLERS`."""
    config = schedule.to_config()
    del config["snr_shift_scale"]  # none of them knows it: diffusers would log that the configuration is wrong
    if spacing != "auto":
        config["timestep_spacing"] = spacing
    return getattr(import_library("diffusers"), DIFFUSERS_SAMPLERS[name]).from_config(config)


def generator_after(seed: int, shape: Sequence[int]) -> torch.Generator:
    """The state of the CPU generator after it drew noise of a shape from a seed.

    VideoX-Fun draws the start noise from a generator and passes the same generator to every step.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    torch.randn(shape, generator=generator)
    return generator


def alpha_at(alphas_cumprod: Sequence[float], timestep: float) -> float:
    """The signal power at a timestep; between two integers it follows from the interpolated sigma, as in Euler."""
    low = math.floor(timestep)
    if low == timestep:
        return alphas_cumprod[low]
    first, last = (math.sqrt((1 - alpha) / alpha) for alpha in alphas_cumprod[low : low + 2])
    return 1 / (1 + (first + (last - first) * (timestep - low)) ** 2)


def run_sampler(
    # what to sample
    name: str,
    schedule: NoiseSchedule,
    predict: Callable[[Tensor, float], Tensor],
    # from what
    noise: Tensor,
    latent: Tensor,
    generator: torch.Generator,
    # how
    steps: int,
    spacing: str = "auto",
    denoise: float = 1.0,
    callback: Callable[[int, int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Sample as VideoX-Fun's pipelines do: the scheduler's start, timesteps and steps.

    Args:
        name: a key of `DIFFUSERS_SAMPLERS`.
        predict: (x, timestep) -> the guided v-prediction of a variance-preserving latent. The timestep is 0..999; with
            Euler and linspace it can be a fraction.
        noise: unit noise.
        latent: what is noised where ``denoise`` is below 1.
        generator: Euler A draws its noise from it; see `generator_after`.
        steps, denoise: see `NoiseSchedule.run_timesteps`.
        callback: called after each step with (step, total, denoised, x).

    Raises:
        ValueError: a schedule too short for PNDM.
    """
    _, total = schedule.run_timesteps(steps, spacing, denoise)
    if name == "cogvideox_pndm" and total < PNDM_STEPS:
        raise ValueError(
            f"cogvideox_pndm has a schedule of {total} steps (steps / denoise), expected {PNDM_STEPS} or more: set "
            f"steps to {PNDM_STEPS} or more, or choose another sampler_name"
        )
    scheduler = make_scheduler(name, schedule, spacing)
    scheduler.set_timesteps(total)
    timesteps = scheduler.timesteps[(total - steps) * scheduler.order :]
    random = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
    if starts_from_noise(denoise):
        x = noise * scheduler.init_noise_sigma
    else:
        x = scheduler.add_noise(latent, noise, timesteps[:1])
    alphas = scheduler.alphas_cumprod.tolist()
    for step, timestep in enumerate(timesteps):
        scaled = scheduler.scale_model_input(x, timestep)
        v = predict(scaled, float(timestep))
        x = scheduler.step(v, timestep, x, **random).prev_sample
        if callback is not None:
            alpha = alpha_at(alphas, float(timestep))
            callback(step, len(timesteps), alpha**0.5 * scaled - (1 - alpha) ** 0.5 * v, x)
    return x

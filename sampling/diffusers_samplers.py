"""The schedulers that the authors' recipes name, as diffusers has them.

Their configuration is the model's own, read as the authors read it: these classes know no SNR shift, so a 2B runs on
the unshifted schedule here (only `sampling.schedule.cogvideox_ddim` honours it). diffusers is imported when one runs.
"""

import inspect
import math
from collections.abc import Callable, Sequence

import torch

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
    """A scheduler of diffusers over a model's schedule.

    Args:
        name: a key of `DIFFUSERS_SAMPLERS`.

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
    return getattr(diffusers, DIFFUSERS_SAMPLERS[name]).from_config(config)


def generator_after(seed: int, shape: Sequence[int]) -> torch.Generator:
    """The CPU generator that drew noise of a shape from a seed, in the state that the drawing left it in.

    The authors' pipelines draw the start noise from a generator and hand the same one to every step.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    torch.randn(shape, generator=generator)
    return generator


def alpha_at(alphas_cumprod: Sequence[float], timestep: float) -> float:
    """The signal power at a timestep. Between two whole ones it is that of the sigma in between, as in Euler."""
    low = math.floor(timestep)
    if low == timestep:
        return alphas_cumprod[low]
    first, last = (math.sqrt((1 - alpha) / alpha) for alpha in alphas_cumprod[low : low + 2])
    return 1 / (1 + (first + (last - first) * (timestep - low)) ** 2)


def run_sampler(
    # what to sample
    name: str,
    schedule: NoiseSchedule,
    predict: Callable[[torch.Tensor, float], torch.Tensor],
    # from what
    noise: torch.Tensor,
    latent: torch.Tensor,
    generator: torch.Generator,
    # how
    steps: int,
    spacing: str = "auto",
    denoise: float = 1.0,
    callback: Callable[[int, int, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """Sample as the authors' pipelines do: the scheduler's start, its timesteps and its steps.

    Args:
        name: a key of `DIFFUSERS_SAMPLERS`.
        predict: (x, timestep) -> the guided v-prediction of a variance-preserving latent; the timestep is 0..999 and
            can be a fraction (Euler, with linspace).
        noise: unit noise.
        latent: what is noised where ``denoise`` is below 1.
        generator: what Euler A draws its noise from: the one that drew ``noise``, see `generator_after`.
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

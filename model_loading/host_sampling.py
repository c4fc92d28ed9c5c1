"""The authors' DDIM as a sampler of the host, and the model's schedule as the host's SIGMAS."""

import comfy.samplers
import torch
from tqdm.auto import tqdm

from ..sampling.schedule import NoiseSchedule, add_noise, cogvideox_ddim, is_new
from .host_model import model_of


def run_sigmas(model, steps: int, spacing: str = "auto", denoise: float = 1.0) -> torch.Tensor:
    """The sigmas of a run, descending, with the final 0; empty at denoise 0.

    Args:
        model: a MODEL of this pack; a patched ``model_sampling`` is respected.
    """
    timesteps, _ = model_of(model).schedule.run_timesteps(steps, spacing, denoise)
    if not timesteps:
        return torch.FloatTensor([])
    table = model.get_model_object("model_sampling").sigma(torch.tensor(timesteps))
    return torch.cat([table.float().cpu(), torch.zeros(1)])


class CogVideoXDDIM(comfy.samplers.Sampler):
    """`cogvideox_ddim` over the host's guided model.

    The host works on variance-exploding latents and hands out the denoised one; this goes back to the
    variance-preserving latent and to v, so that step and start are the authors' to the digit: a new video starts from
    unit noise at every spacing, whatever its first timestep.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int, spacing: str = "auto", denoise: float = 1.0):
        self.timesteps, self.total_steps = schedule.run_timesteps(steps, spacing, denoise)
        self.from_noise = is_new(denoise)
        self.schedule = schedule

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        extra_args["denoise_mask"] = denoise_mask
        model = comfy.samplers.KSamplerX0Inpaint(model_wrap, sigmas)
        model.latent_image, model.noise = latent_image, noise
        model_sampling = model_wrap.inner_model.model_sampling
        alphas = getattr(model_sampling, "alphas_cumprod", None)
        if alphas is None:  # another schedule was patched in
            alphas = 1 / (model_sampling.sigmas.double() ** 2 + 1)

        def predict(x: torch.Tensor, timestep: int) -> torch.Tensor:
            sigma = model_sampling.sigmas[timestep].to(x)
            root = (sigma**2 + 1).sqrt()
            denoised = model(x * root, sigma.expand(x.shape[0]), **extra_args)
            return (x / root - denoised) * root / sigma

        x = noise if self.from_noise else add_noise(latent_image, noise, float(alphas[self.timesteps[0]]))
        with tqdm(total=len(self.timesteps), disable=disable_pbar) as bar:

            def on_step(step: int, denoised: torch.Tensor, x: torch.Tensor) -> None:
                bar.update()
                if callback is not None:
                    callback(step, denoised, x, len(self.timesteps))

            final = 1.0 if self.schedule.final_alpha_one else float(alphas[0])
            x = cogvideox_ddim(predict, x, self.timesteps, self.total_steps, alphas, final, on_step)
        if denoise_mask is not None:  # the last step can end above timestep 0, with noise left in what is kept
            x = x * denoise_mask + latent_image * (1 - denoise_mask)
        return x

"""The authors' samplers as samplers of the host, and the model's schedule as the host's SIGMAS."""

import math

import comfy.samplers
import torch
from tqdm.auto import tqdm

from ..sampling.recipes import run_recipe
from ..sampling.schedule import NoiseSchedule, add_noise, cogvideox_ddim, dynamic_guidance, is_new
from .host_model import TIMESTEP, model_of

NOT_FINITE = (
    "the sampled latent holds NaN or infinity: if weight_dtype is fp16, set it to bf16; otherwise check the LoRAs and "
    "the model's file"
)


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


class OnTimesteps(comfy.samplers.Sampler):
    """A sampler of the authors' over the host's guided model.

    The host works on variance-exploding latents and hands out the denoised one; this goes back to the
    variance-preserving latent and to v, so that step and start are the authors' to the digit.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int, spacing: str = "auto", denoise: float = 1.0):
        self.schedule, self.steps, self.spacing, self.denoise = schedule, steps, spacing, denoise

    def run(self, predict, noise, latent, alphas, callback) -> torch.Tensor:
        """The latent at the end.

        Args:
            predict: (x, timestep) -> the guided v.
            alphas: signal power per timestep of the model.
            callback: (step, total, denoised, x).
        """
        raise NotImplementedError

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

        table = model_sampling.sigmas.tolist()  # once: a number of the card's makes the CPU wait for it

        def predict(x: torch.Tensor, timestep: float) -> torch.Tensor:
            sigma = table[round(timestep)]
            root = math.hypot(sigma, 1)
            args = extra_args if timestep == round(timestep) else at_timestep(extra_args, timestep)
            denoised = model(x * root, x.new_full(x.shape[:1], sigma), **args)
            return torch.sub(x, denoised, alpha=root).div_(sigma)

        with tqdm(total=self.steps, disable=disable_pbar) as bar:

            def on_step(step: int, total: int, denoised: torch.Tensor, x: torch.Tensor) -> None:
                bar.total = total
                bar.update()
                if callback is not None:
                    callback(step, denoised, x, total)

            x = self.run(predict, noise, latent_image, alphas, on_step)
        if denoise_mask is not None:  # the last step can end above timestep 0, with noise left in what is kept
            x = x * denoise_mask + latent_image * (1 - denoise_mask)
        return x


class CogVideoXDDIM(OnTimesteps):
    """`cogvideox_ddim`: a new video starts from unit noise at every spacing, whatever its first timestep."""

    def run(self, predict, noise, latent, alphas, callback) -> torch.Tensor:
        timesteps, total = self.schedule.run_timesteps(self.steps, self.spacing, self.denoise)
        x = noise if is_new(self.denoise) else add_noise(latent, noise, float(alphas[timesteps[0]]))
        final = 1.0 if self.schedule.final_alpha_one else float(alphas[0])

        def on_step(step, denoised, x):
            callback(step, len(timesteps), denoised, x)

        return cogvideox_ddim(predict, x, timesteps, total, alphas, final, on_step)


class Recipe(OnTimesteps):
    """A scheduler of diffusers, see `sampling.recipes`."""

    def __init__(self, name: str, seed: int, *args):
        super().__init__(*args)
        self.name, self.seed = name, seed

    def run(self, predict, noise, latent, alphas, callback) -> torch.Tensor:
        return run_recipe(
            self.name, self.schedule, predict, noise, latent, self.seed,
            self.steps, self.spacing, self.denoise, callback,
        )  # fmt: skip


def checked(callback):
    """A callback of the host's samplers, (step, denoised, x, total), that first looks for NaN and infinity.

    What it looks at is the denoised latent, which is the model's answer in every sampler. A sampler that asks twice a
    step, such as heun, shows what its second answer brought at the next step.

    Raises:
        ValueError: from the callback, at the first step that holds either; the message counts from 1.
    """

    def on_step(step: int, denoised: torch.Tensor, x: torch.Tensor, total: int) -> None:
        # one number a step; a sum can overflow where every value is finite
        if not (torch.isfinite(denoised.sum()) or torch.isfinite(denoised).all()):
            of = f" of {total}" if step < total else ""  # dpm_adaptive takes as many as it likes
            raise ValueError(f"step {step + 1}{of}: {NOT_FINITE}")
        callback(step, denoised, x, total)

    return on_step


def at_timestep(extra_args: dict, timestep: float) -> dict:
    """A sampler's arguments with a timestep between two of the host's whole ones."""
    options = dict(extra_args["model_options"])
    options["transformer_options"] = {**options.get("transformer_options", {}), TIMESTEP: timestep}
    return {**extra_args, "model_options": options}


def with_dynamic_guidance(model, steps: int):
    """A clone of a MODEL whose guidance changes over the run, see `dynamic_guidance`.

    Raises:
        ValueError: another node has set how the MODEL is guided.
    """
    if "sampler_cfg_function" in model.model_options:
        raise ValueError("dynamic_cfg is on, but another node has set the MODEL's guidance: remove one of the two")
    patched = model.clone()

    def guide(args: dict) -> torch.Tensor:
        # not of the clone: one that its own options hold lives on until Python collects its cycle, and the host then
        # takes the model that it came from for a leak
        sampling = args["model"].model_sampling
        whole = float(sampling.timestep(args["sigma"].flatten()[:1]))
        timestep = args["model_options"].get("transformer_options", {}).get(TIMESTEP, whole)
        scale = dynamic_guidance(args["cond_scale"], timestep, steps)
        return args["uncond"] + scale * (args["cond"] - args["uncond"])

    patched.set_model_sampler_cfg_function(guide)
    return patched

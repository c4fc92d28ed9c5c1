"""VideoX-Fun's samplers as samplers of ComfyUI, and the model's schedule as ComfyUI's SIGMAS."""

import math

import comfy.samplers
import torch
from tqdm.auto import tqdm

from ...sampling.diffusers_samplers import alpha_at, generator_after, make_scheduler, run_sampler
from ...sampling.schedule import NoiseSchedule, add_noise, dynamic_guidance, run_ddim
from .model import STEP, TIMESTEP, model_of

NOT_FINITE = (
    "the sampled latent holds NaN or infinity: if the model computes in float16 (the log says so when it is loaded), "
    "set weight_dtype to bf16; otherwise check the LoRAs, the model's file, and the latents and images that went in"
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
    """A sampler of VideoX-Fun's over ComfyUI's guided model.

    ComfyUI works on variance-exploding latents and returns the denoised one. This converts back to the
    variance-preserving latent and to v, so that start and steps equal VideoX-Fun's to the digit.
    """

    def __init__(self, schedule: NoiseSchedule, steps: int, spacing: str = "auto", denoise: float = 1.0):
        self.schedule, self.steps, self.spacing, self.denoise = schedule, steps, spacing, denoise

    def table(self, model_sampling) -> torch.Tensor:
        """The model's sigma per timestep of training, also where its own list is shorter (50, in ComfyUI's "lcm")."""
        sigmas, count = model_sampling.sigmas, self.schedule.num_timesteps
        return sigmas if len(sigmas) == count else model_sampling.sigma(torch.arange(count))

    def alphas(self, model_sampling) -> torch.Tensor:
        """Signal power per timestep of the schedule that is run."""
        raise NotImplementedError

    def run(self, predict, noise, latent, alphas, callback) -> torch.Tensor:
        """The latent at the end.

        Args:
            predict: (x, timestep) -> the guided v.
            alphas: see above.
            callback: (step, total, denoised, x).
        """
        raise NotImplementedError

    def sample(
        self, model_wrap, sigmas, extra_args, callback, noise, latent_image=None, denoise_mask=None, disable_pbar=False
    ):
        model_sampling = model_wrap.inner_model.model_sampling
        alphas = self.alphas(model_sampling)
        # once a run: reading a number from the GPU waits for the GPU
        powers, table, levels = alphas.tolist(), self.table(model_sampling).tolist(), sigmas.tolist()

        def ask(x: torch.Tensor, sigma: torch.Tensor, timestep: float) -> torch.Tensor:
            """The guided v from ComfyUI's model, at its sigma for the timestep."""
            level = table[round(timestep)]
            root = math.hypot(level, 1)
            step = min(range(len(levels)), key=lambda i: abs(levels[i] - level))
            args = with_options(extra_args, {TIMESTEP: timestep, STEP: step})
            denoised = model_wrap(x * root, sigma, **args)
            return torch.sub(x, denoised, alpha=root).div_(level)

        def predict(x: torch.Tensor, timestep: float) -> torch.Tensor:
            sigma = x.new_full(x.shape[:1], table[round(timestep)])
            if denoise_mask is None:
                return ask(x, sigma, timestep)
            # as ComfyUI's KSamplerX0Inpaint, but on the schedule that is run, which need not be the model's
            mask = denoise_mask
            if change := extra_args["model_options"].get("denoise_mask_function"):
                mask = change(sigma, mask, extra_options={"model": model_wrap, "sigmas": sigmas})
            alpha = alpha_at(powers, timestep)
            signal, rest = math.sqrt(alpha), math.sqrt(1 - alpha)
            given = x * mask + add_noise(latent_image, noise, alpha) * (1 - mask)
            denoised = signal * given - rest * ask(given, sigma, timestep)
            return (signal * x - denoised * mask - latent_image * (1 - mask)) / rest

        with tqdm(total=self.steps, disable=disable_pbar) as bar:

            def on_step(step: int, total: int, denoised: torch.Tensor, x: torch.Tensor) -> None:
                bar.total = total
                bar.update()
                if callback is not None:
                    callback(step, denoised, x, total)

            x = self.run(predict, noise, latent_image, alphas, on_step)
        if denoise_mask is not None:  # the last step can end above timestep 0, with noise left in what is kept
            x = torch.where(denoise_mask == 0, latent_image, x)  # where the mask is soft, predict has mixed the two
        return x


class CogVideoXDDIM(OnTimesteps):
    """VideoX-Fun's DDIM, see `sampling.schedule.run_ddim`, on the alphas of the MODEL's own or patched schedule."""

    def alphas(self, model_sampling) -> torch.Tensor:
        alphas = getattr(model_sampling, "alphas_cumprod", None)
        if alphas is None:  # another schedule was patched in
            alphas = 1 / (self.table(model_sampling).cpu().double() ** 2 + 1)  # not every GPU has float64
        return alphas

    def run(self, predict, noise, latent, alphas, callback) -> torch.Tensor:
        how = self.steps, self.spacing, self.denoise, callback
        return run_ddim(self.schedule, predict, noise, latent, *how, alphas_cumprod=alphas)


class DiffusersSampler(OnTimesteps):
    """A scheduler of diffusers, see `sampling.diffusers_samplers`.

    Args:
        seed, drawn: what the noise was drawn from, and of how many latents; of a batch, some may be left.
    """

    def __init__(self, name: str, seed: int, drawn: int, *args):
        super().__init__(*args)
        self.name, self.seed, self.drawn = name, seed, drawn

    def alphas(self, model_sampling) -> torch.Tensor:
        return make_scheduler(self.name, self.schedule).alphas_cumprod

    def run(self, predict, noise, latent, alphas, callback) -> torch.Tensor:
        generator = generator_after(self.seed, (self.drawn, *noise.shape[1:]))
        return run_sampler(
            self.name, self.schedule, predict, noise, latent, generator,
            self.steps, self.spacing, self.denoise, callback,
        )  # fmt: skip


def checked(callback):
    """A callback of ComfyUI's samplers, (step, denoised, x, total), that first looks for NaN and infinity.

    It checks the denoised latent, which is the model's result in every sampler. A sampler that calls the model twice a
    step, such as heun, shows the second result at the next step.

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


def with_options(extra_args: dict, options: dict) -> dict:
    """A sampler's arguments with more transformer_options."""
    model_options = dict(extra_args["model_options"])
    model_options["transformer_options"] = {**model_options.get("transformer_options", {}), **options}
    return {**extra_args, "model_options": model_options}


def with_dynamic_guidance(model, steps: int):
    """A clone of a MODEL whose guidance changes over the run, see `dynamic_guidance`.

    Raises:
        ValueError: another node has set how the MODEL is guided.
    """
    if "sampler_cfg_function" in model.model_options:
        raise ValueError("dynamic_cfg is on, but another node has set the MODEL's guidance: remove one of the two")
    patched = model.clone()

    def guide(args: dict) -> torch.Tensor:
        timestep = args["model_options"].get("transformer_options", {}).get(TIMESTEP)
        if timestep is None:  # ComfyUI's own samplers give it only as a tensor on the GPU
            # Take the model from the arguments. A reference to the clone in its own options would be a cycle, and
            # ComfyUI would report the model as leaked until Python collects it.
            timestep = float(args["model"].model_sampling.timestep(args["sigma"].flatten()[:1]))
        scale = dynamic_guidance(args["cond_scale"], timestep, steps)
        return torch.lerp(args["uncond_denoised"], args["cond_denoised"], scale)

    # Not as the MODEL's cfg function: that gets differences from x, which is coarse in float32 at the first sigmas.
    # Before the functions of other nodes, which change what guidance gave.
    others = patched.model_options.get("sampler_post_cfg_function", [])
    patched.model_options["sampler_post_cfg_function"] = [guide, *others]
    return patched

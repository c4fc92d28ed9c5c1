"""The noise schedule that the models were trained with, and VideoX-Fun's DDIM."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

SPACINGS = ("trailing", "linspace", "leading")

# The VE sigma of a timestep without signal is infinite. ComfyUI's samplers start at 2**14 instead. ComfyUI's own
# zero-terminal schedules start at 4518; the larger value halves the distance to VideoX-Fun's DDIM, and scaling float32
# noise by a power of two loses nothing.
TERMINAL_SIGMA = 2.0**14

FIXED_CONFIG = {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}  # of every CogVideoX model
CONFIG_NAMES = {  # fields of NoiseSchedule that have another name in scheduler_config.json
    "snr_shift": "snr_shift_scale",
    "spacing": "timestep_spacing",
    "num_timesteps": "num_train_timesteps",
    "zero_terminal_snr": "rescale_betas_zero_snr",
    "final_alpha_one": "set_alpha_to_one",
}


def starts_from_noise(denoise: float) -> bool:
    """Whether a run starts from noise alone and not from a noised latent. The bound is that of ComfyUI's KSampler."""
    return denoise > 0.9999


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """The values of a scheduler configuration (``scheduler/scheduler_config.json``) that define the schedule."""

    snr_shift: float = 1.0
    spacing: str = "trailing"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_timesteps: int = 1000
    zero_terminal_snr: bool = True
    steps_offset: int = 0
    final_alpha_one: bool = True
    clip_sample: bool = False  # only DDIM (Origin) reads it

    def __post_init__(self):
        if self.spacing not in SPACINGS:
            raise ValueError(f"timestep_spacing is {self.spacing!r}, expected one of {', '.join(SPACINGS)}")
        fine = 0 < self.snr_shift < math.inf and 0 < self.beta_start < self.beta_end < 1
        if not (fine and 1 < self.num_timesteps <= 10_000 and 0 <= self.steps_offset < self.num_timesteps):
            raise ValueError(f"no noise schedule can be made of {self}")

    @classmethod
    def from_config(cls, config: Mapping, default: "NoiseSchedule") -> "NoiseSchedule":
        """Read a diffusers scheduler configuration; missing values come from ``default``.

        Raises:
            ValueError: a prediction type or betas with which no CogVideoX model was trained, or an impossible value.
        """
        for key, expected in FIXED_CONFIG.items():
            if config.get(key, expected) != expected:
                raise ValueError(f"scheduler_config.json has {key} = {config[key]!r}, expected {expected!r}")
        names = {field.name: CONFIG_NAMES.get(field.name, field.name) for field in dataclasses.fields(cls)}
        given = {ours: config[theirs] for ours, theirs in names.items() if theirs in config}
        for name, value in given.items():
            kind = type(getattr(default, name))
            if not isinstance(value, int | float if kind is float else kind):
                raise ValueError(f"scheduler_config.json has {names[name]} = {value!r}, expected a {kind.__name__}")
        return dataclasses.replace(default, **given)

    def to_config(self) -> dict:
        """The diffusers configuration of this schedule."""
        values = {CONFIG_NAMES.get(name, name): value for name, value in dataclasses.asdict(self).items()}
        return {**FIXED_CONFIG, **values}

    def alphas_cumprod(self) -> Tensor:
        """Signal power per timestep, [num_timesteps], float64.

        The square roots of the betas are linear. The SNR is divided by ``snr_shift``. With zero-terminal SNR, the
        roots are then shifted and scaled so that the last is exactly 0 (Lin et al. 2023, algorithm 1).
        """
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_timesteps, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, dim=0)
        alphas = alphas / (self.snr_shift + (1 - self.snr_shift) * alphas)
        if self.zero_terminal_snr:
            roots = alphas.sqrt()
            alphas = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        return alphas

    def sigmas(self) -> Tensor:
        """VE noise per timestep, ascending, [num_timesteps], float32: ``sqrt((1 - a) / a)``."""
        alphas = self.alphas_cumprod().clamp(min=1 / (1 + TERMINAL_SIGMA**2))
        return ((1 - alphas) / alphas).sqrt().float()

    def timesteps(self, steps: int, spacing: str = "auto") -> list[int]:
        """The timesteps of a run, descending, as diffusers' ``set_timesteps`` gives them.

        Args:
            steps: 1..num_timesteps.
            spacing: trailing, linspace, leading, or auto for the model's own.
        """
        if not 1 <= steps <= self.num_timesteps:
            raise ValueError(f"steps is {steps}, expected 1 to {self.num_timesteps}")
        spacing = self.spacing if spacing == "auto" else spacing
        if spacing not in SPACINGS:
            raise ValueError(f"spacing is {spacing!r}, expected one of {', '.join(SPACINGS)}")
        total = self.num_timesteps
        if spacing == "trailing":  # a floating-point arange can give one value too many
            return [int(t) - 1 for t in np.round(np.arange(total, 0, -total / steps))[:steps]]
        if spacing == "linspace":
            return [int(t) for t in np.linspace(0, total - 1, steps).round()[::-1]]
        return [min(i * (total // steps) + self.steps_offset, total - 1) for i in reversed(range(steps))]

    def run_timesteps(self, steps: int, spacing: str = "auto", denoise: float = 1.0) -> tuple[list[int], int]:
        """The timesteps of a run, and the number of steps of the whole schedule.

        ``steps`` and ``denoise`` mean what they mean in ComfyUI's KSampler: the last ``steps`` timesteps of a schedule
        of ``steps / denoise``, rounded down, are run. VideoX-Fun's "10 steps at strength 0.7" are 7 at denoise 0.7.
        """
        if denoise <= 0:
            return [], steps
        total = steps if starts_from_noise(denoise) else int(steps / denoise + 1e-9)  # 28 / 0.56 is a little below 50
        if total > self.num_timesteps:
            raise ValueError(
                f"{steps} steps at denoise {denoise} are the end of a schedule of {total}, expected at most "
                f"{self.num_timesteps}: take fewer steps or a higher denoise"
            )
        return self.timesteps(total, spacing)[-steps:], total


def run_ddim(
    # what to sample
    schedule: NoiseSchedule,
    predict: Callable[[Tensor, int], Tensor],
    # from what
    noise: Tensor,
    latent: Tensor | None,
    # how
    steps: int,
    spacing: str = "auto",
    denoise: float = 1.0,
    callback: Callable[[int, int, Tensor, Tensor], None] | None = None,
    alphas_cumprod: Tensor | None = None,
) -> Tensor:
    """A run of VideoX-Fun's DDIM. A new video starts from unit noise at every spacing, whatever its first timestep.

    Args:
        predict: see `cogvideox_ddim`.
        noise: unit noise, B C T h w.
        latent: the scaled latent that is noised where ``denoise`` is below 1, of the same shape.
        steps, denoise: see `NoiseSchedule.run_timesteps`.
        callback: see `cogvideox_ddim`.
        alphas_cumprod: in place of the schedule's own.

    Returns:
        The scaled latent, B C T h w.

    Raises:
        ValueError: steps, spacing and denoise that the schedule does not have.
    """
    alphas = schedule.alphas_cumprod() if alphas_cumprod is None else alphas_cumprod
    timesteps, total = schedule.run_timesteps(steps, spacing, denoise)
    x = noise if starts_from_noise(denoise) else add_noise(latent, noise, float(alphas[timesteps[0]]))
    final = 1.0 if schedule.final_alpha_one else float(alphas[0])
    return cogvideox_ddim(predict, x, timesteps, total, alphas, final, callback)


def cogvideox_ddim(
    predict: Callable[[Tensor, int], Tensor],
    x: Tensor,
    timesteps: list[int],
    total_steps: int,
    alphas_cumprod: Tensor,
    final_alpha: float = 1.0,
    callback: Callable[[int, int, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """VideoX-Fun's DDIM (diffusers' ``CogVideoXDDIMScheduler``) on variance-preserving latents.

    It steps from t to ``t - num_timesteps // total_steps`` whatever the next timestep in the list is. No list of
    sigmas can express that.

    Args:
        predict: (x, timestep) -> the guided v-prediction.
        x: the start: unit noise, or ``sqrt(a) * latent + sqrt(1 - a) * noise`` at the first timestep.
        timesteps: descending.
        total_steps: of the whole schedule; ``timesteps`` may be its end.
        alphas_cumprod: signal power per timestep.
        final_alpha: signal power before timestep 0.
        callback: called after each step with (step, total, denoised, x).
    """
    alphas = alphas_cumprod.tolist()
    stride = len(alphas) // total_steps
    for step, t in enumerate(timesteps):
        alpha = alphas[t]
        alpha_prev = alphas[t - stride] if t >= stride else final_alpha
        v = predict(x, t)
        denoised = torch.sub(math.sqrt(alpha) * x, v, alpha=math.sqrt(1 - alpha))
        a = math.sqrt((1 - alpha_prev) / (1 - alpha))
        b = math.sqrt(alpha_prev) - math.sqrt(alpha) * a
        x = torch.add(a * x, denoised, alpha=b)
        if callback is not None:
            callback(step, len(timesteps), denoised, x)
    return x


def dynamic_guidance(guidance: float, timestep: float, steps: int) -> float:
    """VideoX-Fun's ``use_dynamic_cfg``: ``1 + g (1 - cos(pi ((N - t) / N) ** 5)) / 2``.

    As in its code, t is the timestep (0..999) and not the step. With few steps the guidance therefore swings between 1
    and 1 + g until the timesteps fall below N.
    """
    return 1 + guidance * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2


def add_noise(latent: Tensor, noise: Tensor, alpha_cumprod: float) -> Tensor:
    """A scaled latent noised to the level of a timestep."""
    return math.sqrt(alpha_cumprod) * latent + math.sqrt(1 - alpha_cumprod) * noise

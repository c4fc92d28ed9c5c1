"""The noise schedule that the models were trained with, and the authors' DDIM over it."""

import dataclasses
import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

SPACINGS = ("trailing", "linspace", "leading")

# The VE sigma of a timestep without any signal is infinite; 2**14 stands for it, so that the host's samplers can start
# there. The host's own zero-terminal schedules take 4518; the larger value halves the distance to the authors' DDIM
# (which is exact here), and a power of two loses nothing when noise is scaled by it in float32.
TERMINAL_SIGMA = 2.0**14


def starts_from_noise(denoise: float) -> bool:
    """Whether a run starts from noise alone rather than from a noised latent; the bound is the host's KSampler's."""
    return denoise > 0.9999


# A field of NoiseSchedule -> its name in scheduler_config.json, and what that file must say beside.
CONFIG_NAMES = {
    "snr_shift": "snr_shift_scale",
    "spacing": "timestep_spacing",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "num_timesteps": "num_train_timesteps",
    "zero_terminal_snr": "rescale_betas_zero_snr",
    "steps_offset": "steps_offset",
    "final_alpha_one": "set_alpha_to_one",
    "clip_sample": "clip_sample",
}
FIXED_CONFIG = {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear"}


@dataclasses.dataclass(frozen=True)
class NoiseSchedule:
    """A scheduler configuration (``scheduler/scheduler_config.json``) as far as it defines the schedule."""

    snr_shift: float = 1.0
    spacing: str = "trailing"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    num_timesteps: int = 1000
    zero_terminal_snr: bool = True
    steps_offset: int = 0
    final_alpha_one: bool = True
    clip_sample: bool = False  # of DDIM (Origin) alone

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, allowed = getattr(self, field.name), (field.type, int) if field.type is float else (field.type,)
            if type(value) not in allowed:
                raise ValueError(f"{field.name} of the noise schedule is {value!r}, expected a {field.type.__name__}")
        if self.spacing not in SPACINGS:
            raise ValueError(f"timestep_spacing is {self.spacing!r}, expected one of {', '.join(SPACINGS)}")
        if not (self.snr_shift > 0 and 0 < self.beta_start < self.beta_end < 1 and 1 < self.num_timesteps <= 10_000):
            raise ValueError(f"no noise schedule can be made of {self}")

    @classmethod
    def from_config(cls, config: Mapping, default: "NoiseSchedule") -> "NoiseSchedule":
        """Read a diffusers scheduler configuration; what it does not say comes from ``default``.

        Raises:
            ValueError: it asks for a prediction type or betas that no CogVideoX model was trained with, or a value is
                of the wrong type.
        """
        for key, expected in FIXED_CONFIG.items():
            if config.get(key, expected) != expected:
                raise ValueError(f"scheduler_config.json has {key} = {config[key]!r}, expected {expected!r}")
        given = {ours: config[theirs] for ours, theirs in CONFIG_NAMES.items() if theirs in config}
        return dataclasses.replace(default, **given)

    def to_config(self) -> dict:
        """The diffusers configuration of this schedule."""
        values = {theirs: getattr(self, ours) for ours, theirs in CONFIG_NAMES.items()}
        return {**FIXED_CONFIG, **values}

    def alphas_cumprod(self) -> torch.Tensor:
        """Signal power per timestep, [num_timesteps], float64.

        Betas linear in their roots; SNR divided by ``snr_shift``; then, with zero-terminal SNR, the roots shifted
        and scaled so that the last is exactly 0 (Lin et al. 2023, algorithm 1).
        """
        betas = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_timesteps, dtype=torch.float64) ** 2
        alphas = torch.cumprod(1 - betas, dim=0)
        alphas = alphas / (self.snr_shift + (1 - self.snr_shift) * alphas)
        if self.zero_terminal_snr:
            roots = alphas.sqrt()
            first, last = roots[0].clone(), roots[-1].clone()
            alphas = ((roots - last) * first / (first - last)) ** 2
        return alphas

    def sigmas(self) -> torch.Tensor:
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
        total = self.num_timesteps
        if spacing == "trailing":  # a floating-point arange can give one value too many
            return [int(t) - 1 for t in np.round(np.arange(total, 0, -total / steps))[:steps]]
        if spacing == "linspace":
            return [int(t) for t in np.linspace(0, total - 1, steps).round()[::-1]]
        if spacing == "leading":
            return [min(i * (total // steps) + self.steps_offset, total - 1) for i in reversed(range(steps))]
        raise ValueError(f"spacing is {spacing!r}, expected auto, {', '.join(SPACINGS)}")

    def run_timesteps(self, steps: int, spacing: str = "auto", denoise: float = 1.0) -> tuple[list[int], int]:
        """The timesteps of a run that starts part of the way, and the length of the whole schedule.

        ``steps`` and ``denoise`` mean what they mean in the host's KSampler: ``steps`` timesteps are run, the last of
        ``int(steps / denoise)``. The authors' "10 steps at strength 0.7" are 7 steps at denoise 0.7.
        """
        if denoise <= 0:
            return [], steps
        total = steps if starts_from_noise(denoise) else int(steps / denoise)
        if total > self.num_timesteps:
            raise ValueError(
                f"{steps} steps at denoise {denoise} are the end of a schedule of {total}, expected at most "
                f"{self.num_timesteps}: take fewer steps or a higher denoise"
            )
        return self.timesteps(total, spacing)[-steps:], total


def cogvideox_ddim(
    predict: Callable[[torch.Tensor, int], torch.Tensor],
    x: torch.Tensor,
    timesteps: list[int],
    total_steps: int,
    alphas_cumprod: torch.Tensor,
    final_alpha: float = 1.0,
    callback: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
) -> torch.Tensor:
    """The authors' DDIM (diffusers' ``CogVideoXDDIMScheduler``), on variance-preserving latents.

    It steps from t to ``t - num_timesteps // total_steps`` whatever the next timestep of the list is, which no list
    of sigmas can express.

    Args:
        predict: (x, timestep) -> the guided v-prediction.
        x: the start: unit noise, or ``sqrt(a) * latent + sqrt(1 - a) * noise`` at the first timestep.
        timesteps: descending.
        total_steps: of the whole schedule, of which ``timesteps`` may be the end.
        alphas_cumprod: signal power per timestep.
        final_alpha: signal power before timestep 0.
        callback: called after each step with (step, denoised, x).
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
            callback(step, denoised, x)
    return x


def dynamic_guidance(guidance: float, timestep: float, steps: int) -> float:
    """The authors' ``use_dynamic_cfg``: ``1 + g (1 - cos(pi ((N - t) / N) ** 5)) / 2``.

    As written there: t is the timestep, 0..999, and not the step, so with few steps the guidance swings between 1 and
    1 + g until the timesteps fall below N.
    """
    return 1 + guidance * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5.0)) / 2


def add_noise(latent: torch.Tensor, noise: torch.Tensor, alpha_cumprod: float) -> torch.Tensor:
    """A scaled latent noised to the level of a timestep."""
    return math.sqrt(alpha_cumprod) * latent + math.sqrt(1 - alpha_cumprod) * noise

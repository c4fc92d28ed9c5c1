"""Training of a LoRA with which few steps without guidance do what a guided teacher does in many.

The teacher is the model itself without the LoRA, so there is no second copy of it in memory. The few steps of a run
divide the schedule into phases, and in each phase one DDIM step of the student has to land where the teacher lands. If
the teacher's steps reach the end of the phase, this is progressive distillation (Salimans and Ho 2022). Otherwise the
student's own step goes on from where the teacher stops: consistency (LCM, Luo et al. 2023) within a phase, as in Wang
et al. 2024 (phased consistency models).
"""

import torch

from ...model_loading.networks.transformer import CogVideoXTransformer
from ...sampling.schedule import NoiseSchedule
from ..loop.config import FewSteps
from .encoders import Encoded
from .lora import without_lora
from .transformer import TransformerTask, levelled, noised


def turn(x: torch.Tensor, v: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """A DDIM step: ``cos(d) x - sin(d) v`` (Salimans and Ho 2022, appendix D).

    x at the angle p is ``cos(p) clean + sin(p) noise``, and v is its derivative, ``cos(p) noise - sin(p) clean``. The
    step goes from p to p - d.

    Args:
        x, v: B ...
        angle: d of each clip, [B].
    """
    angle = angle.view(-1, *[1] * (x.dim() - 1))
    return angle.cos() * x - angle.sin() * v


def run_angles(schedule: NoiseSchedule, steps: int) -> tuple[list[int], torch.Tensor]:
    """The timesteps of a run with trailing spacing, and the angles before each step and after the last one.

    The angles are those of `cogvideox_ddim`, [steps + 1], float64. They fall from pi / 2 (noise alone) to 0.

    Raises:
        ValueError: the steps do not divide the schedule, so a step would not end where the next one starts.
    """
    if schedule.num_timesteps % steps:
        raise ValueError(
            f"few_steps.teacher_steps is {steps}, expected a divisor of the schedule's {schedule.num_timesteps} "
            "timesteps"
        )
    alphas, timesteps = schedule.alphas_cumprod(), schedule.timesteps(steps, "trailing")
    final = torch.ones_like(alphas[:1]) if schedule.final_alpha_one else alphas[:1]
    powers = torch.cat([alphas[timesteps], final])
    return timesteps, torch.atan2((1 - powers).sqrt(), powers.sqrt())


class FewStepsTask(TransformerTask):
    """The squared distance between where the student and the teacher land at a phase's end, for encoded clips.

    It is divided by ``sin(d)^2``, where d is the turn of the whole phase. So for a clip at the start of its phase it
    is the squared error of the velocity.

    Args:
        transformer: with LoRA layers, which alone are trained.
        negative: the features of the teacher's negative prompt, [1, L, C].
        loss_level: see `levelled`.

    Raises:
        ValueError: the teacher's steps do not divide the schedule.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer,
        schedule: NoiseSchedule,
        negative: torch.Tensor,
        options: FewSteps,
        loss_level: float = 0.0,
    ):
        super().__init__(transformer, schedule.alphas_cumprod(), loss_level=loss_level)
        self.options, self.in_phase = options, options.teacher_steps // options.steps
        timesteps, angles = run_angles(schedule, options.teacher_steps)
        self.register_buffer("timesteps", torch.tensor([*timesteps, 0]), persistent=False)  # 0: of no step
        self.register_buffer("angles", angles, persistent=False)
        self.register_buffer("negative", negative, persistent=False)

    @property
    def whole_phases(self) -> bool:
        """Whether the teacher's steps reach the end of a phase from its start."""
        return self.options.steps_at_once >= self.in_phase

    def places(self, time: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Where clips are in the teacher's run, and where their phases end, as numbers of its steps, [B] each.

        Where the teacher runs through whole phases, clips are at their starts: the student steps from nowhere else.

        Args:
            time: uniform in 0..1, [B].
        """
        count, size = (self.options.steps, self.in_phase) if self.whole_phases else (self.options.teacher_steps, 1)
        place = (time * count).long().clamp(max=count - 1) * size
        return place, (place // self.in_phase + 1) * self.in_phase

    def forward(self, clips: Encoded) -> torch.Tensor:
        """The loss of each clip and noise, [B R]."""
        latent, noise, context, extra = self.repeated(clips)
        place, end = self.places(clips["time"].flatten())
        x = noised(latent, noise, self.alphas[self.timesteps[place]].float()[:, None, None, None, None])
        target = self.target(x, place, end, context, extra)
        distance = (self.step(x, place, end, context, extra) - target).square().flatten(1).mean(1)
        whole = self.angles[end - self.in_phase] - self.angles[end]
        return levelled(distance / whole.sin().square().float(), self.loss_level).view_as(clips["time"])

    def step(self, x: torch.Tensor, place: torch.Tensor, end: torch.Tensor, context, extra) -> torch.Tensor:
        """The student's step to the end of the phase."""
        v = self.transformer(x, self.timesteps[place], context, concat_latents=extra)
        return self.turned(x, v, place, end)

    def turned(self, x: torch.Tensor, v: torch.Tensor, place: torch.Tensor, end: torch.Tensor) -> torch.Tensor:
        return turn(x, v.float(), (self.angles[place] - self.angles[end]).float())

    @torch.no_grad()
    def target(self, x: torch.Tensor, place: torch.Tensor, end: torch.Tensor, context, extra) -> torch.Tensor:
        """Where the teacher's steps, and from there the student's, land at the end of the phase.

        A clip that is at the end already stays as it is: it turns by 0.
        """
        # Autocast of older PyTorch would keep the weights that it casts here, and the student would get no gradient.
        with torch.autocast(x.device.type, enabled=torch.is_autocast_enabled(x.device.type), cache_enabled=False):
            with without_lora(self.transformer):
                for _ in range(min(self.options.steps_at_once, self.in_phase)):
                    after = torch.minimum(place + 1, end)
                    x = self.turned(x, self.guided(x, self.timesteps[place], context, extra), place, after)
                    place = after
            return x if self.whole_phases else self.step(x, place, end, context, extra)

    def guided(self, x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, extra) -> torch.Tensor:
        """The teacher's velocity, with classifier-free guidance where it is not 1."""
        guidance = self.options.guidance
        if guidance == 1:
            return self.transformer(x, timestep, context, concat_latents=extra)
        text = torch.cat([self.negative.to(context).expand_as(context), context])
        extra = None if extra is None else torch.cat([extra, extra])
        v = self.transformer(torch.cat([x, x]), torch.cat([timestep, timestep]), text, concat_latents=extra)
        without, asked = v.float().chunk(2)
        return without + guidance * (asked - without)

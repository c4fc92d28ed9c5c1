"""The schedule and VideoX-Fun's DDIM against its numbers and against diffusers' own scheduler."""

import math

import pytest
import reference
import torch
from cogvideox_fun.sampling.schedule import NoiseSchedule, cogvideox_ddim
from diffusers import CogVideoXDDIMScheduler

SHIFTS = {"2b": 3.0, "5b": 1.0}


def toy(x: torch.Tensor, timestep: int) -> torch.Tensor:
    return 0.3 * x + 0.1 * math.sin(timestep)


@pytest.mark.parametrize("family", SHIFTS)
def test_alphas(family):
    expected = reference.load("schedules")[f"{family}.DDIM_Cog.alphas_cumprod"]
    alphas = NoiseSchedule(snr_shift=SHIFTS[family]).alphas_cumprod()
    assert (alphas - expected).abs().max() <= 1e-6  # theirs is stored in float32
    assert alphas[-1] == 0


@pytest.mark.parametrize("family", SHIFTS)
@pytest.mark.parametrize("steps", [4, 10])
def test_trajectory(family, steps):
    data, schedule = reference.load("schedules"), NoiseSchedule(snr_shift=SHIFTS[family])
    name = f"{family}.DDIM_Cog.N{steps}"
    timesteps = schedule.timesteps(steps, "trailing")
    assert timesteps == data[f"{name}.timesteps"].int().tolist()
    trajectory = [data[f"{name}.traj"][0]]
    cogvideox_ddim(
        toy,
        trajectory[0],
        timesteps,
        steps,
        schedule.alphas_cumprod(),
        callback=lambda _i, _n, _d, x: trajectory.append(x),
    )
    assert (torch.stack(trajectory) - data[f"{name}.traj"]).abs().max() <= 1e-5


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
@pytest.mark.parametrize("steps", [4, 10, 30, 50])
@pytest.mark.parametrize("shift", SHIFTS.values())
def test_ddim_equals_diffusers(spacing, steps, shift):
    scheduler = CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        clip_sample=False,
        snr_shift_scale=shift,
        timestep_spacing=spacing,
    )
    scheduler.set_timesteps(steps)
    schedule = NoiseSchedule(snr_shift=shift, spacing=spacing)
    assert schedule.timesteps(steps) == scheduler.timesteps.tolist()

    x = start = torch.randn(1, 16, 3, 6, 10, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        x = scheduler.step(toy(x, int(timestep)), timestep, x).prev_sample
    ours = cogvideox_ddim(toy, start, schedule.timesteps(steps), steps, schedule.alphas_cumprod())
    assert (ours - x).abs().max() <= 1e-5 * x.abs().max()


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
def test_timesteps_equal_diffusers_at_every_length(spacing):
    scheduler = CogVideoXDDIMScheduler(timestep_spacing=spacing)
    schedule = NoiseSchedule(spacing=spacing)
    for steps in range(1, 301):
        scheduler.set_timesteps(steps)
        assert schedule.timesteps(steps) == scheduler.timesteps.tolist()[:steps], steps

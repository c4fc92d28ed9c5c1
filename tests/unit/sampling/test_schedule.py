"""The noise schedule: its configuration, timesteps and sigmas."""

import pytest
from cogvideox_fun.sampling.schedule import NoiseSchedule


def test_from_config_reads_what_a_folder_says():
    config = {"timestep_spacing": "linspace", "snr_shift_scale": 3.0, "beta_end": 0.02, "_class_name": "X"}
    schedule = NoiseSchedule.from_config(config, NoiseSchedule())
    assert schedule == NoiseSchedule(snr_shift=3.0, spacing="linspace", beta_end=0.02)
    assert schedule.timesteps(4) == schedule.timesteps(4, "linspace") == [999, 666, 333, 0]


@pytest.mark.parametrize(
    "config, words",
    [
        ({"timestep_spacing": "random"}, "timestep_spacing is 'random'"),
        ({"prediction_type": "epsilon"}, "prediction_type = 'epsilon'"),
        ({"beta_schedule": "linear"}, "beta_schedule = 'linear'"),
        ({"snr_shift_scale": 0}, "no noise schedule"),
    ],
)
def test_configurations_that_no_model_has(config, words):
    with pytest.raises(ValueError, match=words):
        NoiseSchedule.from_config(config, NoiseSchedule())


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_out_of_range(steps):
    with pytest.raises(ValueError, match=f"steps is {steps}"):
        NoiseSchedule().timesteps(steps)


def test_denoise_means_what_it_means_in_ksampler():
    """All steps are run, the last of steps / denoise, rounded down."""
    schedule = NoiseSchedule()
    assert schedule.run_timesteps(4) == ([999, 749, 499, 249], 4)
    timesteps, total = schedule.run_timesteps(7, denoise=0.7)
    assert total == 10 and timesteps == schedule.timesteps(10)[3:]
    assert schedule.run_timesteps(28, denoise=0.56)[1] == 50, "28 / 0.56 is a little less in floating point"
    assert schedule.run_timesteps(4, denoise=0.0) == ([], 4)
    with pytest.raises(ValueError, match="600 steps at denoise 0.5 are the end of a schedule of 1200"):
        schedule.run_timesteps(600, denoise=0.5)


def test_sigmas_rise_to_the_terminal_value():
    sigmas = NoiseSchedule(snr_shift=3.0).sigmas()
    assert (sigmas[1:] > sigmas[:-1]).all()
    assert sigmas[-1].item() == 2**14

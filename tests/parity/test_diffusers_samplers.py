"""Whole runs of VideoX-Fun's other schedulers equal diffusers' classes driven by the same transformer.

The loop here is VideoX-Fun's; the configuration is the published one.
"""

import logging

import diffusers
import pytest
import torch
from cogvideox_fun.model_loading.standalone import Pipeline, open_whole
from cogvideox_fun.sampling.diffusers_samplers import (
    DIFFUSERS_SAMPLERS,
    alpha_at,
    make_scheduler,
    run_sampler,
)
from cogvideox_fun.sampling.schedule import NoiseSchedule
from pack import ROOT
from tiny_model import write_tiny_model

TOLERANCE = 1e-3
CLASSES = {
    "cogvideox_ddim_origin": diffusers.DDIMScheduler,
    "cogvideox_euler": diffusers.EulerDiscreteScheduler,
    "cogvideox_euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "cogvideox_dpm++": diffusers.DPMSolverMultistepScheduler,
    "cogvideox_pndm": diffusers.PNDMScheduler,
}
PUBLISHED = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "snr_shift_scale": 3.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return Pipeline.from_folder(write_tiny_model(tmp_path_factory.mktemp("samplers") / "model", "5b"))


@torch.no_grad()
def drive(scheduler, pipeline, texts, start, steps, strength, seed):
    """The start and the denoising loop of VideoX-Fun's pipelines: one generator for the start noise and the steps'."""
    scheduler.set_timesteps(steps)
    first = steps - min(int(steps * strength), steps)
    timesteps = scheduler.timesteps[first * scheduler.order :]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(start.shape, generator=generator)
    x = noise * scheduler.init_noise_sigma if strength == 1 else scheduler.add_noise(start, noise, timesteps[:1])
    for t in timesteps:
        scaled = scheduler.scale_model_input(torch.cat([x] * 2), t)
        uncond, cond = pipeline.transformer(scaled, t.expand(2), texts).chunk(2)
        extra = {"generator": generator} if not isinstance(scheduler, diffusers.PNDMScheduler) else {}
        x = scheduler.step(uncond + 6.0 * (cond - uncond), t, x, **extra, return_dict=False)[0]
    return x


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("steps, strength", [(4, 1.0), (10, 0.7)])
@pytest.mark.parametrize("name", DIFFUSERS_SAMPLERS)
def test_a_run_equals_diffusers_class(pipeline, name, steps, strength, spacing):
    noise = pipeline.noise(80, 48, 9, seed=5)
    start = torch.randn(noise.shape, generator=torch.Generator().manual_seed(3))
    positive, negative = pipeline.text_encoder("a red ball moves right"), pipeline.text_encoder("blurry")
    scheduler = CLASSES[name].from_config({**PUBLISHED, "timestep_spacing": spacing})
    expected = drive(scheduler, pipeline, torch.cat([negative, positive]), start, steps, strength, seed=5)
    run = int(steps * strength)
    ours = pipeline.sample(
        noise, positive, negative, start=start, steps=run, spacing=spacing, denoise=strength, sampler=name, seed=5
    )
    assert torch.isfinite(expected).all() and expected.std() > 0.1
    assert (ours - expected).abs().max() <= TOLERANCE * expected.abs().max()


def test_euler_a_draws_its_noise_from_the_seed(pipeline):
    noise = pipeline.noise(80, 48, 9, seed=2)
    text = pipeline.text_encoder("a red ball moves right")

    def run(seed: int):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        result = pipeline.sample(noise, text, text, steps=3, cfg=1.0, sampler="cogvideox_euler_a", seed=seed)
        assert torch.equal(torch.get_rng_state(), before), "nothing reads the global generator"
        return result

    assert torch.equal(run(1), run(1)) and not torch.allclose(run(1), run(2), atol=0.01)


@pytest.mark.parametrize("name", DIFFUSERS_SAMPLERS)
def test_the_signal_power_is_that_of_the_schedulers_own_noise(name):
    """Of a kept part: what add_noise and scale_model_input make of it. 2B, whose shift these schedulers leave out."""
    schedule = NoiseSchedule(snr_shift=3.0, spacing="linspace")
    alphas = make_scheduler(name, schedule).alphas_cumprod.tolist()
    scheduler = make_scheduler(name, schedule)
    scheduler.set_timesteps(7)
    latent, noise = torch.randn(2, 100, generator=torch.Generator().manual_seed(1))
    for timestep in scheduler.timesteps[1:].unique():  # unique: PNDM repeats some
        if hasattr(scheduler, "_step_index"):
            scheduler._step_index = None
        kept = scheduler.add_noise(latent[None], noise[None], timestep[None])
        kept = scheduler.scale_model_input(kept, timestep)[0]
        alpha = alpha_at(alphas, float(timestep))
        assert (kept - alpha**0.5 * latent - (1 - alpha) ** 0.5 * noise).abs().max() <= 1e-5


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("name", CLASSES)
def test_what_is_shown_after_each_step_is_the_denoised_latent(name, spacing):
    """With a model that knows the clean latent, that is what previews get, at every step."""
    schedule, clean = NoiseSchedule(), torch.randn(1, 16, 1, 4, 6, generator=torch.Generator().manual_seed(0))
    alphas, shown = make_scheduler(name, schedule, spacing).alphas_cumprod.tolist(), []

    def predict(x, timestep):
        alpha = alpha_at(alphas, timestep)
        noise = (x - alpha**0.5 * clean) / (1 - alpha) ** 0.5
        return alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean

    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    run_sampler(
        *(name, schedule, predict, noise, torch.zeros_like(clean), generator, 5, spacing),
        callback=lambda step, total, denoised, x: shown.append(denoised),
    )
    assert len(shown) >= 5 and all(torch.allclose(denoised, clean, atol=1e-3) for denoised in shown)


@pytest.mark.parametrize("name", CLASSES)
def test_diffusers_reads_the_nano_models_schedule_as_we_do(name):
    """Where its file lacks a value, diffusers has its own: DDIM clips what it predicts."""
    theirs = CLASSES[name].from_pretrained(ROOT / "models" / "nano", subfolder="scheduler").config
    ours = make_scheduler(name, open_whole(ROOT / "models" / "nano").schedule).config
    differ = {key for key in theirs if key[0] != "_" and theirs[key] != ours.get(key)}
    assert differ == {"snr_shift_scale"}, "which these classes do not know"


@pytest.mark.parametrize("name", DIFFUSERS_SAMPLERS)
def test_diffusers_finds_nothing_wrong_with_the_configuration(name, caplog):
    logger = logging.getLogger("diffusers.configuration_utils")  # what it logs is not passed on to pytest
    logger.addHandler(caplog.handler)
    try:
        make_scheduler(name, NoiseSchedule(snr_shift=3.0))
    finally:
        logger.removeHandler(caplog.handler)
    assert not caplog.messages


@pytest.mark.parametrize("steps, denoise", [(3, 1.0), (2, 0.8)])
def test_pndm_says_how_many_steps_it_needs(steps, denoise):
    noise = torch.zeros(1, 16, 1, 2, 2)
    with pytest.raises(ValueError, match=r"cogvideox_pndm has a schedule of [123] steps .*expected 4 or more"):
        run_sampler(
            "cogvideox_pndm", NoiseSchedule(), lambda x, _t: x, noise, noise, torch.Generator(), steps, denoise=denoise
        )

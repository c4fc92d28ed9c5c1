"""Whole sampling runs against those of VideoX-Fun.

1e-3 absolute on latents of size 5, float32; about 2e-5 is seen.
"""

import pytest
import reference
import torch
from cogvideox_fun.model_loading import standalone as pipelines
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.sampling.schedule import add_noise

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """VideoX-Fun's tiny model of each variant, through the pack's own loading."""
    found = {}
    for variant, scale in reference.SCALE.items():
        folder = reference.write_model(tmp_path_factory.mktemp("models") / variant, variant, scale)
        checkpoint = open_checkpoint(folder)
        parts = pipelines.load_transformer(checkpoint), pipelines.load_vae(checkpoint.vae)
        found[variant] = pipelines.Pipeline(checkpoint, *parts, text_encoder=None)
    return found


@pytest.mark.parametrize("variant, task", reference.RUNS)
def test_runs_of_videox_fun(models, variant, task):
    model, data = models[variant], reference.load(f"pipeline_{variant}")
    extra = model.condition(*reference.inputs_of(task, data, reference.metadata(f"pipeline_{variant}")["frames"]))
    expected = reference.channels_second(data[f"{task}.inpaint_latents"])[:1]
    assert ((torch.zeros_like(expected) if extra is None else extra) - expected).abs().max() <= 1e-4

    steps = []
    noise = reference.channels_second(data["noise"])
    texts = data["prompt_embeds"], data["negative_prompt_embeds"]
    out = model.sample(noise, *texts, extra, steps=4, cfg=6.0, callback=lambda _i, _n, _d, x: steps.append(x))
    assert (reference.channels_second(out) - data[f"{task}.final"]).abs().max() <= TOLERANCE
    steps = torch.stack([reference.channels_second(x) for x in steps])
    assert (steps - data[f"{task}.steps"]).abs().max() <= TOLERANCE


def test_video_to_video_from_the_clip_on(models):
    """VideoX-Fun's start is a draw from the VAE's distribution, here of seed 0, noised; the mode is far from it."""
    model, data = models["2b"], reference.load("pipeline_2b")
    clip = data["video_u8"].float() / 255
    x, noise, noised = (reference.channels_second(data[f"v2v07_N10.addnoise_{n}"]) for n in ("x", "noise", "out"))
    start = model.encode(clip, seed=0)
    assert (start - x).abs().max() <= 1e-4 < 1 < (model.encode(clip) - x).abs().max()
    alpha = float(model.checkpoint.schedule.alphas_cumprod()[int(data["v2v07_N10.addnoise_t"])])
    assert (add_noise(start, noise, alpha) - noised).abs().max() <= 1e-4
    texts = data["prompt_embeds"], data["negative_prompt_embeds"]
    out = model.sample(noise, *texts, start=start, steps=7, cfg=6.0, denoise=0.7)
    assert (reference.channels_second(out) - data["v2v07_N10.final"]).abs().max() <= TOLERANCE

"""Control, LoRA, sizes, positions and VideoX-Fun's schedulers through a real ComfyUI."""

import pytest
import torch
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.sampling.diffusers_samplers import DIFFUSERS_SAMPLERS, alpha_at, make_scheduler, run_sampler
from cogvideox_fun.sampling.schedule import cogvideox_ddim, dynamic_guidance
from cogvideox_fun.tools import comfyui_server as comfy
from cogvideox_fun.training.tasks.lora import apply_lora
from graph import ENCODE, Failed, closest
from safetensors.torch import load_file

TOLERANCE = 1e-3  # of a whole run in float32, relative to the largest value
PROMPTS = "a red ball moves right", "blurry"


@pytest.fixture(scope="module")
def pipelines(base):
    folder = base / "models" / "CogVideoX_Fun"
    names = ("tiny-2b-control", "tiny-5b", "tiny-5b-image", "tiny-v1.5-image", "tiny-void")
    return {name: Pipeline.from_folder(folder / name) for name in names}


def clip_of(seed: int, length: int = 9) -> torch.Tensor:
    return torch.rand(length, 48, 80, 3, generator=torch.Generator().manual_seed(seed))


def controlled(lab, earlier=(), **options):
    """A Control model's graph and its sampled latent; ``earlier``: options of nodes in front, with the same video."""
    graph = lab.graph()
    model = graph.loader("tiny-2b-control")
    video = graph.fun("VAEEncode", vae=model[2], video=graph.tensor("Image", clip_of(1)), **ENCODE)
    inputs = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0, **options}
    positive, negative = graph.prompts(model[1], *PROMPTS)
    for before in (*earlier, {}):
        given = {**inputs, **before}
        found = graph.fun("ControlConditioning", positive=positive, negative=negative, control_latent=video, **given)
        positive, negative = found[0], found[1]
    return graph, graph.sampler(model, positive, negative, found[2], seed=3)


def test_of_two_control_conditionings_the_last_counts(lab):
    (alone,), (chained,) = (
        graph.get(value) for graph, value in (controlled(lab), controlled(lab, earlier=[{"end_percent": 0.3}]))
    )
    assert torch.equal(chained, alone)


@pytest.mark.parametrize(
    "options, active",
    [
        ({}, (1, 1, 1, 1)),
        ({"strength": 0.5}, (0.5, 0.5, 0.5, 0.5)),
        ({"end_percent": 0.6}, (1, 1, 1, 0)),
        ({"start_percent": 0.1, "end_percent": 0.3, "strength": 2.0}, (0, 2, 0, 0)),
        ({"strength": 0.0}, (0, 0, 0, 0)),
    ],
)
def test_control(lab, pipelines, options, active):
    """Four steps at timesteps 999, 749, 499 and 249, each with the control that counts there."""
    pipeline = pipelines["tiny-2b-control"]
    control = pipeline.encode(clip_of(1))
    graph, sampled = controlled(lab, **options)
    (ours,) = graph.get(sampled)

    texts = [pipeline.text_encoder(prompt) for prompt in PROMPTS]
    by_step = dict(zip((999, 749, 499, 249), active, strict=True))

    def predict(x, timestep):
        return pipeline.guided(1, *texts, control * by_step[timestep], 6.0)(x, timestep)

    alphas = pipeline.checkpoint.schedule.alphas_cumprod()
    with torch.no_grad():
        expected = cogvideox_ddim(predict, pipeline.noise(80, 48, 9, seed=3), list(by_step), 4, alphas)
    assert closest(ours * pipeline.checkpoint.scale_factor, expected) <= TOLERANCE
    if any(active):
        without = pipeline.sample(pipeline.noise(80, 48, 9, seed=3), *texts, steps=4)
        assert closest(expected, without) > 0.05, "the control changes the video"


def test_control_percents_the_wrong_way_round_are_an_error(lab):
    graph, sampled = controlled(lab, start_percent=0.6, end_percent=0.5)
    with pytest.raises(Failed, match="start_percent is 0.6, expected at most end_percent .0.5."):
        graph.get(sampled)


@pytest.mark.parametrize("name", DIFFUSERS_SAMPLERS)
@pytest.mark.parametrize("spacing, denoise", [("trailing", 1.0), ("linspace", 1.0), ("trailing", 0.5)])
def test_videox_funs_schedulers(lab, pipelines, name, spacing, denoise):
    """The same as without ComfyUI, which equals diffusers' classes (tests/parity/test_diffusers_samplers.py)."""
    pipeline = pipelines["tiny-5b"]
    texts = [pipeline.text_encoder(prompt) for prompt in PROMPTS]
    graph, model, *_ = lab.setting("tiny-5b")
    clip = graph.tensor("Image", clip_of(2))
    latent = graph.fun("VAEEncode", vae=model[2], video=clip, **ENCODE)
    positive, negative = graph.prompts(model[1], *PROMPTS)
    options = {"steps": 4, "spacing": spacing, "denoise": denoise}
    (ours,) = graph.get(graph.sampler(model, positive, negative, latent, seed=3, sampler_name=name, **options))
    noise, start = pipeline.noise(80, 48, 9, seed=3), pipeline.encode(clip_of(2))
    expected = pipeline.sample(noise, *texts, start=start, sampler=name, seed=3, **options)
    assert closest(ours * pipeline.checkpoint.scale_factor, expected) <= TOLERANCE


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("name", ["cogvideox_ddim", *DIFFUSERS_SAMPLERS])
def test_what_a_noise_mask_keeps_has_the_noise_of_the_schedule_that_is_run(lab, base, name, spacing):
    """On a 2B: diffusers' schedulers know no SNR shift, so what is kept must be noised without it, too."""
    checkpoint = open_checkpoint(base / "models" / "CogVideoX_Fun" / "tiny-2b")
    graph, model, positive, negative, _ = lab.setting("tiny-2b")
    clean = torch.randn(1, 16, 3, 6, 10, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 48, 80)
    mask[:, :, 40:] = 1
    latent = graph.node("SetLatentNoiseMask", samples=graph.tensor("Latent", clean), mask=graph.tensor("Mask", mask))
    path = lab.path()
    watched = graph.node("ProbeInputs", model=model, path=path)
    options = {"seed": 3, "sampler_name": name, "spacing": spacing, "cfg": 1.0, "denoise": 0.8}
    (after,) = graph.get(graph.sampler(watched, positive, negative, latent, **options))
    assert torch.allclose(after[..., :5], clean[..., :5], atol=1e-5)

    alphas = checkpoint.schedule.alphas_cumprod()
    if name in DIFFUSERS_SAMPLERS:
        alphas = make_scheduler(name, checkpoint.schedule).alphas_cumprod
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    seen = load_file(path)
    assert len(seen) >= 8
    for call in range(len(seen) // 2):
        alpha = alpha_at(alphas.tolist(), float(seen[f"t{call}"]))
        expected = alpha**0.5 * clean * checkpoint.scale_factor + (1 - alpha) ** 0.5 * noise
        assert (seen[f"x{call}"] - expected)[..., :5].abs().max() <= 1e-4


def test_euler_a_goes_on_from_the_noise_of_one_of_a_batch(lab, pipelines):
    """The second of three latents alone: ComfyUI draws the first two for it, and the steps draw after them."""
    pipeline = pipelines["tiny-5b"]
    graph, model, positive, negative, _ = lab.setting("tiny-5b")
    empty = graph.fun("EmptyLatent", width=80, height=48, length=9, batch_size=3)
    second = graph.node("LatentFromBatch", samples=empty, batch_index=1, length=1)
    options = {"seed": 3, "sampler_name": "cogvideox_euler_a", "cfg": 1.0}
    (ours,) = graph.get(graph.sampler(model, positive, negative, second, **options))
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(2, 16, 3, 6, 10, generator=generator)[1:]
    predict = pipeline.guided(1, *[pipeline.text_encoder(prompt) for prompt in PROMPTS], None, 1.0)
    with torch.no_grad():
        expected = run_sampler(
            "cogvideox_euler_a", pipeline.checkpoint.schedule, predict, noise, None, generator, steps=4
        )
    assert closest(ours * pipeline.checkpoint.scale_factor, expected) <= TOLERANCE


def test_dynamic_guidance(lab, pipelines):
    pipeline = pipelines["tiny-5b"]
    texts = [pipeline.text_encoder(prompt) for prompt in PROMPTS]
    graph, model, _, _, latent = lab.setting("tiny-5b")
    positive, negative = graph.prompts(model[1], *PROMPTS)
    ours, plain = graph.get(
        graph.sampler(model, positive, negative, latent, seed=3, dynamic_cfg=True),
        graph.sampler(model, positive, negative, latent, seed=3),
    )

    def predict(x, timestep):
        return pipeline.guided(1, *texts, None, dynamic_guidance(6.0, timestep, 4))(x, timestep)

    alphas = pipeline.checkpoint.schedule.alphas_cumprod()
    with torch.no_grad():
        expected = cogvideox_ddim(predict, pipeline.noise(80, 48, 9, seed=3), [999, 749, 499, 249], 4, alphas)
    # 50 times as near as plain guidance has to be: a difference from the first step's x would be coarser in float32
    assert closest(ours * pipeline.checkpoint.scale_factor, expected) <= TOLERANCE / 50
    assert closest(ours, plain) > 0.01


def test_a_lora_twice_at_half_strength_is_comfyuis_and_trainings_at_one(lab):
    ring = comfy.ROOT / "models" / "nano" / "lora" / "ring.safetensors"
    pipeline = Pipeline.from_folder(comfy.ROOT / "models" / "nano")
    apply_lora(pipeline.transformer, ring)
    prompts = "a red ring moves right over the night", "blurry"
    graph = lab.graph()
    model = graph.loader("nano", "fp32")
    latent = graph.fun("EmptyLatent", width=64, height=64, length=5, batch_size=1)
    ours = model
    for _ in range(2):
        ours = graph.fun("LoraLoader", model=ours, lora_name=ring.name, strength=0.5)
    stock = graph.node("LoraLoaderModelOnly", model=model, lora_name=ring.name, strength_model=1.0)
    texts, size = graph.prompts(model[1], *prompts), lab.log_size
    ours, stock, plain = graph.get(*(graph.sampler(m, *texts, latent, seed=3, steps=2) for m in (ours, stock, model)))
    noise, texts = pipeline.noise(64, 64, 5, seed=3), [pipeline.text_encoder(prompt) for prompt in prompts]
    trained = pipeline.sample(noise, *texts, steps=2) / pipeline.checkpoint.scale_factor
    assert closest(ours, stock) <= TOLERANCE and closest(ours, trained) <= TOLERANCE < 0.01 < closest(ours, plain)
    said = "ring.safetensors: 30 of the model's layers changed, 90 keys matched, 0 unmatched"
    assert lab.log_since(size).count(said) == 2


def test_the_few_step_lora_in_four_steps_without_guidance(lab):
    """Both LoRA loaders, our sampler and ComfyUI's own, and what training's evaluation makes.

    Stock samplers start at sigma 2^14 in place of infinity: four steps of them differ by 1.2e-4.
    """
    few = comfy.ROOT / "models" / "nano" / "lora" / "few_steps.safetensors"
    pipeline = Pipeline.from_folder(comfy.ROOT / "models" / "nano")
    apply_lora(pipeline.transformer, few)
    prompt = "a red circle moves right over the night"
    graph = lab.graph()
    model = graph.loader("nano", "fp32")
    latent = graph.fun("EmptyLatent", width=64, height=64, length=5, batch_size=1)
    ours = graph.fun("LoraLoader", model=model, lora_name=few.name, strength=1.0)
    stock = graph.node("LoraLoaderModelOnly", model=model, lora_name=few.name, strength_model=1.0)
    texts, size = graph.prompts(model[1], prompt, ""), lab.log_size
    asked = {"seed": 3, "steps": 4, "cfg": 1.0}
    found = [graph.sampler(m, *texts, latent, **asked) for m in (ours, stock, model)]
    names = {"sampler_name": "ddim", "scheduler": "simple", "denoise": 1.0}
    positive, negative = texts
    found.append(
        graph.node(
            "KSampler", model=stock, positive=positive, negative=negative, latent_image=latent, **asked, **names
        )
    )
    ours, stock, plain, ksampler = graph.get(*found)
    text = pipeline.text_encoder(prompt)
    trained = pipeline.sample(pipeline.noise(64, 64, 5, seed=3), text, text, steps=4, cfg=1.0)
    trained = trained / pipeline.checkpoint.scale_factor
    assert closest(ours, trained) <= TOLERANCE and closest(stock, trained) <= TOLERANCE < 0.01 < closest(
        plain, trained
    )
    assert closest(ksampler, trained) <= 3 * TOLERANCE
    assert "few_steps.safetensors: 30 of the model's layers changed, 90 keys matched, 0 unmatched" in lab.log_since(
        size
    )


def test_a_lora_of_another_model_is_an_error(lab):
    graph = lab.graph()
    model = graph.loader("tiny-5b")
    lora = graph.fun("LoraLoader", model=model, lora_name="ring.safetensors", strength=1.0)
    latent = graph.fun("EmptyLatent", width=64, height=64, length=5, batch_size=1)
    with pytest.raises(Failed, match=r"ring.safetensors .* but the model's is 128 x 128: choose a LoRA"):
        graph.get(graph.sampler(lora, *graph.prompts(model[1]), latent))


def test_resolution_of_an_image_and_for_a_model(lab):
    graph = lab.graph()
    image = graph.tensor("Image", torch.zeros(1, 90, 60, 3))
    model = graph.loader("tiny-v1.5")
    inputs = {"base_resolution": 512, "aspect_ratio": "4:1", "token_length": 0, "length": 49}
    chosen = graph.fun("Resolution", image=image, model=model, **inputs)
    (latent,) = graph.get(graph.fun("EmptyLatent", width=chosen[0], height=chosen[1], length=chosen[2], batch_size=1))
    assert latent.shape[2:] == (12, 608 // 8, 416 // 8), "the bucket of 2:3, and an even number of latent frames"


def positioned(graph, model, **options):
    return graph.fun(
        "PositionInterpolation", model=model, **{"mode": "fun", "temporal_scale": 1.0, "riflex_k": 0, **options}
    )


def test_riflex_runs_longer_clips_and_lifts_the_nodes_limit(lab):
    graph = lab.graph()
    model = graph.loader("tiny-5b")
    longer = positioned(graph, model, riflex_k=2)
    limited, free = (
        graph.fun("EmptyLatent", width=16, height=16, length=85, batch_size=1, model=m) for m in (model, longer)
    )
    sampled = graph.sampler(longer, *graph.prompts(model[1]), free, steps=1)
    limited, sampled = graph.get(limited, sampled)
    assert (limited.shape[2], sampled.shape[2]) == (13, 22)
    with pytest.raises(Failed, match="22 frames .* at most 13"):  # of the MODEL itself, which is not changed
        graph.get(graph.sampler(model, *graph.prompts(model[1]), free, steps=1))


@pytest.mark.parametrize("variant, length", [("5b-image", 9), ("v1.5-image", 13)])
def test_image_to_video_of_cogvideox_itself(lab, pipelines, variant, length):
    """The first frame's latent, scaled as diffusers' pipeline does, then zeros."""
    pipeline = pipelines[f"tiny-{variant}"]
    image = clip_of(4, 1)
    graph = lab.graph()
    model = graph.loader(f"tiny-{variant}")
    encoded = graph.fun("VAEEncode", vae=model[2], video=graph.tensor("Image", image), **ENCODE)
    empty = graph.fun("EmptyLatent", width=80, height=48, length=length, batch_size=1)
    positive, negative = graph.prompts(model[1], *PROMPTS)
    found = graph.fun("ImageConditioning", positive=positive, negative=negative, image_latent=encoded, latent=empty)
    ours, plain = graph.get(
        graph.sampler(model, found[0], found[1], found[2], seed=3, steps=2),
        graph.sampler(model, positive, negative, empty, seed=3, steps=2),
    )
    scale = pipeline.checkpoint.scale_factor
    latent = pipeline.encode(image) / scale * (1 / scale if variant == "v1.5-image" else scale)
    noise = pipeline.noise(80, 48, length, seed=3)
    extra = torch.zeros_like(noise)
    extra[:, :, :1] = latent
    texts = [pipeline.text_encoder(prompt) for prompt in PROMPTS]
    expected = pipeline.sample(noise, *texts, extra, steps=2)
    assert closest(ours * scale, expected) <= TOLERANCE and closest(ours, plain) > 1e-3


def test_void_with_comfyuis_conditioning(lab, pipelines):
    """The mask goes through the VAE, as the picture 1 - mask, before the video without what is to be removed."""
    if not lab.has("VOIDInpaintConditioning"):
        pytest.skip("this ComfyUI has no VOIDInpaintConditioning")
    pipeline, video = pipelines["tiny-void"], clip_of(5, 13)
    mask = torch.zeros(13, 48, 80)
    mask[:, 10:30, 20:50] = 1
    graph = lab.graph()
    model = graph.loader("tiny-void")
    positive, negative = graph.prompts(model[1], *PROMPTS)
    parts = {"vae": model[2], "video": graph.tensor("Image", video), "quadmask": graph.tensor("Mask", mask)}
    size = {"width": 80, "height": 48, "length": 13, "batch_size": 1}
    found = graph.node("VOIDInpaintConditioning", positive=positive, negative=negative, **parts, **size)
    ours, plain = graph.get(
        graph.sampler(model, found[0], found[1], found[2], seed=3, steps=2),
        graph.sampler(model, positive, negative, found[2], seed=3, steps=2),
    )
    known = (1 - mask)[..., None].expand(-1, -1, -1, 3)
    extra = torch.cat([pipeline.encode(known), pipeline.encode(video * known)], dim=1)
    texts = [pipeline.text_encoder(prompt) for prompt in PROMPTS]
    expected = pipeline.sample(pipeline.noise(80, 48, 13, seed=3), *texts, extra, steps=2)
    assert closest(ours * pipeline.checkpoint.scale_factor, expected) <= TOLERANCE and closest(ours, plain) > 0.01

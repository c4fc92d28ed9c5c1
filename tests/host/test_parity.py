"""Whole runs through ComfyUI's MODEL, CLIP and VAE against VideoX-Fun's numbers and the pack's own pipeline.

1e-3 absolute on latents of size 5; ComfyUI's samplers stay within 2e-4 relative, because their first sigma is finite.
"""

import shutil

import pytest
import reference
import torch
from cogvideox_fun.model_loading.standalone import Pipeline, TextEncoder
from cogvideox_fun.sampling.masks import build_start_end
from graph import ENCODE, Failed
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-3
RUNS = [("2b", "i2v"), ("5b", "i2v_end"), ("5b", "inpaint"), ("v1.5", "i2v"), ("v1.5", "t2v")]
SCALE = {"2b": 1.15258426, "5b": 0.7, "v1.5": 0.7}


def conditioned(graph, model, data, task, length):
    """Positive and negative of a task, through the pack's nodes."""
    positive = graph.tensor("Conditioning", data["prompt_embeds"])
    negative = graph.tensor("Conditioning", data["negative_prompt_embeds"])
    if task == "t2v":
        return positive, negative
    if task == "inpaint":
        video = graph.tensor("Image", data["video_u8"].float() / 255)
        mask = graph.tensor("Mask", data["maskimg_u8"][None].float() / 255)
        found = graph.inpaint(model, model[2], video, mask, positive, negative)
        return found[0], found[1]
    images = {"start_image": graph.tensor("Image", reference.image(data["start_rgb_u8"]))}
    if task == "i2v_end":
        images["end_image"] = graph.tensor("Image", reference.image(data["end_rgb_u8"]))
    built = graph.fun("StartEndImage", width=80, height=48, length=length, fit="stretch", **images)
    found = graph.inpaint(model, model[2], built[0], built[1], positive, negative)
    return found[0], found[1]


def advanced(graph, model, positive, negative, noise, latent, sigmas, sampler="ddim"):
    """ComfyUI's SamplerCustomAdvanced."""
    guider = graph.node("CFGGuider", model=model, positive=positive, negative=negative, cfg=6.0)
    select = graph.node("KSamplerSelect", sampler_name=sampler)
    inputs = {"noise": noise, "guider": guider, "sampler": select, "sigmas": sigmas, "latent_image": latent}
    return graph.node("SamplerCustomAdvanced", **inputs)


@pytest.mark.parametrize("variant, task", RUNS)
def test_runs_of_videox_fun(lab, variant, task):
    data, scale = reference.load(f"pipeline_{variant}"), SCALE[variant]
    graph = lab.graph()
    model = graph.loader(f"authors-{variant}")
    positive, negative = conditioned(graph, model, data, task, reference.metadata(f"pipeline_{variant}")["frames"])
    noise = reference.channels_second(data["noise"])
    empty = graph.tensor("Latent", torch.zeros_like(noise))
    sigmas = graph.fun("Scheduler", model=model, steps=4, spacing="auto", denoise=1.0)
    out = advanced(graph, model, positive, negative, graph.tensor("Noise", noise), empty, sigmas)
    (sampled,) = graph.get(out)
    final = reference.channels_second(sampled) * scale
    assert (final - data[f"{task}.final"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("tile_size", [0, 64])
def test_video_to_video_starts_from_a_draw(lab, tile_size):
    """VideoX-Fun's start, from VAE Encode's sample_posterior: 1e-4; in tiles the mode and the draw differ as much."""
    data = reference.load("pipeline_2b")
    graph = lab.graph()
    model = graph.loader("authors-2b")
    clip = graph.tensor("Image", data["video_u8"].float() / 255)
    options = {"vae": model[2], "video": clip, **ENCODE, "tile_size": tile_size}
    drawn, again, other, mode = graph.get(
        *(graph.fun("VAEEncode", **{**options, "noise_seed": seed}, sample_posterior=True) for seed in (0, 0, 1)),
        graph.fun("VAEEncode", **options),
    )
    assert torch.equal(drawn, again) and (drawn - other).std() > 1 and (drawn - mode).std() > 0.9
    if not tile_size:
        expected = reference.channels_second(data["v2v07_N10.addnoise_x"])
        assert (drawn * SCALE["2b"] - expected).abs().max() <= 1e-4


@pytest.fixture(scope="module")
def pipelines(base):
    return {v: Pipeline.from_folder(base / "models" / "CogVideoX_Fun" / f"authors-{v}") for v in SCALE}


@pytest.mark.parametrize("task", ["t2v", "i2v", "i2v_end", "inpaint", "v2v"])
@pytest.mark.parametrize("variant", SCALE)
def test_the_sampler_equals_the_pipeline(lab, pipelines, variant, task):
    """Every variant and task, from prompt, pictures and seed. tests/parity compares the pipeline with VideoX-Fun."""
    pipeline, data = pipelines[variant], reference.load(f"pipeline_{variant}")
    length = reference.metadata(f"pipeline_{variant}")["frames"]
    start, end = reference.image(data["start_rgb_u8"]), reference.image(data["end_rgb_u8"])
    clip = data["video_u8"].float() / 255

    graph = lab.graph()
    model = graph.loader(f"authors-{variant}")
    positive, negative = graph.prompts(model[1])
    texts = pipeline.text_encoder("a red ball moves right"), pipeline.text_encoder("blurry")
    noise = pipeline.noise(80, 48, length, seed=3)
    steps, denoise, latent, expected_start, extra = 4, 1.0, None, None, None
    if task == "inpaint":
        region = data["maskimg_u8"][None].float() / 255
        built = [graph.tensor("Image", clip), graph.tensor("Mask", region)]
        extra = pipeline.condition(clip, region)
    else:
        images = {"i2v": [start], "i2v_end": [start, end]}.get(task, [])
        slots = {
            name: graph.tensor("Image", image)
            for name, image in zip(("start_image", "end_image"), images, strict=False)
        }
        built = graph.fun("StartEndImage", width=80, height=48, length=length, fit="stretch", **slots)
        extra = pipeline.condition(*build_start_end(80, 48, length, *images, fit="stretch"))
    found = graph.inpaint(model, model[2], built[0], built[1], positive, negative)
    latent = found[2]
    if task == "v2v":
        steps, denoise, expected_start = 7, 0.7, pipeline.encode(clip)
        latent = graph.fun("VAEEncode", vae=model[2], video=graph.tensor("Image", clip), **ENCODE)
    sampled = graph.sampler(model, found[0], found[1], latent, seed=3, steps=steps, denoise=denoise)
    video = graph.fun("VAEDecode", vae=model[2], latent=sampled, tile_size=0, overlap=64)
    ours, frames = graph.get(sampled, video)

    expected = pipeline.sample(noise, *texts, extra, expected_start, steps=steps, cfg=6.0, denoise=denoise)
    assert (ours * SCALE[variant] - expected).abs().max() <= TOLERANCE
    assert (frames - pipeline.decode(expected)).abs().max() <= TOLERANCE


def test_t5_equals_transformers(lab, pipelines):
    """ComfyUI's T5 with the folder's tokenizer against transformers' T5EncoderModel, pads included: 1e-4."""
    for prompt in ("", "a red ball moves right", "sun " * 400):
        graph = lab.graph()
        (features,) = graph.get(graph.node("CLIPTextEncode", clip=graph.loader("authors-2b")[1], text=prompt))
        expected = pipelines["2b"].text_encoder(prompt)
        assert features.shape == expected.shape == (1, 226, 32)
        assert (features - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", ["fp16", "bf16", "fp8", "scaled-fp8"])
def test_t5_in_smaller_types(lab, base, tmp_path, name):
    """A text_encoder folder in fp16, bf16, fp8, or fp8 with scales as in ComfyUI's quantised T5 files.

    ComfyUI computes in float32, so the features are transformers' with the same rounded weights: 1e-4.
    """
    source = base / "models" / "CogVideoX_Fun" / f"text-{name}"
    state = load_file(source / "text_encoder" / "model.safetensors")
    scales = {k.replace("scale_weight", "weight"): v for k, v in state.items() if k.endswith("scale_weight")}
    rounded = {k: v.float() * scales.get(k, 1) for k, v in state.items() if k.endswith("weight") and "scale" not in k}
    (tmp_path / "text_encoder").mkdir()
    shutil.copy(source / "text_encoder" / "config.json", tmp_path / "text_encoder")
    save_file(rounded, tmp_path / "text_encoder" / "model.safetensors")
    expected = TextEncoder(tmp_path / "text_encoder", source / "tokenizer")("a red ball")

    graph = lab.graph()
    clip = graph.fun("TextEncoderLoader", text_encoder=f"text-{name}/text_encoder")
    (features,) = graph.get(graph.node("CLIPTextEncode", clip=clip, text="a red ball"))
    assert (features - expected).abs().max() <= 1e-4


def test_a_small_t5_needs_its_folder(lab):
    graph = lab.graph()
    clip = graph.fun("TextEncoderLoader", text_encoder="small-t5.safetensors")
    with pytest.raises(Failed, match=r"\[128, 32\], expected \[32128, 4096\].*folder with config.json"):
        graph.get(graph.node("CLIPTextEncode", clip=clip, text="a red ball"))


def test_weights_in_prompts(lab):
    graph = lab.graph()
    clip = graph.loader("authors-2b")[1]
    encoded = [
        graph.node("CLIPTextEncode", clip=clip, text=t) for t in ("a red ball", "a (red:1.5) ball", "a (red:1.0) ball")
    ]
    plain, weighted, unweighted = graph.get(*encoded)
    changed = (plain - weighted).abs().amax(dim=-1)[0]
    assert changed.max() > 1e-2
    assert torch.equal(plain, unweighted)


def test_vae_equals_videox_fun(lab):
    """Stock VAE nodes and ours, on the reference clip: 1e-4."""
    io = reference.load("vae_io")
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="authors-2b/vae")
    pixels = graph.tensor("Image", (io["pixels"][0].movedim(0, -1) + 1) / 2)
    stock = graph.node("VAEEncode", pixels=pixels, vae=vae)
    ours = graph.fun("VAEEncode", vae=vae, video=pixels, **ENCODE)
    mean = graph.tensor("Latent", io["mean"])
    decoded = graph.node("VAEDecode", samples=mean, vae=vae)
    stock, ours, decoded = graph.get(stock, ours, decoded)
    assert (stock - io["mean"]).abs().max() <= 1e-4
    assert torch.equal(stock, ours)
    expected = (io["decode_of_mean"][0].movedim(0, -1) / 2 + 0.5).clamp(0, 1)
    assert (decoded - expected).abs().max() <= 1e-4

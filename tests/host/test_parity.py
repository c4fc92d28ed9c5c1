"""Whole runs through ComfyUI's MODEL, CLIP and VAE against VideoX-Fun's numbers and the pack's own pipeline.

1e-3 absolute on latents of size 5; ComfyUI's samplers stay within 2e-4 relative, because their first sigma is finite.
"""

import shutil

import pytest
import reference
import torch
from cogvideox_fun.model_loading.standalone import Pipeline, TextEncoder
from graph import ENCODE, Failed
from quantised import dequantised
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-3


def conditioned(graph, model, video, mask, *pair):
    found = graph.inpaint(model, model[2], graph.tensor("Image", video), graph.tensor("Mask", mask), *pair)
    return found[0], found[1], found[2]


@pytest.mark.parametrize("variant, task", reference.RUNS)
def test_runs_of_videox_fun(lab, variant, task):
    """With VideoX-Fun's noise and prompts, through ComfyUI's SamplerCustomAdvanced."""
    data, length = reference.load(f"pipeline_{variant}"), reference.metadata(f"pipeline_{variant}")["frames"]
    graph = lab.graph()
    model = graph.loader(f"videox-fun-{variant}")
    pair = [graph.tensor("Conditioning", data[name]) for name in ("prompt_embeds", "negative_prompt_embeds")]
    positive, negative, empty = conditioned(graph, model, *reference.inputs_of(task, data, length), *pair)
    sampled = graph.node(
        "SamplerCustomAdvanced",
        noise=graph.tensor("Noise", reference.channels_second(data["noise"])),
        guider=graph.node("CFGGuider", model=model, positive=positive, negative=negative, cfg=6.0),
        sampler=graph.node("KSamplerSelect", sampler_name="ddim"),
        sigmas=graph.fun("Scheduler", model=model, steps=4, spacing="auto", denoise=1.0),
        latent_image=empty,
    )
    (sampled,) = graph.get(sampled)
    final = reference.channels_second(sampled) * reference.SCALE[variant]
    assert (final - data[f"{task}.final"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("tile_size", [0, 64])
def test_video_to_video_starts_from_a_draw(lab, tile_size):
    """VideoX-Fun's start, from VAE Encode's sample_posterior: 1e-4; in tiles the mode and the draw differ as much."""
    data = reference.load("pipeline_2b")
    graph = lab.graph()
    model = graph.loader("videox-fun-2b")
    clip = graph.tensor("Image", data["video_u8"].float() / 255)
    options = {"vae": model[2], "video": clip, **ENCODE, "tile_size": tile_size}
    noisy = [graph.fun("VAEEncode", **{**options, "noise_seed": n, "noise_augmentation": 0.1}) for n in (1, 2)]
    drawn, again, other, mode, *noisy = graph.get(
        *(graph.fun("VAEEncode", **{**options, "noise_seed": seed}, sample_posterior=True) for seed in (0, 0, 1)),
        graph.fun("VAEEncode", **options),
        *noisy,
    )
    assert not torch.allclose(noisy[0], mode) and not torch.allclose(*noisy)
    assert torch.equal(drawn, again) and (drawn - other).std() > 1 and (drawn - mode).std() > 0.9
    if not tile_size:
        expected = reference.channels_second(data["v2v07_N10.addnoise_x"])
        assert (drawn * reference.SCALE["2b"] - expected).abs().max() <= 1e-4


@pytest.fixture(scope="module")
def pipelines(base):
    return {v: Pipeline.from_folder(base / "models" / "CogVideoX_Fun" / f"videox-fun-{v}") for v in reference.SCALE}


@pytest.mark.parametrize("task", ["t2v", "i2v", "i2v_end", "inpaint", "v2v"])
@pytest.mark.parametrize("variant", reference.SCALE)
def test_the_sampler_equals_the_pipeline(lab, pipelines, variant, task):
    """Every variant and task, from prompt, pictures and seed. tests/parity compares the pipeline with VideoX-Fun."""
    pipeline, data = pipelines[variant], reference.load(f"pipeline_{variant}")
    length, clip = reference.metadata(f"pipeline_{variant}")["frames"], data["video_u8"].float() / 255
    video, mask = reference.inputs_of(task, data, length)
    graph = lab.graph()
    model = graph.loader(f"videox-fun-{variant}")
    positive, negative, latent = conditioned(graph, model, video, mask, *graph.prompts(model[1]))
    options, start = {"steps": 4, "denoise": 1.0}, None
    if task == "v2v":
        options, start = {"steps": 7, "denoise": 0.7}, pipeline.encode(clip)
        latent = graph.fun("VAEEncode", vae=model[2], video=graph.tensor("Image", clip), **ENCODE)
    sampled = graph.sampler(model, positive, negative, latent, seed=3, **options)
    decoded = graph.fun("VAEDecode", vae=model[2], latent=sampled, tile_size=0, overlap=64)
    ours, frames = graph.get(sampled, decoded)

    texts = pipeline.text_encoder("a red ball moves right"), pipeline.text_encoder("blurry")
    noise = pipeline.noise(80, 48, length, seed=3)
    expected = pipeline.sample(noise, *texts, pipeline.condition(video, mask), start, cfg=6.0, **options)
    assert (ours * reference.SCALE[variant] - expected).abs().max() <= TOLERANCE
    assert (frames - pipeline.decode(expected)).abs().max() <= TOLERANCE


def test_t5_equals_transformers(lab, pipelines):
    """ComfyUI's T5 with the folder's tokenizer against transformers' T5EncoderModel, pads included: 1e-4."""
    for prompt in ("", "a red ball moves right", "sun " * 400):
        graph = lab.graph()
        (features,) = graph.get(graph.node("CLIPTextEncode", clip=graph.loader("videox-fun-2b")[1], text=prompt))
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
    rounded = {k: v for k, v in dequantised(state).items() if k.endswith("weight")}
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
    clip = graph.loader("videox-fun-2b")[1]
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
    vae = graph.fun("VAELoader", vae_name="videox-fun-2b/vae")
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

"""What people expect without asking: small inputs, masks from pictures, missing parts, noise that "auto" adds."""

import json

import pytest
import torch
from graph import ENCODE
from safetensors.torch import load_file
from tiny_model import write_tiny_model


@pytest.mark.parametrize("model_name", ["tiny-2b", "tiny-v1.5"])
def test_one_frame_makes_an_image(lab, model_name):
    graph = lab.graph()
    model = graph.loader(model_name)
    start = graph.node("LoadImage", image="start.png")
    built = graph.fun("StartEndImage", width=80, height=48, length=1, fit="crop", start_image=start, model=model)
    found = graph.inpaint(model, model[2], built[0], built[1], *graph.prompts(model[1]))
    sampled = graph.sampler(model, found[0], found[1], found[2])
    (video,) = graph.get(graph.fun("VAEDecode", vae=model[2], latent=sampled, tile_size=0, overlap=64))
    assert video.shape == (1, 48, 80, 3)


@pytest.mark.parametrize(
    "model_name, length, latent_t", [("tiny-2b", 81, 13), ("tiny-v1.5", 49, 12), ("tiny-v1.5", 53, 14), (None, 50, 13)]
)
def test_lengths_are_rounded_down_to_what_the_model_takes(lab, model_name, length, latent_t):
    graph = lab.graph()
    options = {"model": graph.loader(model_name)} if model_name else {}
    size = lab.log_size
    (latent,) = graph.get(graph.fun("EmptyLatent", width=80, height=48, length=length, batch_size=1, **options))
    assert latent.shape == (1, 16, latent_t, 6, 10)
    legal = (latent_t - 1) * 4 + 1
    assert (f"length {length} -> {legal}" in lab.log_since(size)) == (legal != length)


def test_a_folder_without_text_encoder_and_vae_still_loads(lab):
    size = lab.log_size
    graph = lab.graph()
    clip = graph.fun("TextEncoderLoader", text_encoder="tiny-2b/text_encoder")
    vae = graph.fun("VAELoader", vae_name="anything.safetensors")
    latent = graph.fun("EmptyLatent", width=80, height=48, length=5, batch_size=1)
    sampled = graph.sampler(graph.loader("no-text"), *graph.prompts(clip), latent, steps=2)
    (video,) = graph.get(graph.fun("VAEDecode", vae=vae, latent=sampled, tile_size=0, overlap=64))
    assert video.shape == (5, 48, 80, 3)
    log = lab.log_since(size)
    assert "has no text_encoder: load one with Load CogVideoX-Fun Text Encoder" in log
    assert "has no vae: load one with Load CogVideoX-Fun VAE" in log


@pytest.fixture(scope="module")
def noisy_models(lab):
    """An InP and a Control model whose configurations ask for noise on the reference video, as V1.1's do."""
    for variant in ("2b", "2b-control"):
        model = write_tiny_model(lab.base / "models" / "CogVideoX_Fun" / f"noisy-{variant}", variant)
        config = json.loads((model / "transformer" / "config.json").read_text())
        (model / "transformer" / "config.json").write_text(json.dumps({**config, "add_noise_in_inpaint_model": True}))


@pytest.mark.parametrize(
    "model_name, options, noise, reason",
    [
        ("noisy-2b", {}, 0.0563, "the model's configuration asks for it"),
        ("tiny-2b", {}, 0.0, "the model's configuration asks for none"),
        ("noisy-2b-control", {}, 0.0, "the model's configuration asks for none"),  # VideoX-Fun adds it to InP alone
        (None, {}, 0.0, "no model is connected"),
        ("noisy-2b", {"sample_posterior": True}, 0.0, "the start of video to video gets none"),
    ],
)
def test_auto_noise_is_what_the_model_asks_for(lab, noisy_models, model_name, options, noise, reason):
    """The latent is that of the value typed in; the log and the run's history say it."""
    graph = lab.graph()
    pixels = graph.tensor("Image", torch.rand(5, 48, 80, 3))
    mask = graph.tensor("Mask", torch.tensor([0.0, 0, 1, 1, 1])[:, None, None].expand(5, 48, 80))
    inputs = {"vae": graph.loader("tiny-2b")[2], "video": pixels, "mask": mask, **ENCODE, **options}
    model = {"model": graph.loader(model_name)} if model_name else {}
    auto = graph.fun("VAEEncode", **{**inputs, **model, "noise_augmentation": -1.0})
    typed = graph.fun("VAEEncode", **{**inputs, "noise_augmentation": noise})
    size, paths = lab.log_size, [lab.path(), lab.path()]
    for value, path in zip((auto, typed), paths, strict=True):
        graph.node("ProbeSave", value=value, path=path)
    lab.run(graph.workflow)
    assert torch.equal(*(load_file(path)["value"] for path in paths))
    said = f"noise augmentation: {noise:g}, {reason}"
    assert lab.log_since(size).count("noise augmentation: ") == 1 and said in lab.log_since(size)

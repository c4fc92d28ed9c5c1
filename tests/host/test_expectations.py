"""What people expect without asking."""

import json
import shutil

import pytest
import torch
from cogvideox_fun.tools import media
from graph import ENCODE
from safetensors.torch import load_file
from tiny_model import write_tiny_model


def image_graph(lab, model_name="tiny-2b"):
    graph = lab.graph()
    model = graph.loader(model_name)
    return graph, model, *graph.prompts(model[1])


@pytest.mark.parametrize("model_name", ["tiny-2b", "tiny-v1.5"])
def test_one_frame_makes_an_image(lab, model_name):
    graph, model, positive, negative = image_graph(lab, model_name)
    start = graph.node("LoadImage", image="start.png")
    built = graph.fun("StartEndImage", width=80, height=48, length=1, fit="crop", start_image=start, model=model)
    found = graph.inpaint(model, model[2], built[0], built[1], positive, negative)
    sampled = graph.sampler(model, found[0], found[1], found[2])
    (video,) = graph.get(graph.fun("VAEDecode", vae=model[2], latent=sampled, tile_size=0, overlap=64))
    assert video.shape == (1, 48, 80, 3)


def test_several_start_frames_extend_a_clip(lab):
    """Five known frames: the first two latent frames are known, and their pixels reach the conditioning."""
    graph, model, *_ = image_graph(lab)
    clip = media.read_video(lab.base / "input" / "bikes.mp4")[:5]
    image = graph.tensor("Image", clip)
    built = graph.fun("StartEndImage", width=80, height=48, length=13, fit="crop", start_image=image, model=model)
    latent = graph.fun("VAEEncode", vae=model[2], video=built[0], mask=built[1], **ENCODE)
    small = graph.fun("MaskResize3D", mask=built[1], latent=latent, soft=False)
    video, mask, small = graph.get(built[0], built[1], small)
    assert [bool(mask[i].any()) for i in range(13)] == [False] * 5 + [True] * 8
    assert not small[:2].any() and small[2:].all()
    assert video.shape == (13, 48, 80, 3) and not torch.equal(video[0], video[4])
    assert torch.equal(video[5], video[0]), "what is generated repeats the first frame"


def test_an_alpha_mask_works_as_a_region(lab):
    """LoadImage's mask is 1 where the picture is transparent: the left half is generated, the right half kept."""
    graph, model, positive, negative = image_graph(lab)
    clip = graph.tensor("Image", media.read_video(lab.base / "input" / "bikes.mp4")[:9])
    clip = graph.node("ImageScale", image=clip, upscale_method="area", width=80, height=48, crop="center")
    region = graph.node("LoadImage", image="region.png")
    latent = graph.fun("VAEEncode", vae=model[2], video=clip, mask=region[1], **ENCODE)
    small = graph.fun("MaskResize3D", mask=region[1], latent=latent, soft=False)
    found = graph.fun("InpaintConditioning", positive=positive, negative=negative, masked_latent=latent, mask=small)
    small, sampled = graph.get(small, graph.sampler(model, found[0], found[1], found[2]))
    assert small.shape == (3, 6, 10)
    assert small[:, :, :5].all() and not small[:, :, 5:].any()
    assert torch.isfinite(sampled).all()


def test_a_photograph_of_another_shape_is_not_distorted(lab):
    """A white square stays a square, in a frame of another shape."""
    graph = lab.graph()
    start = graph.node("LoadImage", image="square.png")
    video = graph.fun("StartEndImage", width=320, height=160, length=1, fit="crop", start_image=start)
    stretched = graph.fun("StartEndImage", width=320, height=160, length=1, fit="stretch", start_image=start)
    video, stretched = graph.get(video[0], stretched[0])
    for frame, ratio in ((video[0], 1.0), (stretched[0], 2.0)):
        white = frame.mean(dim=-1) > 0.5
        assert white.any(dim=0).sum() / white.any(dim=1).sum() == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("name", ["from-yaml", "CogVideoX-Fun-V1.1-2b-InP"])
def test_models_behind_extra_paths_and_links_load(lab, name):
    graph, model, positive, negative = image_graph(lab, name)
    latent = graph.fun("EmptyLatent", width=80, height=48, length=5, batch_size=1, model=model)
    (sampled,) = graph.get(graph.sampler(model, positive, negative, latent, steps=2))
    assert torch.isfinite(sampled).all()


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
    model = graph.loader("no-text")
    clip = graph.fun("TextEncoderLoader", text_encoder="tiny-2b/text_encoder")
    vae = graph.fun("VAELoader", vae_name="anything.safetensors")
    positive, negative = graph.prompts(clip)
    latent = graph.fun("EmptyLatent", width=80, height=48, length=5, batch_size=1)
    sampled = graph.sampler(model, positive, negative, latent, steps=2)
    (video,) = graph.get(graph.fun("VAEDecode", vae=vae, latent=sampled, tile_size=0, overlap=64))
    assert video.shape == (5, 48, 80, 3)
    log = lab.log_since(size)
    assert "has no text_encoder: load one with Load CogVideoX-Fun Text Encoder" in log
    assert "has no vae: load one with Load CogVideoX-Fun VAE" in log


def test_an_all_generated_mask_gives_zeros_without_the_vae(lab):
    graph, model, *_ = image_graph(lab)
    built = graph.fun("StartEndImage", width=80, height=48, length=9, fit="crop")
    (latent,) = graph.get(graph.fun("VAEEncode", vae=model[2], video=built[0], mask=built[1], **ENCODE))
    assert latent.shape == (1, 16, 3, 6, 10) and not latent.any()


def test_a_soft_mask_goes_through_when_asked(lab):
    graph, model, *_ = image_graph(lab)
    mask = graph.tensor("Mask", torch.full((1, 48, 80), 0.25))
    latent = graph.fun("EmptyLatent", width=80, height=48, length=9, batch_size=1)
    hard, soft = graph.get(*(graph.fun("MaskResize3D", mask=mask, latent=latent, soft=s) for s in (False, True)))
    assert not hard.any() and torch.allclose(soft, torch.full((3, 6, 10), 0.25))


def test_noise_augmentation_depends_on_its_seed(lab):
    graph, model, *_ = image_graph(lab)
    video = graph.tensor("Image", torch.rand(5, 48, 80, 3))
    options = [{"noise_augmentation": a, "noise_seed": s} for a, s in ((0.0, 1), (0.05, 1), (0.05, 1), (0.05, 2))]
    latents = [graph.fun("VAEEncode", vae=model[2], video=video, **{**ENCODE, **o}) for o in options]
    plain, first, again, other = graph.get(*latents)
    assert torch.equal(first, again)
    assert not torch.allclose(first, plain) and not torch.allclose(first, other)


@pytest.fixture(scope="module")
def noisy_models(lab):
    """An InP and a Control model whose configurations ask for noise on the reference video, as V1.1's do."""
    folder = lab.base / "models" / "CogVideoX_Fun"
    for variant in ("2b", "2b-control"):
        model = write_tiny_model(folder / f"noisy-{variant}", variant)
        config = json.loads((model / "transformer" / "config.json").read_text())
        (model / "transformer" / "config.json").write_text(json.dumps({**config, "add_noise_in_inpaint_model": True}))


@pytest.mark.parametrize(
    "model_name, options, noise, reason",
    [
        ("noisy-2b", {}, 0.0563, "the model's configuration asks for it"),
        ("tiny-2b", {}, 0.0, "the model's configuration asks for none"),
        ("noisy-2b-control", {}, 0.0, "the model's configuration asks for none"),  # theirs adds it to InP models alone
        (None, {}, 0.0, "no model is connected"),
        ("noisy-2b", {"sample_posterior": True}, 0.0, "the start of video to video gets none"),
    ],
)
def test_auto_noise_is_what_the_model_asks_for(lab, noisy_models, model_name, options, noise, reason):
    """The latent is that of the value typed in; the log and the run's history say it."""
    graph, first, *_ = image_graph(lab)
    mask = torch.ones(5, 48, 80)
    mask[:2] = 0
    inputs = {"vae": first[2], "video": graph.tensor("Image", torch.rand(5, 48, 80, 3)), **ENCODE, **options}
    inputs["mask"] = graph.tensor("Mask", mask)
    typed = graph.fun("VAEEncode", **{**inputs, "noise_augmentation": noise})
    model = {"model": graph.loader(model_name)} if model_name else {}
    auto = graph.fun("VAEEncode", **{**inputs, **model, "noise_augmentation": -1.0})
    plain = graph.fun("VAEEncode", **{**inputs, "noise_augmentation": 0.0})
    size = lab.log_size
    paths = [lab.path() for _ in range(3)]
    for value, path in zip((typed, auto, plain), paths, strict=True):
        graph.node("ProbeSave", value=value, path=path)
    history = lab.run(graph.workflow)
    typed_latent, auto_latent, plain_latent = (load_file(path)["value"] for path in paths)
    assert torch.equal(auto_latent, typed_latent)
    assert torch.equal(auto_latent, plain_latent) == (noise == 0)
    said = f"noise augmentation: {noise:g}, {reason}"
    assert lab.log_since(size).count("noise augmentation: ") == 1 and said in lab.log_since(size)
    assert history["outputs"][auto.key] == {"text": [said]} and typed.key not in history["outputs"]


def test_a_model_replaced_on_disk_is_loaded_again(lab):
    folder = lab.base / "models" / "CogVideoX_Fun" / "replaced"

    def sample():
        graph, model, positive, negative = image_graph(lab, "replaced")
        latent = graph.fun("EmptyLatent", width=80, height=48, length=5, batch_size=1)
        return graph.get(graph.sampler(model, positive, negative, latent, steps=2))[0]

    write_tiny_model(folder, "2b", seed=0)
    first = sample()
    shutil.rmtree(folder)
    write_tiny_model(folder, "2b", seed=1)
    assert not torch.allclose(sample(), first)

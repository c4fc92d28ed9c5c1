"""Bad input gets a clear error, and the next run works."""

import shutil

import pytest
import torch
from cogvideox_fun.tools import comfyui_server as comfy
from graph import ENCODE, Failed, Lab
from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def setting(lab):
    graph = lab.graph()
    model = graph.loader("tiny-5b")
    return graph, model, *graph.prompts(model[1])


@pytest.fixture(autouse=True)
def next_run_works(lab):
    """After every error a plain run still gives what it gave before."""
    yield
    graph = lab.graph()
    model = graph.loader("tiny-5b")
    latent = graph.fun("EmptyLatent", width=48, height=48, length=1, batch_size=1)
    (sampled,) = graph.get(graph.sampler(model, *graph.prompts(model[1]), latent, steps=1))
    assert torch.isfinite(sampled).all()


def fails(graph, value, match):
    with pytest.raises(Failed, match=f"(?s){match}"):
        graph.get(value)


def latent_of(graph, *shape):
    return graph.tensor("Latent", torch.zeros(shape))


@pytest.mark.parametrize("name", ["CogVideoX-Fun-V1.1-2b-InP", "(no model found)"])
def test_no_model_found(host, tmp_path_factory, name):
    """What a template, or an empty list, gives where there is no model: every folder, and the repository to get."""
    base = tmp_path_factory.mktemp("empty")
    with comfy.serve(host, base) as server:
        graph = Lab(server, base).graph()
        latent = graph.fun("EmptyLatent", width=16, height=16, length=1, batch_size=1)
        for loader in ({"vae": graph.loader(name)[2]}, {"vae": graph.fun("VAELoader", vae_name=f"{name}/vae")}):
            decoded = graph.node("VAEDecode", samples=latent, **loader)
            preview = graph.node("PreviewImage", images=decoded)
            with pytest.raises(Failed) as error:
                graph.lab.run(graph.workflow)
            del graph.workflow[preview.key], graph.workflow[decoded.key]
            message = str(error.value)
            for folder in ("CogVideoX_Fun", "Fun_Models", "VideoX_Fun", "CogVideo"):
                assert str(base / "models" / folder) in message
            assert "alibaba-pai/CogVideoX-Fun-V1.1-2b-InP" in message


def break_model(lab, name, change):
    folder = lab.base / "models" / "CogVideoX_Fun" / name
    shutil.copytree(lab.base / "models" / "CogVideoX_Fun" / "tiny-5b", folder)
    change(folder)


def truncate(folder):
    path = folder / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:10_000])


def empty(folder):
    (folder / "transformer" / WEIGHTS).write_bytes(b"")


def missing_shard(folder):
    (folder / "transformer" / WEIGHTS).unlink()
    (folder / "transformer" / f"{WEIGHTS}.index.json").write_text('{"weight_map": {"a": "part-2-of-2.safetensors"}}')


def change_state(part, key, function):
    def change(folder):
        path = next((folder / part).glob("*.safetensors"))
        state = load_file(path)
        function(state, key)
        save_file(state, path)

    return change


def delete(state, key):
    del state[key]


def reshape(state, key):
    state[key] = state[key][:-1].contiguous()


def poison(state, key):
    state[key].view(-1)[0] = torch.nan


BROKEN = {
    "truncated": (truncate, f"{WEIGHTS} is truncated.*download it again"),
    "empty": (empty, f"{WEIGHTS} is truncated.*the file has 0"),
    "shard": (missing_shard, "lacks the shard part-2-of-2.safetensors"),
    "key": (change_state("transformer", "norm_final.bias", delete), "lacks norm_final.bias"),
    "shape": (
        change_state("transformer", "norm_final.bias", reshape),
        r"norm_final.bias has the shape \[127\].*\[128\]",
    ),
    "nan": (change_state("transformer", "proj_out.bias", poison), "the sampled latent holds NaN"),
    "vae-key": (change_state("vae", "decoder.conv_in.conv.bias", delete), "vae lacks decoder.conv_in.conv.bias"),
    "t5-key": (change_state("text_encoder", "encoder.final_layer_norm.weight", delete), "no T5 encoder"),
    "t5-layer": (
        change_state("text_encoder", "encoder.block.1.layer.0.SelfAttention.q.weight", delete),
        "lacks encoder.block.1.layer.0.SelfAttention.q.weight",
    ),
    "config": (lambda folder: (folder / "transformer" / "config.json").write_text("{"), "config.json can't be read"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models(lab, name):
    change, words = BROKEN[name]
    break_model(lab, f"broken-{name}", change)
    graph = lab.graph()
    model = graph.loader(f"broken-{name}")
    latent = graph.fun("EmptyLatent", width=48, height=48, length=1, batch_size=1)
    fails(graph, graph.sampler(model, *graph.prompts(model[1]), latent), words)


def test_a_file_without_configuration(lab):
    graph = lab.graph()
    model = graph.loader("no-config.safetensors")
    latent = graph.fun("EmptyLatent", width=48, height=48, length=1, batch_size=1)
    conditioning = graph.tensor("Conditioning", torch.zeros(1, 226, 32))
    fails(graph, graph.sampler(model, conditioning, conditioning, latent), "2 heads.*config.json")


def test_an_empty_clip(lab):
    graph = lab.graph()
    fails(graph, graph.prompts(graph.loader("no-text")[1])[0], "clip input is invalid")


def test_an_empty_vae(lab):
    graph = lab.graph()
    vae = graph.loader("no-text")[2]
    fails(
        graph,
        graph.fun("VAEDecode", vae=vae, latent=latent_of(graph, 1, 16, 1, 2, 2), tile_size=0, overlap=0),
        "Load CogVideoX-Fun VAE",
    )


@pytest.mark.parametrize("width, height, words", [(720, 481, "height is 481"), (721, 480, "width is 721")])
def test_sizes_in_the_encoder(lab, width, height, words):
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    fails(
        graph,
        graph.fun("VAEEncode", vae=vae, video=graph.tensor("Image", torch.rand(1, height, width, 3)), **ENCODE),
        words,
    )


def test_pndm_with_too_few_steps(setting):
    graph, *rest = setting
    latent = graph.fun("EmptyLatent", width=80, height=48, length=5, batch_size=1)
    fails(graph, graph.sampler(*rest, latent, steps=3, sampler_name="cogvideox_pndm"), "expected 4 or more")


def test_a_latent_of_odd_height(setting):
    graph, model, positive, negative = setting
    latent = latent_of(graph, 1, 16, 3, 5, 10)
    fails(graph, graph.sampler(model, positive, negative, latent), "5 x 10.*multiples of 16")


def test_more_than_49_frames_on_v1(setting):
    graph, model, positive, negative = setting
    latent = latent_of(graph, 1, 16, 14, 6, 10)
    fails(graph, graph.sampler(model, positive, negative, latent), "length of 53.*length to 49 or less")


def test_odd_latent_frames_on_v15(lab):
    graph = lab.graph()
    model = graph.loader("tiny-v1.5")
    latent = latent_of(graph, 1, 16, 13, 6, 10)
    fails(graph, graph.sampler(model, *graph.prompts(model[1]), latent), "length of 49.*length to 45 or 53")


def test_a_mask_of_another_length(setting):
    graph, model, positive, negative = setting
    mask = graph.tensor("Mask", torch.ones(33, 48, 80))
    video = graph.tensor("Image", torch.rand(49, 48, 80, 3))
    fails(
        graph,
        graph.fun("VAEEncode", vae=model[2], video=video, mask=mask, **ENCODE),
        "33 frames.*video has 49.*length to 33",
    )


def test_a_mask_that_was_not_resized(setting):
    graph, model, positive, negative = setting
    mask = graph.tensor("Mask", torch.ones(9, 48, 80))
    built = graph.fun(
        "InpaintConditioning",
        positive=positive,
        negative=negative,
        masked_latent=latent_of(graph, 1, 16, 3, 6, 10),
        mask=mask,
    )
    fails(graph, built[2], "mask is 9 x 48 x 80, but the latent 3 x 6 x 10.*Mask Resize 3D")


def inpaint_conditioning(graph, positive, negative, *grid):
    mask = graph.tensor("Mask", torch.ones(*grid))
    latent = graph.tensor("Latent", torch.rand(1, 16, *grid))
    return graph.fun("InpaintConditioning", positive=positive, negative=negative, masked_latent=latent, mask=mask)


def test_a_sampled_latent_of_another_size_than_the_conditioning(setting):
    graph, model, positive, negative = setting
    built = inpaint_conditioning(graph, positive, negative, 3, 6, 10)
    sampled = graph.sampler(model, built[0], built[1], latent_of(graph, 1, 16, 3, 6, 12))
    fails(graph, sampled, r"\[1, 16, 3, 6, 10\].*\[1, 16, 3, 6, 12\].*Empty Latent")


@pytest.mark.parametrize(
    "name, words",
    [
        ("2b-control", "32 channels .control.*a mask and a latent.*Control Conditioning"),
        ("2b-text", "16 channels .text.*a mask and a latent.*InP"),
    ],
)
def test_inpaint_conditioning_on_another_kind_of_model(lab, name, words):
    graph = lab.graph()
    model = graph.loader(f"tiny-{name}")
    built = inpaint_conditioning(graph, *graph.prompts(model[1]), 3, 6, 10)
    fails(graph, graph.sampler(model, built[0], built[1], built[2]), words)


def test_control_latents_on_an_inp_model(setting):
    """A latent without a mask, as the host's own nodes and Control models have it."""
    graph, model, positive, negative = setting
    reference = graph.tensor("Latent", torch.rand(1, 16, 3, 6, 10))
    positive = graph.node("ProbeConcat", conditioning=positive, latent=reference)
    fails(
        graph,
        graph.sampler(model, positive, negative, latent_of(graph, 1, 16, 3, 6, 10)),
        "33 channels .inpaint.*holds a latent.*Inpaint Conditioning",
    )


@pytest.mark.parametrize(
    "channels, words", [(1, "1 channels.*Convert Mask to Image"), (4, "4 channels.*Split Image with Alpha")]
)
def test_images_that_are_not_rgb(lab, channels, words):
    def image(graph):
        return graph.tensor("Image", torch.rand(1, 48, 80, channels))

    graph = lab.graph()
    size = {"width": 80, "height": 48, "length": 9, "fit": "crop"}
    fails(graph, graph.fun("StartEndImage", **size, start_image=image(graph))[0], f"start_image has {words}")
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    fails(graph, graph.fun("VAEEncode", vae=vae, video=image(graph), **ENCODE), f"video has {words}")


def test_nan_in_a_latent(lab):
    nan = torch.full((1, 16, 3, 6, 10), torch.nan)
    graph = lab.graph()
    model = graph.loader("tiny-5b")
    fails(graph, graph.sampler(model, *graph.prompts(model[1]), graph.tensor("Latent", nan)), "latent holds NaN")
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    latent = graph.tensor("Latent", nan)
    fails(graph, graph.fun("VAEDecode", vae=vae, latent=latent, tile_size=0, overlap=64), "latent holds NaN")


def test_a_latent_of_another_kind(lab):
    picture, words = torch.rand(1, 4, 6, 10), "expected .batch, 16, frames"
    graph = lab.graph()
    mask = graph.tensor("Mask", torch.ones(1, 6, 10))
    fails(graph, graph.fun("MaskResize3D", mask=mask, latent=graph.tensor("Latent", picture), soft=False), words)
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    latent = graph.tensor("Latent", picture)
    fails(graph, graph.fun("VAEDecode", vae=vae, latent=latent, tile_size=0, overlap=64), words)


def test_a_long_prompt_is_cut_and_the_log_says_what(lab):
    graph = lab.graph()
    size = lab.log_size
    (features,) = graph.get(graph.prompts(graph.loader("tiny-5b")[1], "sun " * 300)[0])
    assert features.shape == (1, 226, 32)
    assert "the prompt has 301 tokens, the model reads 226" in lab.log_since(size)


def test_another_familys_model(lab):
    graph = lab.graph()
    fails(
        graph,
        graph.fun("Scheduler", model=graph.node("ProbeForeignModel"), steps=4, spacing="auto", denoise=1.0),
        "Load CogVideoX-Fun Model",
    )

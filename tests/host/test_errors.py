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


def fails(graph, value, match):
    with pytest.raises(Failed, match=f"(?s){match}"):
        graph.get(value)


def latent_of(graph, *shape):
    return graph.tensor("Latent", torch.zeros(shape))


def test_no_model_found(host, tmp_path_factory):
    """For a template's model and for the entry of an empty list: the folders, and the repository to download."""
    base = tmp_path_factory.mktemp("empty")
    with comfy.serve(host, base) as server:
        for name in ("CogVideoX-Fun-V1.1-2b-InP", "(no model found)"):
            graph = Lab(server, base).graph()
            latent = graph.fun("EmptyLatent", width=16, height=16, length=1, batch_size=1)
            decoded = graph.node("VAEDecode", samples=latent, vae=graph.loader(name)[2])
            graph.node("PreviewImage", images=decoded)
            with pytest.raises(Failed, match="alibaba-pai/CogVideoX-Fun-V1.1-2b-InP") as error:
                graph.lab.run(graph.workflow)
            for folder in ("CogVideoX_Fun", "Fun_Models", "VideoX_Fun", "CogVideo"):
                assert str(base / "models" / folder) in str(error.value)


def break_model(lab, name, change):
    folder = lab.base / "models" / "CogVideoX_Fun" / name
    shutil.copytree(lab.base / "models" / "CogVideoX_Fun" / "tiny-5b", folder)
    change(folder)


def truncate(folder):
    path = folder / "transformer" / WEIGHTS
    path.write_bytes(path.read_bytes()[:10_000])


def change_state(part, key, function):
    def change(folder):
        path = next((folder / part).glob("*.safetensors"))
        state = load_file(path)
        function(state, key)
        save_file(state, path)

    return change


def delete(state, key):
    del state[key]


def poison(state, key):
    state[key].view(-1)[0] = torch.nan


BROKEN = {
    "truncated": (truncate, f"{WEIGHTS} is truncated.*download it again"),
    "key": (change_state("transformer", "norm_final.bias", delete), "lacks norm_final.bias"),
    "nan": (change_state("transformer", "proj_out.bias", poison), "the sampled latent holds NaN"),
    "vae-key": (change_state("vae", "decoder.conv_in.conv.bias", delete), "vae lacks decoder.conv_in.conv.bias"),
    "t5-key": (change_state("text_encoder", "encoder.final_layer_norm.weight", delete), "no T5 encoder"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models(lab, name):
    change, words = BROKEN[name]
    break_model(lab, f"broken-{name}", change)
    graph = lab.graph()
    model = graph.loader(f"broken-{name}")
    latent = graph.fun("EmptyLatent", width=48, height=48, length=1, batch_size=1)
    fails(graph, graph.sampler(model, *graph.prompts(model[1]), latent), words)


def test_an_empty_vae(lab):
    graph = lab.graph()
    vae = graph.loader("no-text")[2]
    fails(
        graph,
        graph.fun("VAEDecode", vae=vae, latent=latent_of(graph, 1, 16, 1, 2, 2), tile_size=0, overlap=0),
        "Load CogVideoX-Fun VAE",
    )


def inpaint(graph, positive, negative):
    mask, latent = graph.tensor("Mask", torch.ones(3, 6, 10)), graph.tensor("Latent", torch.rand(1, 16, 3, 6, 10))
    inputs = {"positive": positive, "negative": negative, "masked_latent": latent, "mask": mask}
    found = graph.fun("InpaintConditioning", **inputs)
    return found[0], found[1]


def latent_alone(graph, positive, negative):
    """A latent without a mask, as for Control models."""
    latent = graph.tensor("Latent", torch.rand(1, 16, 3, 6, 10))
    return graph.node("ProbeConcat", conditioning=positive, latent=latent), negative


def odd_area(graph, positive, negative):
    area = {"width": 72, "height": 64, "x": 0, "y": 0, "strength": 1.0}
    return graph.node("ConditioningSetArea", conditioning=positive, **area), negative


REFUSED = {  # model, frames x height x width of the latent, what changes the conditioning, the error
    "odd on V1.5": ("v1.5", (13, 6, 10), None, "length of 49.*length to 45 or 53"),
    "area": ("5b", (1, 8, 10), odd_area, r"latent is 8 x 9, expected even.*Conditioning \(Set Area\).*of 16 pixels"),
    "sizes": ("5b", (3, 6, 12), inpaint, r"\[1, 16, 3, 6, 10\].*\[1, 16, 3, 6, 12\].*Empty Latent"),
    "control": ("2b-control", (3, 6, 10), inpaint, "32 channels .control.*a latent and a mask.*Control Conditioning"),
    "text": ("2b-text", (3, 6, 10), inpaint, "16 channels .text.*a latent and a mask.*InP"),
    "inpaint": ("5b", (3, 6, 10), latent_alone, "33 channels .inpaint.*holds a latent.*Inpaint Conditioning"),
    "void": ("void", (3, 6, 10), latent_alone, "48 channels .void.*holds a latent.*VOIDInpaintConditioning"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_sampler_refuses(lab, case):
    name, size, change, words = REFUSED[case]
    graph = lab.graph()
    model = graph.loader(f"tiny-{name}")
    prompts = graph.prompts(model[1])
    if change:
        prompts = change(graph, *prompts)
    fails(graph, graph.sampler(model, *prompts, latent_of(graph, 1, 16, *size)), words)


def test_a_mask_that_was_not_resized(setting):
    graph, model, positive, negative = setting
    mask, latent = graph.tensor("Mask", torch.ones(9, 48, 80)), latent_of(graph, 1, 16, 3, 6, 10)
    inputs = {"positive": positive, "negative": negative, "masked_latent": latent, "mask": mask}
    built = graph.fun("InpaintConditioning", **inputs)
    fails(graph, built[2], "mask is 9 x 48 x 80, but the latent is 3 x 6 x 10.*Mask Resize 3D")


def test_latents_that_a_node_cannot_use(lab):
    """The remedy is for the node: to resize a mask, a latent of this family; to decode, a sampled one."""
    graph = lab.graph()
    latent, mask = latent_of(graph, 1, 4, 6, 10), graph.tensor("Mask", torch.ones(1, 6, 10))
    fails(graph, graph.fun("MaskResize3D", mask=mask, latent=latent, soft=False), "expected .batch, 16.*Empty Latent")
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    decoded = graph.fun("VAEDecode", vae=vae, latent=latent_of(graph, 1, 4, 6, 10), tile_size=0, overlap=64)
    fails(graph, decoded, "expected .batch, 16.*connect a latent that a CogVideoX-Fun model sampled")


def test_videos_that_cannot_be_encoded(lab):
    for shape, words in (((1, 481, 720, 3), "height is 481"), ((1, 48, 80, 4), "4 channels.*Split Image with Alpha")):
        graph = lab.graph()
        vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
        fails(graph, graph.fun("VAEEncode", vae=vae, video=graph.tensor("Image", torch.rand(shape)), **ENCODE), words)


def test_another_familys_model(lab):
    graph = lab.graph()
    fails(
        graph,
        graph.fun("Scheduler", model=graph.node("ProbeForeignModel"), steps=4, spacing="auto", denoise=1.0),
        "Load CogVideoX-Fun Model",
    )

"""Typed and linked inputs that no node can use: the error names the input."""

import math

import pytest
import torch
from graph import ENCODE, Failed
from test_stress import LOADERS, load, sampled

FORGED = "x\n[INFO] got prompt\x1b[31m\r\x9b31m\u2028[INFO] Prompt executed"
PICTURES = torch.rand(5, 48, 80, 3, generator=torch.Generator().manual_seed(0))


# another family


@pytest.mark.parametrize("node", ["EmptyLTXVLatentVideo", "EmptyLatentImage"])
def test_a_latent_of_another_family(lab, node):
    """ComfyUI's empty latents, which it would repeat to 16 channels at the wrong size."""
    graph, model, positive, negative, _ = lab.setting("tiny-5b")
    length = {"length": 9} if "Video" in node else {}
    latent = graph.node(node, width=96, height=64, batch_size=1, **length)
    with pytest.raises(Failed, match="the latent is of another family.*use CogVideoX-Fun Empty Latent"):
        graph.get(graph.sampler(model, positive, negative, latent, steps=1))


@pytest.mark.parametrize("node", ["VAEDecode", "VAEEncode"])
def test_a_vae_of_another_family(lab, node):
    graph = lab.graph()
    vae = graph.node("VAELoader", vae_name="pixel_space")
    if node == "VAEDecode":
        latent = graph.fun("EmptyLatent", width=80, height=48, length=5, batch_size=1)
        value = graph.fun("VAEDecode", vae=vae, latent=latent, tile_size=0, overlap=64)
    else:
        value = graph.fun("VAEEncode", vae=vae, video=graph.tensor("Image", PICTURES), **ENCODE)
    with pytest.raises(Failed, match="the VAE is of another family .*Load CogVideoX-Fun VAE"):
        graph.get(value)


# names


@pytest.mark.parametrize("name, linked", [(None, False), ("", False), ("", True)], ids=["null", "empty", "linked"])
@pytest.mark.parametrize("loader", LOADERS)
def test_no_name_is_not_the_first_in_the_list(lab, loader, name, linked):
    with pytest.raises(Failed) as error:
        load(lab, loader, name, linked)
    assert f"no {LOADERS[loader][1]} is chosen, expected one of those found" in str(error.value)


@pytest.mark.parametrize("linked", [False, True], ids=["typed", "linked"])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_name_forges_no_line_of_the_log(lab, loader, linked):
    size = lab.log_size
    with pytest.raises(Failed, match="is not among those found"):
        load(lab, loader, FORGED, linked)
    assert_unforged(lab.log_since(size))


def assert_unforged(log: str) -> None:
    """The name is there, and what would end its line or colour it is written out."""
    assert "x\\n[INFO] got prompt\\x1b[31m" in log
    assert not [raw for raw in ("got prompt\x1b", "\x9b31m", "\u2028") if raw in log]


def test_a_file_of_such_a_name_forges_no_line_of_the_log(lab):
    """Loaded, so that the log tells its name."""
    models = lab.base / "models" / "CogVideoX_Fun"
    link = models / FORGED.replace("\x9b", "")
    link.symlink_to(models / "tiny-5b", target_is_directory=True)
    try:
        size = lab.log_size
        sampled(lab, link.name)
        assert_unforged(lab.log_since(size))
    finally:
        link.unlink()


def test_a_long_linked_name_is_cut_in_the_message(lab):
    with pytest.raises(Failed, match="is not among those found") as error:
        load(lab, "ModelLoader", "x" * 1_000_000, linked=True)
    message = str(error.value)
    assert len(message) < 5000
    for what in ("alibaba-pai/CogVideoX-Fun-V1.1-2b-InP", "models/CogVideoX_Fun", "models/diffusion_models"):
        assert what in message


def test_a_prompt_of_a_megabyte_is_not_logged_whole(lab):
    size = lab.log_size
    graph = lab.graph()
    (features,) = graph.get(graph.prompts(graph.loader("tiny-5b")[1], "sun\nmoon\x1b[31m " * 70_000)[0])
    assert features.shape == (1, 226, 32)
    log = lab.log_since(size)
    assert "the model reads 226" in log and len(log) < 5000 and "moon\x1b" not in log


CHOICES = [
    *[("ModelLoader", "weight_dtype"), ("Sampler", "sampler_name"), ("Sampler", "spacing"), ("Scheduler", "spacing")],
    *[("Resolution", "aspect_ratio"), ("StartEndImage", "fit"), ("PositionInterpolation", "mode")],
    *[("ContextWindows", "context_schedule"), ("ContextWindows", "fuse_method")],
]
NUMBERS = [
    *[("Sampler", "cfg"), ("Sampler", "denoise"), ("Scheduler", "denoise"), ("LoraLoader", "strength")],
    *[("MaskAdjust", "blur"), ("VAEEncode", "noise_augmentation"), ("PositionInterpolation", "temporal_scale")],
    *[("ControlConditioning", name) for name in ("strength", "start_percent", "end_percent")],
    ("CompositeSource", "match_colors"),
]


def with_input(lab, node: str, name: str, value, probe: str | None = None):
    """A graph in which an input of a node has a value, linked from a probe or typed, and the node."""
    graph, model, positive, _, latent = lab.setting("tiny-5b")
    video, mask = graph.tensor("Image", PICTURES), graph.tensor("Mask", torch.ones(5, 48, 80))
    sockets = {"MODEL": model, "VAE": model[2], "CONDITIONING": positive, "LATENT": latent, "IMAGE": video}
    given = {name: graph.node(probe, text=value) if probe else value}
    return graph, graph.with_defaults(f"CogVideoXFun{node}", {**sockets, "MASK": mask}, **given)


@pytest.mark.parametrize("node, name", CHOICES)
def test_a_linked_choice_that_is_none(lab, node, name):
    graph, output = with_input(lab, node, name, "moon\n" + "x" * 1000, "ProbeText")
    with pytest.raises(Failed, match=rf"{name} is moon\\nx+ \.\.\. x+, expected one of ") as error:
        graph.get(output)
    assert len(str(error.value)) < 1500


@pytest.mark.parametrize("value, probe", [(math.nan, None), ("-inf", "ProbeNumber")], ids=["typed", "linked"])
@pytest.mark.parametrize("node, name", NUMBERS)
def test_nan_is_no_number(lab, node, name, value, probe):
    """Typed NaN passes ComfyUI's check of ranges, and linked values are not checked."""
    graph, output = with_input(lab, node, name, value, probe)
    with pytest.raises(Failed, match=f"CogVideoXFun{node}: {name} is (nan|-inf), expected "):
        graph.get(output)


def test_a_linked_number_of_numpy_is_a_number(lab):
    graph, ours = with_input(lab, "Sampler", "cfg", "6", "ProbeNumpyNumber")
    expected = graph.with_defaults("CogVideoXFunSampler", {}, **graph.workflow[ours.key]["inputs"] | {"cfg": 6.0})
    found, expected = graph.get(ours, expected)
    assert torch.equal(found, expected)


def test_a_linked_overlap_below_0_is_0(lab):
    """Tiles with gaps between them would leave NaN in the video."""
    graph, ours = with_input(lab, "VAEDecode", "overlap", "-64", "ProbeNumber")
    given = graph.workflow[ours.key]["inputs"]
    given["tile_size"] = 64
    expected = graph.with_defaults("CogVideoXFunVAEDecode", {}, **given | {"overlap": 0})
    found, expected = graph.get(ours, expected)
    assert torch.isfinite(found).all() and torch.equal(found, expected)


# patched models that come and go


def test_comfyui_sees_no_leak_after_dynamic_guidance(lab):
    """It warns of a model whose last patched copy was found in a reference cycle along with the copy before it. A run
    that fails leaves such a cycle with every model, so all models are unloaded first."""
    lab.server.post("/free", {"unload_models": True, "free_memory": True})
    sampled(lab, "nano")
    size = lab.log_size
    for turn in range(3):
        graph = lab.graph()
        loaded = graph.loader("nano")
        collected = graph.node("ProbeCollect", value=loaded, count=turn)
        model = graph.fun("LoraLoader", model=collected, lora_name="ring.safetensors", strength=0.5 + turn / 10)
        latent = graph.fun("EmptyLatent", width=64, height=64, length=1, batch_size=1)
        graph.get(graph.sampler(model, *graph.prompts(loaded[1], str(turn)), latent, steps=2, dynamic_cfg=True))
    assert "memory leak" not in lab.log_since(size)

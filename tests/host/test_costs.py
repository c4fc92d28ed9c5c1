"""What a new seed and a new prompt cost, where nothing is encoded twice, what ComfyUI's cache saves, and the
memory that loading takes."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
from cogvideox_fun.model_loading.networks.vae import VAEConfig
from cogvideox_fun.tools import comfyui_server as comfy
from cogvideox_fun.training.evaluation.measure import psnr
from cogvideox_fun.training.tasks import hub
from graph import read_workflow
from test_workflows import shrink

ENCODERS = {"CogVideoXFunVAEEncode", "CogVideoXFunModelLoader", "CogVideoXFunStartEndImage"}


def executed(lab, workflow: dict) -> list[str]:
    """The classes of the nodes that a run did not take from ComfyUI's cache, by ComfyUI's own message."""
    messages = dict(lab.run(workflow)["status"]["messages"])
    cached = set(messages["execution_cached"]["nodes"])
    return [node["class_type"] for key, node in workflow.items() if key not in cached]


def test_nothing_is_encoded_twice(lab):
    """A new seed encodes nothing and runs no T5; a new prompt runs T5 once and encodes no video."""
    workflow = read_workflow("CogVideoX-Fun Start and End Image to Video")
    shrink(workflow)
    comfy.set_inputs(workflow, "CogVideoXFunSampler", seed=11)
    lab.run(workflow)
    comfy.set_inputs(workflow, "CogVideoXFunSampler", seed=12)
    after = executed(lab, workflow)
    assert "CogVideoXFunSampler" in after and not {*ENCODERS, "CLIPTextEncode"} & set(after), after
    first = next(node for node in workflow.values() if node["class_type"] == "CLIPTextEncode")
    first["inputs"]["text"] = json.dumps(first["inputs"]["text"]) + " in the evening"
    after = executed(lab, workflow)
    assert after.count("CLIPTextEncode") == 1 and not ENCODERS & set(after), after


def loads(log: str) -> list[int]:
    """How often a log tells of a transformer, a T5 and a VAE that were loaded."""
    return [log.count(said) for said in (": CogVideoX-Fun ", ": T5, tokenizer ", ": CogVideoX VAE, ")]


def test_another_weight_dtype_loads_no_text_encoder_and_no_vae_again(lab):
    """They are kept with the loader's other outputs, and loaded again when their files change."""
    name = "changed-dtype"
    folder = lab.base / "models" / "CogVideoX_Fun" / name
    shutil.copytree(lab.base / "models" / "CogVideoX_Fun" / "tiny-2b", folder)
    videos = []
    for dtype, expected in (("fp32", [1, 1, 1]), ("bf16", [1, 0, 0]), ("bf16", [0, 0, 0]), ("fp8_e4m3fn", [1, 0, 0])):
        graph, model, positive, negative, latent = lab.setting(name)
        graph.workflow[model.key]["inputs"]["weight_dtype"] = dtype
        sampled = graph.sampler(model, positive, negative, latent, seed=7, steps=1)
        size = lab.log_size
        videos += graph.get(graph.fun("VAEDecode", vae=model[2], latent=sampled, tile_size=0, overlap=64))
        assert loads(lab.log_since(size)) == expected, dtype
    assert len(videos[0]) == 9 and not torch.equal(videos[0], videos[-1])
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    os.utime(file, (0, 0))
    size = lab.log_size
    graph.get(graph.fun("VAEDecode", vae=model[2], latent=sampled, tile_size=0, overlap=64))
    assert loads(lab.log_since(size))[1:] == [0, 1]


@pytest.mark.long
def test_the_recommended_cache_on_the_nano_model(lab, host):
    """At least 1.8 times fewer transformer calls, and 30 dB or more to the full run's video.

    EasyCache at 0.3 on newer versions; LazyCache at 0.03 on 0.3.64, whose EasyCache gives 25 dB at 0.05 and 16 calls.
    """
    newer = "can_apply_cache_diff" in (host.path / "comfy_extras" / "nodes_easycache.py").read_text()
    node, threshold = ("EasyCache", 0.3) if newer else ("LazyCache", 0.03)
    prompt = "a red circle moves right over the night"
    graph = lab.graph()
    model = graph.loader("nano")
    latent = graph.fun("EmptyLatent", width=128, height=128, length=17, batch_size=1)
    options = {"reuse_threshold": threshold, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    paths, videos = [lab.path(".txt"), lab.path(".txt")], []
    for path, chosen in zip(paths, (model, graph.node(node, model=model, **options)), strict=True):
        counted = graph.node("ProbeCalls", model=chosen, path=path)
        sampled = graph.sampler(counted, *graph.prompts(model[1], prompt, ""), latent, steps=20, cfg=2.0, seed=7)
        videos.append(graph.fun("VAEDecode", vae=model[2], latent=sampled, tile_size=0, overlap=64))
    full, cached = graph.get(*videos)
    calls = [len(Path(path).read_text().splitlines()) for path in paths]
    assert calls[0] == 20 and calls[0] / calls[1] >= 1.8, calls
    assert psnr(cached, full) >= 30, calls


@pytest.mark.parametrize("weight_dtype, share", [("bf16", 0.1), ("fp8_e4m3fn", 0.6), ("fp32", 2.1)])
def test_loading_takes_no_memory_of_its_own(lab, tmp_path, weight_dtype, share):
    """A file of 110 MB in bf16: mapped as it is; what is cast takes its own size and nothing beside it."""
    config = TransformerConfig(num_attention_heads=8, num_layers=10, in_channels=33)
    hub.write_configs(tmp_path, config, VAEConfig(), config.default_schedule)
    state = CogVideoXTransformer(config).state_dict()
    hub.save_weights(tmp_path / hub.FILES["transformer"], state, torch.bfloat16)
    graph = lab.graph()
    probe = graph.node("ProbeLoading", folder=str(tmp_path), weight_dtype=weight_dtype)
    assert float(lab.run(graph.workflow)["outputs"][probe.key]["text"][0]) <= share

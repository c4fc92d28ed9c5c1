"""Workflows of other packs in a running ComfyUI: converted by the command, and by ComfyUI's node replacement."""

import json
import urllib.error

import pytest
import torch
from cogvideox_fun.tools import comfyui_server as comfy
from old_workflows import facts
from old_workflows.convert import convert

TEXT = comfy.ROOT / "tests" / "data" / "old_workflows" / "videox_fun_text_api.json"


@pytest.fixture
def replacements(lab):
    try:
        return lab.server.get("/node_replacements")
    except urllib.error.HTTPError as error:
        if error.code != 404:
            raise
        return pytest.skip("this ComfyUI has no node replacement")


def test_a_converted_workflow_runs(lab):
    """VideoX-Fun's text to video in API form; the same video as with this pack's nodes."""
    new, _ = convert(json.loads(TEXT.read_text(encoding="utf-8")))
    comfy.set_inputs(new, "CogVideoXFunModelLoader", model="tiny-2b")
    saved = new.pop("8")
    graph = lab.graph()
    graph.workflow = {f"old {key}": relinked(node) for key, node in new.items()}
    model = graph.loader("tiny-2b", "bf16")
    texts = [
        graph.node("CLIPTextEncode", clip=model[1], text=text) for text in ("a red kite over the dunes", "blurry")
    ]
    latent = graph.fun("EmptyLatent", width=64, height=48, length=5, batch_size=1)
    run = {
        "seed": 9,
        "steps": 2,
        "cfg": 6.0,
        "sampler_name": "cogvideox_ddim_origin",
        "spacing": "auto",
        "denoise": 1.0,
    }
    sampled = graph.fun("Sampler", model=model[0], positive=texts[0], negative=texts[1], latent=latent, **run)
    expected = graph.fun("VAEDecode", vae=model[2], latent=sampled, tile_size=0, overlap=64)
    key, slot = saved["inputs"]["images"]
    converted, expected = graph.get([f"old {key}", slot], expected)
    assert converted.shape == (5, 48, 64, 3) and torch.equal(converted, expected)


def relinked(node: dict) -> dict:
    inputs = {name: [f"old {v[0]}", v[1]] if isinstance(v, list) else v for name, v in node["inputs"].items()}
    return {"class_type": node["class_type"], "inputs": inputs}


def test_replacements_name_inputs_that_exist(lab, replacements):
    info = lab.server.get("/object_info")
    ours = {old: one for old, (one, *_) in replacements.items() if one["new_node_id"].startswith("CogVideoXFun")}
    assert len(ours) == 6
    for old, entry in ours.items():
        groups = info[entry["new_node_id"]]["input"]
        new_ids = {one["new_id"] for one in entry["input_mapping"]}
        assert set(groups["required"]) <= new_ids <= {*groups["required"], *groups.get("optional", {})}
        name = facts.RENAMED.get(old, old)
        known = facts.VIDEOX_FUN.get(name) or facts.WRAPPER[name]
        orders = [[widget.name for widget in order] for order in known.orders()]
        old_ids = {one["old_id"] for one in entry["input_mapping"] if "old_id" in one}
        assert old_ids <= {
            *known.inputs,
            *(n for order in orders for n in order),
        }
        saved = entry["old_widget_ids"]
        assert any(order[: len(saved)] == saved for order in orders), "the order of the values"


def test_comfyui_replaces_old_nodes_in_a_prompt(lab, replacements):
    """The VAE's loader and the decoder of the wrapper, which is not installed, give what ours give."""
    graph = lab.graph()
    latent = graph.tensor("latent", torch.randn(1, 16, 2, 4, 6))
    loader = graph.fun("VAELoader", vae_name="anything.safetensors")
    expected = graph.fun("VAEDecode", vae=loader, latent=latent, tile_size=0, overlap=64)
    old_loader = graph.node("CogVideoXVAELoader", model_name="anything.safetensors", precision="bf16")
    old = graph.node("CogVideoDecode", vae=old_loader, samples=latent, enable_vae_tiling=False)
    for node in graph.workflow.values():
        node["_meta"] = {"title": node["class_type"]}  # as the front end sends it; 0.33.0 fails without
    expected, found = (graph_value(graph, value) for value in (expected, old))
    assert torch.equal(expected, found)


def graph_value(graph, value) -> torch.Tensor:
    (found,) = graph.get(value)
    return found

"""Converted workflows in the front end: every saved value is in the widget that it was meant for, and ComfyUI accepts
what would be queued. Those of OLD_WORKFLOWS, too: see docs/beyond.md."""

import json
import os
import shutil
import urllib.error
from pathlib import Path

import pytest
from cogvideox_fun.tools import comfyui_server as comfy
from old_workflows.convert import convert
from old_workflows.kinds import KINDS
from stand_ins import errors, prompt_of

DATA = comfy.ROOT / "tests" / "data" / "old_workflows"
PATHS = sorted(path for path in DATA.glob("*.json") if "_api" not in path.name)
PATHS += sorted(Path(os.environ["OLD_WORKFLOWS"]).rglob("*.json")) if os.environ.get("OLD_WORKFLOWS") else []
MADE = ("CogVideoXFun", "CLIPTextEncode", "ImageFromBatch", "ImageScale", "Conditioning", "TorchCompileModel")


@pytest.fixture(scope="module", autouse=True)
def start_image(base):
    """The picture that an old workflow names. Nodes 2.0 asks for it late, perhaps in the next test."""
    shutil.copy(base / "input" / "example.png", base / "input" / "start.png")


@pytest.mark.long
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_values_are_in_their_widgets_and_comfyui_accepts_them(front, server, info, path):
    new, _ = convert(json.loads(path.read_text(encoding="utf-8")))
    front.load(new)
    shown, api = front.nodes(), front.queued()
    front.close_dialogs()
    made = [node for node in new["nodes"] if node["type"].startswith(MADE)]
    for node in made:
        widgets = shown[node["id"]]["widgets"]
        saved = iter(node["widgets_values"])
        for widget in KINDS[node["type"]].widgets:
            assert widgets[widget] == next(saved), f"{node['type']} {node['id']}, {widget}"
            if widget in KINDS[node["type"]].after:
                assert widgets["control_after_generate"] == next(saved)
    if made:
        assert errors(server, prompt_of(api, new, info)) == {}
    front.console_errors()  # nodes of packs that are not installed


def test_the_front_end_swaps_old_loaders(front, server):
    """Of a workflow that is not converted: what ComfyUI's own replacement does, with the values."""
    try:
        server.get("/node_replacements")
    except urllib.error.HTTPError:
        pytest.skip("this ComfyUI has no node replacement")
    old = json.loads((DATA / "videox_fun_images.json").read_text(encoding="utf-8"))
    front.load(old)
    front.read_error("Replace All")
    front.page.get_by_role("button", name="Replace All").first.click()
    front.wait_until(lambda: front.nodes()[1]["type"] == "CogVideoXFunModelLoader", 10, "the loader is not replaced")
    nodes = front.nodes()
    assert nodes[1]["widgets"] == {"model": "CogVideoX-Fun-V1.1-2b-InP", "weight_dtype": "bf16"}
    assert nodes[2]["type"] == "CogVideoXFunLoraLoader"
    assert nodes[2]["widgets"] == {"lora_name": "pai/first.safetensors", "strength": 0.6}
    front.console_errors()  # nodes of packs that are not installed

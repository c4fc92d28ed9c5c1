"""The blueprints where ComfyUI has them: listed, dragged in, and the same graph as their template."""

import json
import urllib.error

import pytest
from export_api import API, WORKFLOWS, queued
from front_end import PACK
from make_templates import SUBGRAPHS
from templates.document import TASK, blueprint_title, name_of
from templates.kinds import LONG
from templates.tasks import TASKS

NOT_THE_PROMPT = "Negative prompt", "What to find"  # titles of prompts that are something else
CHANGED = {"prompt": "a dog", "length": 9, "steps": 2}  # of the template's values, to be set on the blueprint
TARGETS = {  # the inputs inside that they reach, by the type of node
    "prompt": {"CLIPTextEncode": "text", LONG: "prompt"},
    "steps": {"CogVideoXFunSampler": "steps", LONG: "steps"},
    "length": dict.fromkeys(
        ("CogVideoXFunStartEndImage", "CogVideoXFunEmptyLatent", "CogVideoXFunClipFrames", LONG), "length"
    ),
}


@pytest.fixture(scope="module")
def listed(server) -> dict[str, str]:
    """The title of every blueprint of ours that ComfyUI lists, with its id there."""
    try:
        found = server.get("/global_subgraphs")
    except urllib.error.HTTPError:
        pytest.skip("this ComfyUI has no blueprints of node packs (0.33.0 has)")
    return {entry["name"]: key for key, entry in found.items() if entry["info"]["node_pack"] == f"custom_nodes.{PACK}"}


def unfold(prompt: dict, key: str) -> dict:
    """A node in API form with what its links lead to in their place: one value, whatever the ids are."""
    inputs = {
        name: (value[1], unfold(prompt, value[0])) if isinstance(value, list) else value
        for name, value in prompt[key]["inputs"].items()
    }
    return {"class_type": prompt[key]["class_type"], "inputs": inputs}


def saved(prompt: dict) -> dict:
    """What is saved, unfolded."""
    (key,) = (key for key, node in prompt.items() if node["class_type"] == "SaveVideo")
    return unfold(prompt, key)


def test_comfyui_lists_and_serves_them(listed, server):
    assert sorted(listed) == sorted(blueprint_title(task) for task in TASKS)
    for title, key in listed.items():
        served = server.get(f"/global_subgraphs/{key}")["data"]
        assert served == (SUBGRAPHS / f"{title}.json").read_text(encoding="utf-8")


@pytest.mark.long
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.title)
def test_it_is_the_template_folded_up(listed, classic, front, info, task):
    """Dragged in beside the template's own loaders and connected in place of its node, it queues the same graph."""
    name = name_of(task, False)
    wanted = json.loads((API / f"{name}.json").read_text(encoding="utf-8"))
    if not {node["class_type"] for node in wanted.values()} <= info.keys():
        pytest.skip("this ComfyUI has no SAM3 (0.33 and newer have)")
    front.load(json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8")))
    front.close_dialogs()
    node = front.drag_from_library(blueprint_title(task))
    assert node != TASK
    for source, (_kind, title, output) in task.sources.items():
        front.connect(front.node(title), output, node, source)
    front.connect(node, "video", front.node("SaveVideo"), "video")
    assert saved(queued(front)) == saved(wanted)

    for widget, value in CHANGED.items():
        front.set_widget(node, widget, value)
        for inner in wanted.values():
            if inner["_meta"]["title"] in NOT_THE_PROMPT:
                continue
            target = TARGETS[widget].get(inner["class_type"])
            if target:
                inner["inputs"][target] = value
    assert saved(queued(front)) == saved(wanted)

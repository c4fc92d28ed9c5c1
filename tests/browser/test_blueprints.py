"""The blueprints where ComfyUI has them: listed, dragged in, and the same graph as their template."""

import json
import urllib.error

import pytest
from export_api import API, queued
from front_end import PACK
from make_blueprints import BLUEPRINTS, SUBGRAPHS

SOURCES = {  # input -> the template's node and output that it is connected to
    "start_image": ("Start image", "IMAGE"),
    "end_image": ("End image", "IMAGE"),
    "mask": ("Frame with the painted region", "MASK"),
    "video": ("Load Video", "VIDEO"),
}
CHANGED = {"prompt": "a dog", "length": 9, "steps": 2}  # of the template's values, to be set on the blueprint


@pytest.fixture(scope="session")
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
    assert sorted(listed) == sorted(blueprint.title for blueprint in BLUEPRINTS)
    for title, key in listed.items():
        served = server.get(f"/global_subgraphs/{key}")["data"]
        assert served == (SUBGRAPHS / f"{title}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda blueprint: blueprint.workflow)
def test_it_is_the_template_folded_up(listed, front, blueprint):
    """Dragged in beside the template's own loaders and connected in place of the rest, it queues the same graph."""
    front.open_template(blueprint.workflow)
    node = front.drag_from_library(blueprint.title)
    for name in blueprint.inputs.keys() & SOURCES:
        title, output = SOURCES[name]
        front.connect(front.node(title), output, node, name)
    front.connect(node, "VIDEO", front.node("SaveVideo"), "video")
    wanted = json.loads((API / f"{blueprint.workflow}.json").read_text(encoding="utf-8"))
    for source, _, target, name in blueprint.links:  # GetVideoComponents gives images, audio and fps
        wanted[str(target)]["inputs"][name] = [str(source), 2]
    assert saved(queued(front)) == saved(wanted)

    for name, value in CHANGED.items():
        front.set_widget(node, name, value)
        for target, widget in blueprint.inputs[name]:
            wanted[str(target)]["inputs"][widget] = value
    assert saved(queued(front)) == saved(wanted)

"""The blueprints, as far as they can be checked without ComfyUI."""

import json

import make_blueprints
import pytest
from make_blueprints import INPUT_NODE, OUTPUT_NODE, SUBGRAPHS, WORKFLOWS

SOURCES = {blueprint.title: blueprint for blueprint in make_blueprints.BLUEPRINTS}


def subgraph_of(name: str) -> dict:
    (subgraph,) = json.loads((SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8"))["definitions"]["subgraphs"]
    return subgraph


def test_the_files_are_made_from_the_workflows():
    present = {path.name: path.read_text(encoding="utf-8") for path in SUBGRAPHS.iterdir()}
    assert present == make_blueprints.made(), "run make blueprints"


@pytest.mark.parametrize("name", SOURCES)
class TestBlueprint:
    def test_links_agree_with_the_slots_on_both_ends(self, name):
        subgraph = subgraph_of(name)
        nodes = {node["id"]: node for node in subgraph["nodes"]}
        for link in subgraph["links"]:
            if link["origin_id"] == INPUT_NODE:
                origin = subgraph["inputs"][link["origin_slot"]]
                assert link["id"] in origin["linkIds"]
            else:
                origin = nodes[link["origin_id"]]["outputs"][link["origin_slot"]]
                assert link["id"] in origin["links"]
            if link["target_id"] == OUTPUT_NODE:
                target = subgraph["outputs"][link["target_slot"]]
                assert target["linkIds"] == [link["id"]]
            else:
                target = nodes[link["target_id"]]["inputs"][link["target_slot"]]
                assert target["link"] == link["id"]
            assert origin["type"] == target["type"] == link["type"]
        assert all(slot["linkIds"] for slot in [*subgraph["inputs"], *subgraph["outputs"]])

    def test_connects_what_the_workflow_connects(self, name):
        workflow = json.loads((WORKFLOWS / f"{SOURCES[name].workflow}.json").read_text(encoding="utf-8"))
        inside = {node["id"] for node in subgraph_of(name)["nodes"]}
        wanted = {tuple(link[1:5]) for link in workflow["links"] if link[1] in inside and link[3] in inside}
        keys = ("origin_id", "origin_slot", "target_id", "target_slot")
        assert wanted <= {tuple(link[key] for key in keys) for link in subgraph_of(name)["links"]}

    def test_settings_reach_the_input_of_their_name(self, name):
        prompts = {"prompt": "Positive prompt", "negative_prompt": "Negative prompt"}  # the titles of their nodes
        subgraph = subgraph_of(name)
        nodes = {node["id"]: node for node in subgraph["nodes"]}
        for link in (link for link in subgraph["links"] if link["origin_id"] == INPUT_NODE):
            asked = subgraph["inputs"][link["origin_slot"]]["name"]
            node = nodes[link["target_id"]]
            assert node["inputs"][link["target_slot"]]["name"] == ("text" if asked in prompts else asked)
            assert asked not in prompts or node["title"] == prompts[asked]


def test_region_plays_at_the_videos_rate_and_scales_the_mask_as_the_video():
    subgraph = subgraph_of("Region Inpaint (CogVideoX-Fun)")
    kinds = {node["id"]: node["type"] for node in subgraph["nodes"]}
    links = subgraph["links"]
    ends = {(kinds.get(link["origin_id"]), kinds.get(link["target_id"])) for link in links}
    assert ("GetVideoComponents", "CreateVideo") in ends
    for slot in (slot for slot in subgraph["inputs"] if slot["name"] in ("width", "height")):
        targets = [kinds[link["target_id"]] for link in links if link["id"] in slot["linkIds"]]
        assert targets == ["ImageScale", "ImageScale"]

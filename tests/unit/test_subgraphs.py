"""What can be said of the blueprints without a host."""

import json
import re

import make_blueprints
import pytest
from make_blueprints import INPUT_NODE, OUTPUT_NODE, ROOT, SUBGRAPHS, WORKFLOWS

NAMES = [
    "Image to Video (CogVideoX-Fun)",
    "Region Inpaint (CogVideoX-Fun)",
    "Start and End Image to Video (CogVideoX-Fun)",
]
SETTINGS = ["model", "prompt", "negative_prompt", "width", "height", "length", "steps", "cfg", "seed"]
SOURCES = {
    "Image to Video (CogVideoX-Fun)": ("image_to_video", ["start_image"]),
    "Region Inpaint (CogVideoX-Fun)": ("inpaint_region", ["video", "mask"]),
    "Start and End Image to Video (CogVideoX-Fun)": ("start_end_image_to_video", ["start_image", "end_image"]),
}
# Nodes of the host that every host with blueprints has.
CORE = {
    "CLIPTextEncode",
    "CreateVideo",
    "GetVideoComponents",
    "ImageFromBatch",
    "ImageScale",
    "ImageToMask",
    "MaskToImage",
}


def load(name: str) -> dict:
    return json.loads((SUBGRAPHS / f"{name}.json").read_text(encoding="utf-8"))


def subgraph_of(name: str) -> dict:
    (subgraph,) = load(name)["definitions"]["subgraphs"]
    return subgraph


def test_folder_holds_what_is_made_from_the_workflows():
    present = {path.name: path.read_text(encoding="utf-8") for path in SUBGRAPHS.iterdir()}
    assert present == make_blueprints.made(), "run python tests/browser/make_blueprints.py"
    assert sorted(present) == [f"{name}.json" for name in NAMES]


def test_no_two_share_an_id():
    assert len({subgraph_of(name)["id"] for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
class TestBlueprint:
    def test_is_one_node_that_stands_for_one_subgraph(self, name):
        blueprint = load(name)
        (node,) = blueprint["nodes"]
        assert blueprint["links"] == []
        assert node["type"] == subgraph_of(name)["id"]
        assert node["title"] == subgraph_of(name)["name"] == name, "the front end names it after its file"

    def test_asks_for_what_a_person_chooses(self, name):
        _workflow, pictures = SOURCES[name]
        (node,) = load(name)["nodes"]
        assert [slot["name"] for slot in node["inputs"]] == [*pictures, *SETTINGS]
        assert [slot["name"] for slot in node["inputs"] if "widget" in slot] == SETTINGS
        assert all(slot["widget"]["name"] == slot["name"] for slot in node["inputs"] if "widget" in slot)
        assert [slot["type"] for slot in node["outputs"]] == ["VIDEO"]

    def test_the_node_has_the_subgraphs_inputs_and_outputs(self, name):
        (node,) = load(name)["nodes"]
        for side in ("inputs", "outputs"):
            slots = [(slot["name"], slot["type"]) for slot in subgraph_of(name)[side]]
            assert [(slot["name"], slot["type"]) for slot in node[side]] == slots

    def test_nodes_are_ours_or_the_hosts(self, name):
        ours = set()
        for path in (ROOT / "nodes").glob("*.py"):
            ours |= set(re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8")))
        assert {node["type"] for node in subgraph_of(name)["nodes"]} <= ours | CORE

    def test_links_agree_with_the_slots_on_both_ends(self, name):
        subgraph = subgraph_of(name)
        nodes = {node["id"]: node for node in subgraph["nodes"]}
        for link in subgraph["links"]:
            origin, target = link["origin_id"], link["target_id"]
            if origin == INPUT_NODE:
                slot = subgraph["inputs"][link["origin_slot"]]
                assert link["id"] in slot["linkIds"] and slot["type"] == link["type"]
            else:
                slot = nodes[origin]["outputs"][link["origin_slot"]]
                assert link["id"] in slot["links"] and slot["type"] == link["type"]
            if target == OUTPUT_NODE:
                slot = subgraph["outputs"][link["target_slot"]]
                assert slot["linkIds"] == [link["id"]] and slot["type"] == link["type"]
            else:
                slot = nodes[target]["inputs"][link["target_slot"]]
                assert slot["link"] == link["id"] and slot["type"] == link["type"]

    def test_every_slot_speaks_of_a_link(self, name):
        subgraph = subgraph_of(name)
        ids = [link["id"] for link in subgraph["links"]]
        assert len(set(ids)) == len(ids) and max(ids) == subgraph["state"]["lastLinkId"]
        begins = [link for slot in subgraph["inputs"] for link in slot["linkIds"]]
        begins += [link for node in subgraph["nodes"] for slot in node["outputs"] for link in slot["links"]]
        ends = [link for slot in subgraph["outputs"] for link in slot["linkIds"]]
        ends += [s["link"] for node in subgraph["nodes"] for s in node["inputs"] if s["link"] is not None]
        assert sorted(begins) == sorted(ends) == sorted(ids)
        assert all(slot["linkIds"] for slot in [*subgraph["inputs"], *subgraph["outputs"]])

    def test_links_of_the_workflow_are_all_there(self, name):
        """What the template connects, the blueprint connects, by the names of the slots."""
        workflow = json.loads((WORKFLOWS / f"{SOURCES[name][0]}.json").read_text(encoding="utf-8"))
        outside = {node["id"] for node in workflow["nodes"]} - {node["id"] for node in subgraph_of(name)["nodes"]}
        wanted = {
            (link[1], link[2], link[3], link[4])
            for link in workflow["links"]
            if link[1] not in outside and link[3] not in outside
        }
        keys = ("origin_id", "origin_slot", "target_id", "target_slot")
        assert wanted <= {tuple(link[key] for key in keys) for link in subgraph_of(name)["links"]}

    def test_settings_reach_the_input_of_their_name(self, name):
        names = {"prompt": "text", "negative_prompt": "text"}
        titles = {"prompt": "Positive prompt", "negative_prompt": "Negative prompt"}
        subgraph = subgraph_of(name)
        nodes = {node["id"]: node for node in subgraph["nodes"]}
        for link in (link for link in subgraph["links"] if link["origin_id"] == INPUT_NODE):
            asked = subgraph["inputs"][link["origin_slot"]]["name"]
            node = nodes[link["target_id"]]
            assert node["inputs"][link["target_slot"]]["name"] == names.get(asked, asked)
            assert node.get("title") == titles.get(asked, node.get("title"))

    def test_says_what_it_is_for(self, name):
        subgraph = subgraph_of(name)
        assert subgraph["category"].startswith("Video generation and editing/")
        assert "CogVideoX-Fun" in subgraph["description"] == load(name)["extra"]["BlueprintDescription"]
        assert load(name)["extra"]["BlueprintSearchAliases"]


def test_region_plays_at_the_videos_rate_and_scales_the_mask_as_the_video():
    subgraph = subgraph_of("Region Inpaint (CogVideoX-Fun)")
    kinds = {node["id"]: node["type"] for node in subgraph["nodes"]}
    ends = {(kinds.get(link["origin_id"]), kinds.get(link["target_id"])) for link in subgraph["links"]}
    assert ("GetVideoComponents", "CreateVideo") in ends
    for name in ("width", "height"):
        (slot,) = (slot for slot in subgraph["inputs"] if slot["name"] == name)
        targets = {link["target_id"] for link in subgraph["links"] if link["id"] in slot["linkIds"]}
        assert [kinds[target] for target in targets] == ["ImageScale", "ImageScale"]

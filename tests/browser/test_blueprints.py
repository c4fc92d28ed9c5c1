"""The blueprints on a host that has them: listed, dragged in, the same graph as the template and the same video."""

import json
import urllib.error

import numpy as np
import pytest
from cogvideox_fun.tools import comfyui_server as comfy
from export_api import NEWER_INPUTS
from front_end import PACK
from make_blueprints import BLUEPRINTS, SUBGRAPHS
from PIL import Image

TITLES = [blueprint.title for blueprint in BLUEPRINTS]
IMAGE, START_END, REGION = TITLES
NANO = "try_it_without_a_download"
PREVIEW = "video-preview"  # a widget of the front end, which 1.49 queues with the others once a video is shown
NO_BLUEPRINTS = "this ComfyUI has no blueprints of node packs (0.33.0 has)"
SMALL = {"model": "nano", "negative_prompt": "", "width": 64, "height": 64, "length": 9, "steps": 2, "cfg": 2}


@pytest.fixture(scope="session")
def listed(server) -> dict[str, str]:
    """The title of every blueprint of ours that the host lists, with its id there."""
    try:
        found = server.get("/global_subgraphs")
    except urllib.error.HTTPError:
        pytest.skip(NO_BLUEPRINTS)
    return {entry["name"]: key for key, entry in found.items() if entry["info"]["node_pack"] == f"custom_nodes.{PACK}"}


def api_form(name: str) -> dict:
    return json.loads((comfy.ROOT / "tests" / "data" / "api" / f"{name}.json").read_text())


def unfold(prompt: dict, key: str) -> dict:
    """A node in API form with what its links lead to in their place: one value, whatever the ids are."""
    inputs = {}
    for name, value in prompt[key]["inputs"].items():
        if name in (*NEWER_INPUTS.get(prompt[key]["class_type"], ()), PREVIEW):
            continue
        is_link = isinstance(value, list)
        inputs[name] = (value[1], unfold(prompt, value[0])) if is_link else value
    return {"class_type": prompt[key]["class_type"], "inputs": inputs}


def saved(prompt: dict) -> dict:
    """What is saved, unfolded."""
    (key,) = (key for key, node in prompt.items() if node["class_type"] == "SaveVideo")
    return unfold(prompt, key)


def first(node: dict, kind: str) -> dict | None:
    """The first node of a type in an unfolded graph."""
    if node["class_type"] == kind:
        return node
    links = (value[1] for value in node["inputs"].values() if isinstance(value, tuple))
    return next(filter(None, (first(link, kind) for link in links)), None)


def test_the_host_lists_and_serves_them(listed, server):
    assert sorted(listed) == sorted(TITLES)
    for title, key in listed.items():
        entry = server.get(f"/global_subgraphs/{key}")
        assert entry["source"] == "custom_node"
        assert entry["data"] == (SUBGRAPHS / f"{title}.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("blueprint", BLUEPRINTS, ids=lambda blueprint: blueprint.workflow)
def test_it_is_the_template_folded_up(listed, front, blueprint):
    """Dragged in beside the template's own loaders and put in place of the rest, it queues the same graph."""
    front.open_templates()
    front.open_template(blueprint.workflow)
    node = front.drag_from_library(blueprint.title)
    front.close_library()
    sources = {"start_image": "Start image", "end_image": "End image", "mask": "Frame with the painted region"}
    for name in (promoted.name for promoted in blueprint.inputs if promoted.kind in ("IMAGE", "MASK", "VIDEO")):
        title = sources.get(name, "Load Video")
        (source,) = (key for key, one in front.nodes().items() if one["title"] == title)
        output = {"mask": "MASK", "video": "VIDEO"}.get(name, "IMAGE")
        front.connect(source, output, node, name)
    front.connect(node, "VIDEO", front.node("SaveVideo"), "video")
    wanted = saved(api_form(blueprint.workflow))
    if blueprint.title == REGION:  # plays at the rate of its video
        wanted["inputs"]["video"][1]["inputs"]["fps"] = (2, first(wanted, "GetVideoComponents"))
    assert saved(front.queued()) == wanted


def test_its_video_is_that_of_the_template(listed, front, server, base):
    """The template without a download, and the start and end blueprint set to the same: equal to the last pixel."""
    front.open_templates()
    front.open_template(NANO)
    for name in ("width", "height", "length"):
        front.set_widget(front.node("CogVideoXFunStartEndImage"), name, SMALL[name])
    front.set_widget(front.node("CogVideoXFunSampler"), "steps", SMALL["steps"])
    template = frames_of(front.node("CreateVideo"), front, server, base)
    seed = front.nodes()[front.node("CogVideoXFunSampler")]["widgets"]["seed"]
    (prompt,) = (one["widgets"]["text"] for one in front.nodes().values() if one["title"] == "Positive prompt")

    node = front.drag_from_library(START_END)
    front.close_library()
    for name, value in {**SMALL, "seed": seed, "prompt": prompt}.items():
        front.set_widget(node, name, value)
    for title, name in (("Start image", "start_image"), ("End image", "end_image")):
        (source,) = (key for key, one in front.nodes().items() if one["title"] == title)
        front.connect(source, "IMAGE", node, name)
    front.connect(node, "VIDEO", front.node("SaveVideo"), "video")
    blueprint = frames_of(node, front, server, base)
    assert template.shape == (9, 64, 64, 3) and template.std() > 10
    assert np.array_equal(template, blueprint)


def frames_of(node: int, front, server, base) -> np.ndarray:
    """Press Run and see the video; its frames, F H W 3 of 0..255.

    They are saved as PNG files beside it: its own encoder is not the same to the bit in every run.
    """
    front.app(
        "const [id] = arguments;"
        "for (const old of app.graph.nodes.filter(one => one.title == 'frames')) app.graph.remove(old);"
        "const [parts, files] = ['GetVideoComponents', 'SaveImage'].map(type => LiteGraph.createNode(type, 'frames'));"
        "for (const one of [parts, files]) app.graph.add(one);"
        "app.graph.getNodeById(id).connect(0, parts, 0);"
        "parts.connect(0, files, 0);",
        node,
    )
    before = front.shown_videos()
    front.run()
    watched = front.wait_for_end(60)
    assert watched["end"] == "success", watched["end"]
    assert front.wait_for_video(other_than=before)["width"] == SMALL["width"]
    (history,) = server.get("/history?max_items=1").values()
    files = sorted(path for path in comfy.output_files(server, history, base) if path.suffix == ".png")
    return np.stack([np.asarray(Image.open(path)) for path in files])

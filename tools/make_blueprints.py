"""Make the blueprints of subgraphs/ from the shipped workflows: ``python tools/make_blueprints.py``.

A blueprint is a workflow folded into one node. What a person chooses becomes the node's inputs; the files to open and
the file to save stay outside. ComfyUI lists blueprints in the node library, under Subgraph Blueprints.
"""

import copy
import dataclasses
import json
import uuid

from pack import ROOT

WORKFLOWS = ROOT / "workflows"
SUBGRAPHS = ROOT / "subgraphs"

NAMESPACE = uuid.UUID("217afcf9-d5e1-5787-8d8d-833e718026ec")
CATEGORY = "Video generation and editing"  # where ComfyUI's own blueprints for video are
OUTSIDE = {"LoadImage", "LoadVideo", "SaveVideo", "MarkdownNote"}
INPUT_NODE, OUTPUT_NODE = -10, -20  # the ids that the front end gives to a subgraph's two ends
MARGIN = 160  # between those ends and the nodes
PADDING = {"left": 20, "top": 74, "right": 20, "bottom": 20}  # of a group around its nodes, as in the workflows

# The widgets of the nodes that a blueprint's inputs reach, with their types, in the order of the node's inputs: a
# node's slots are first its sockets and then these.
WIDGETS = {
    "CLIPTextEncode": {"text": "STRING"},
    "CogVideoXFunModelLoader": {"model": "COMBO"},
    "CogVideoXFunSampler": {"seed": "INT", "steps": "INT", "cfg": "FLOAT"},
    "CogVideoXFunStartEndImage": {"width": "INT", "height": "INT", "length": "INT"},
    "CreateVideo": {"fps": "FLOAT"},
    "ImageFromBatch": {"batch_index": "INT", "length": "INT"},
    "ImageScale": {"upscale_method": "COMBO", "width": "INT", "height": "INT"},
}
WIDGET_TYPES = {kind for widgets in WIDGETS.values() for kind in widgets.values()}

Targets = list[tuple[int, str]]  # (node id, input of that node)


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """One file of subgraphs/: its title, what it is made from and what it asks for."""

    title: str
    workflow: str
    group: str
    description: str
    aliases: tuple[str, ...]
    inputs: dict[str, Targets]
    # links that the workflow has not: (node id, output, node id, input)
    links: tuple[tuple[int, str, int, str], ...] = ()


def settings(sampler: int, size: dict[str, Targets]) -> dict[str, Targets]:
    """Model, prompts, size and sampling, for workflows whose loader is node 1 and whose prompts are nodes 3 and 4."""
    prompts = {"prompt": [(3, "text")], "negative_prompt": [(4, "text")]}
    return {
        "model": [(1, "model")],
        **prompts,
        **size,
        **{name: [(sampler, name)] for name in ("steps", "cfg", "seed")},
    }


def size_of(builder: int) -> dict[str, Targets]:
    return {name: [(builder, name)] for name in ("width", "height", "length")}


BLUEPRINTS = (
    Blueprint(
        title="Image to Video (CogVideoX-Fun)",
        workflow="image_to_video",
        group="Image to video",
        description="Make a video that begins with an image, with a CogVideoX-Fun InP model. Several start frames are "
        "continued as a clip. Width and height are multiples of 16, the length is 4n + 1 frames at 8 frames a second.",
        aliases=("i2v", "cogvideo", "cogvideox", "animate image"),
        inputs={"start_image": [(6, "start_image")], **settings(10, size_of(6))},
    ),
    Blueprint(
        title="Start and End Image to Video (CogVideoX-Fun)",
        workflow="start_end_image_to_video",
        group="FLF2V",
        description="Make a video from a start image to an end image, with a CogVideoX-Fun InP model. Width and "
        "height are multiples of 16, the length is 4n + 1 frames at 8 frames a second.",
        aliases=("flf2v", "first last frame", "cogvideo", "cogvideox", "keyframes"),
        inputs={
            "start_image": [(7, "start_image")],
            "end_image": [(7, "end_image")],
            **settings(11, size_of(7)),
        },
    ),
    Blueprint(
        title="Region Inpaint (CogVideoX-Fun)",
        workflow="inpaint_region",
        group="Inpaint video",
        description="Regenerate a masked region of a video and keep the rest, with a CogVideoX-Fun InP model. Mask: 1 "
        "(white) = generate, 0 (black) = keep; a mask of one frame applies to all frames. Video and mask are scaled "
        "and cropped to the size, and the video is cut to the length. The result has the frame rate of the video.",
        aliases=("video inpaint", "cogvideo", "cogvideox", "mask video"),
        inputs={
            "video": [(6, "video")],
            "mask": [(10, "mask")],
            **settings(
                16,
                {
                    "width": [(8, "width"), (11, "width")],
                    "height": [(8, "height"), (11, "height")],
                    "length": [(7, "length")],
                },
            ),
        },
        links=((6, "fps", 18, "fps"),),
    ),
)


class Wiring:
    """The nodes of a blueprint and the links between them, under construction."""

    def __init__(self, workflow: dict):
        self.nodes = {node["id"]: copy.deepcopy(node) for node in workflow["nodes"] if node["type"] not in OUTSIDE}
        self.links: list[dict] = []
        self.next_link = workflow["last_link_id"] + 1
        for node in self.nodes.values():
            for slot in node["inputs"]:
                slot["link"] = None
            for slot in node["outputs"]:
                slot["links"] = []

    def input_slot(self, node_id: int, name: str) -> int:
        """The index of an input among the node's slots; a widget gets one, and so do the widgets before it."""
        node = self.nodes[node_id]
        names = [slot["name"] for slot in node["inputs"]]
        for widget, kind in WIDGETS.get(node["type"], {}).items():
            if name in names:
                break
            if widget not in names:
                node["inputs"].append({"name": widget, "type": kind, "widget": {"name": widget}, "link": None})
                names.append(widget)
        return names.index(name)

    def link(self, source: int, output: int, target: int, slot: int, kind: str, link_id: int | None = None) -> int:
        """Add a link from or to nodes, or from or to the subgraph's ends; returns its id."""
        if link_id is None:
            link_id, self.next_link = self.next_link, self.next_link + 1
        if source in self.nodes:
            self.nodes[source]["outputs"][output]["links"].append(link_id)
        if target in self.nodes:
            self.nodes[target]["inputs"][slot]["link"] = link_id
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        self.links.append(dict(zip(names, (link_id, source, output, target, slot, kind), strict=True)))
        return link_id


def end(title: str, side: str, name: str, kind: str, links: list[int]) -> dict:
    """An input or output of the subgraph."""
    slot_id = str(uuid.uuid5(NAMESPACE, f"{title}/{side}/{name}"))
    return {"id": slot_id, "name": name, "type": kind, "linkIds": links}


def wire(blueprint: Blueprint, workflow: dict) -> tuple[Wiring, list[dict], list[dict]]:
    """Nodes with their links, and the subgraph's inputs and outputs."""
    wiring, inputs, outputs = Wiring(workflow), [], []
    for link_id, source, output, target, slot, kind in workflow["links"]:
        if source in wiring.nodes and target in wiring.nodes:
            wiring.link(source, output, target, slot, kind, link_id)
        elif source in wiring.nodes:  # to SaveVideo
            link = wiring.link(source, output, OUTPUT_NODE, len(outputs), kind, link_id)
            outputs.append(end(blueprint.title, "out", kind, kind, [link]))
    for source, name, target, slot in blueprint.links:
        found = wiring.nodes[source]["outputs"]
        output = [one["name"] for one in found].index(name)
        wiring.link(source, output, target, wiring.input_slot(target, slot), found[output]["type"])
    for name, targets in blueprint.inputs.items():
        links = []
        for target, slot_name in targets:
            slot = wiring.input_slot(target, slot_name)
            kind = wiring.nodes[target]["inputs"][slot]["type"]
            links.append(wiring.link(INPUT_NODE, len(inputs), target, slot, kind))
        inputs.append(end(blueprint.title, "in", name, kind, links))
    return wiring, inputs, outputs


def frame(nodes: list[dict]) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of nodes."""
    left, top = (min(node["pos"][axis] for node in nodes) for axis in (0, 1))
    right, bottom = (max(node["pos"][axis] + node["size"][axis] for node in nodes) for axis in (0, 1))
    return left, top, right, bottom


def groups_around(workflow: dict, nodes: list[dict]) -> list[dict]:
    """The workflow's groups, drawn anew around what is left in them."""
    groups = []
    for group in workflow["groups"]:
        x, y, width, height = group["bounding"]
        inside = [n for n in nodes if x <= n["pos"][0] < x + width and y <= n["pos"][1] < y + height]
        if inside:
            left, top, right, bottom = frame(inside)
            left, top = left - PADDING["left"], top - PADDING["top"]
            size = right + PADDING["right"] - left, bottom + PADDING["bottom"] - top
            groups.append({**group, "bounding": [left, top, *size]})
    return groups


def box(node_id: int, x: int, y: int, slots: list) -> dict:
    """The subgraph's input or output node."""
    return {"id": node_id, "bounding": [x, y, 120, 40 + 20 * len(slots)]}


def instance(blueprint: Blueprint, subgraph: dict, node_id: int) -> dict:
    """The node that stands for the subgraph."""
    inputs = []
    for slot in subgraph["inputs"]:
        widget = {"widget": {"name": slot["name"]}} if slot["type"] in WIDGET_TYPES else {}
        inputs.append({"name": slot["name"], "type": slot["type"], "link": None, **widget})
    outputs = [{"name": output["name"], "type": output["type"], "links": []} for output in subgraph["outputs"]]
    return {
        "id": node_id,
        "type": subgraph["id"],
        "pos": [0, 0],
        "size": [420, 560],
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "title": blueprint.title,
        "properties": {},
        "widgets_values": [],
    }


def make(blueprint: Blueprint) -> dict:
    """The blueprint as a workflow of one node and the definition of its subgraph."""
    workflow = json.loads((WORKFLOWS / f"{blueprint.workflow}.json").read_text(encoding="utf-8"))
    wiring, inputs, outputs = wire(blueprint, workflow)
    nodes = list(wiring.nodes.values())
    left, top, right, _bottom = frame(nodes)
    groups = groups_around(workflow, nodes)
    node_id = workflow["last_node_id"] + 1
    state = {"lastGroupId": max(group["id"] for group in groups), "lastNodeId": node_id}
    subgraph = {
        "id": str(uuid.uuid5(NAMESPACE, blueprint.title)),
        "version": 1,
        "state": {**state, "lastLinkId": wiring.next_link - 1, "lastRerouteId": 0},
        "revision": 0,
        "config": {},
        "name": blueprint.title,
        "inputNode": box(INPUT_NODE, left - MARGIN - 120, top, inputs),
        "outputNode": box(OUTPUT_NODE, right + MARGIN, top, outputs),
        "inputs": inputs,
        "outputs": outputs,
        "widgets": [],
        "nodes": nodes,
        "groups": groups,
        "links": sorted(wiring.links, key=lambda link: link["id"]),
        "extra": {},
        "category": f"{CATEGORY}/{blueprint.group}",
        "description": blueprint.description,
    }
    return {
        "revision": 0,
        "last_node_id": node_id,
        "last_link_id": 0,
        "nodes": [instance(blueprint, subgraph, node_id)],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [subgraph]},
        "extra": {"BlueprintDescription": blueprint.description, "BlueprintSearchAliases": list(blueprint.aliases)},
    }


def made() -> dict[str, str]:
    """File name -> text of everything that belongs into subgraphs/."""
    return {
        f"{blueprint.title}.json": json.dumps(make(blueprint), indent=2, ensure_ascii=False) + "\n"
        for blueprint in BLUEPRINTS
    }


def main() -> None:
    files = made()
    for path in SUBGRAPHS.glob("*.json"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (SUBGRAPHS / name).write_text(text, encoding="utf-8")
    print(f"{len(files)} blueprints written to {SUBGRAPHS}")


if __name__ == "__main__":
    main()

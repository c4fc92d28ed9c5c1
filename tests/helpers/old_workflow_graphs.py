"""The old workflows of tests/data, and their graphs."""

import json

from old_workflows.convert import convert
from old_workflows.kinds import KINDS
from pack import ROOT
from ui_graph import UIGraph

DATA = ROOT / "tests" / "data" / "old_workflows"


def load(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def converted(name: str) -> tuple[UIGraph, object]:
    data, report = convert(load(name))
    return UIGraph(data), report


def values(node: dict) -> dict:
    """The saved values of a node of a known kind, by name."""
    known = KINDS[node["type"]]
    names = [one for name in known.widgets for one in ([name, f"{name} after"] if name in known.after else [name])]
    return dict(zip(names, node["widgets_values"], strict=True))


def graphs(data: dict) -> list[UIGraph]:
    return [UIGraph(one) for one in (data, *data.get("definitions", {}).get("subgraphs", []))]


def in_subgraph(data: dict, inputs: dict, outputs: dict, name: str = "inside") -> dict:
    """A workflow whose nodes are in a subgraph, with one node for it outside, 1.

    Args:
        inputs: name -> (type, [(inner node, slot)]).
        outputs: name -> (type, inner node, slot).
    """
    data = json.loads(json.dumps(data))
    graph = UIGraph(data)
    links = [link for link in graph.links if link["target_id"] in graph.nodes]
    ends = [
        [{"id": str(i), "name": key, "type": one[0], "linkIds": []} for i, (key, one) in enumerate(side.items())]
        for side in (inputs, outputs)
    ]
    last = max([link["id"] for link in links] + [0])
    for slot, (end, (kind, targets)) in enumerate(zip(ends[0], inputs.values(), strict=True)):
        for node, place in targets:
            last += 1
            links = [link for link in links if (link["target_id"], link["target_slot"]) != (node, place)]
            begin = {"id": last, "origin_id": -10, "origin_slot": slot}
            links.append(begin | {"target_id": node, "target_slot": place, "type": kind})
            graph.nodes[node]["inputs"][place]["link"] = last
            end["linkIds"].append(last)
    for slot, (end, (kind, node, place)) in enumerate(zip(ends[1], outputs.values(), strict=True)):
        last += 1
        begin = {"id": last, "origin_id": node, "origin_slot": place}
        links.append(begin | {"target_id": -20, "target_slot": slot, "type": kind})
        graph.nodes[node]["outputs"][place].setdefault("links", []).append(last)
        end["linkIds"].append(last)
    state = {"lastNodeId": max(graph.nodes), "lastLinkId": last}
    key = f"{name}-id"
    ends_data = {"inputNode": {"id": -10}, "outputNode": {"id": -20}, "inputs": ends[0], "outputs": ends[1]}
    inside = {"id": key, "name": name, "state": state, "nodes": data["nodes"], "links": links} | ends_data
    outside = {
        "id": 1,
        "type": key,
        "pos": [0, 0],
        "size": [300, 200],
        "mode": 0,
        "inputs": [{"name": key, "type": one[0], "link": None} for key, one in inputs.items()],
        "outputs": [{"name": key, "type": one[0], "links": []} for key, one in outputs.items()],
        "properties": {},
        "widgets_values": [],
    }
    return {"nodes": [outside], "links": [], "definitions": {"subgraphs": [inside]}, "last_node_id": 1}

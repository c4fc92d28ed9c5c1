"""Files to graphs and back: the UI format, with its subgraphs, and the API format."""

import copy
import dataclasses

from templates.graph import INPUT_NODE, OUTPUT_NODE

from . import kinds
from .graph import ALWAYS, INPUT_END, NOTE, OUTPUT_END, Graph, Node, Source

KEPT = ("pos", "size", "mode", "title", "color", "bgcolor", "flags", "order")


class WorkflowError(ValueError):
    """A file is no workflow."""


@dataclasses.dataclass
class Scope:
    """One graph of a file: the outer one (``title`` is empty) or that of a subgraph."""

    title: str
    graph: Graph
    data: dict


@dataclasses.dataclass
class Document:
    """A workflow file.

    Args:
        data: as in the file.
        scopes: its graphs.
        is_api: in API format.
    """

    data: dict
    scopes: list[Scope]
    is_api: bool


def read(data: object) -> Document:
    """A workflow in UI or API format, as JSON has it.

    Raises:
        WorkflowError: it is neither.
    """
    data = copy.deepcopy(data)
    if isinstance(data, dict) and isinstance(data.get("nodes"), list):
        subgraphs = (data.get("definitions") or {}).get("subgraphs") or []
        scopes = [Scope("", read_ui(data), data)]
        for number_, one in enumerate(subgraphs):
            title = one.get("name") or "subgraph"
            if any(title == scope.title for scope in scopes):
                title = f"{title}, number {number_ + 1}"
            scopes.append(Scope(title, read_ui(one), one))
        return Document(data, scopes, False)
    if isinstance(data, dict) and data and all(isinstance(n, dict) and "class_type" in n for n in data.values()):
        return Document(data, [Scope("", read_api(data), data)], True)
    found = sorted(data)[:5] if isinstance(data, dict) else type(data).__name__
    raise WorkflowError(
        f"the file holds {found}, expected a workflow of ComfyUI, with nodes (UI format) or with a class_type for "
        "each node (API format): save it in ComfyUI with Save or Export (API)"
    )


def write(document: Document) -> dict:
    """The file's new content."""
    if document.is_api:
        return write_api(document.scopes[0].graph)
    for scope in document.scopes:
        write_ui(scope)
    return document.data


# the UI format


def pair(value: object, default: tuple[float, float]) -> list:
    """A position or a size, which old front ends saved as {"0": x, "1": y}."""
    if isinstance(value, dict):
        value = [value.get("0", default[0]), value.get("1", default[1])]
    return list(value) if isinstance(value, list) and len(value) >= 2 else list(default)


def link_of(link: list | dict) -> dict:
    """A link of either form: a list outside, names inside a subgraph."""
    if isinstance(link, dict):
        return link
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    return dict(zip(names, link, strict=False))


def read_ui(scope: dict) -> Graph:
    links = {link["id"]: link for link in map(link_of, scope.get("links") or []) if link}
    nodes = []
    for data in scope["nodes"]:
        data["pos"], data["size"] = pair(data.get("pos"), (0, 0)), pair(data.get("size"), (300, 100))
        node = Node(data["id"], data["type"], data=data)
        for slot in data.get("inputs") or []:
            if slot.get("link") in links:
                link = links[slot["link"]]
                node.links[slot["name"]] = Source(link["origin_id"], link["origin_slot"])
        nodes.append(node)
    if "inputNode" in scope:
        nodes.append(Node(INPUT_NODE, INPUT_END, data={"outputs": scope["inputs"]}))
        nodes.append(Node(OUTPUT_NODE, OUTPUT_END, data={"inputs": scope["outputs"]}))
        for link in links.values():
            if link["target_id"] == OUTPUT_NODE:
                nodes[-1].links[str(link["target_slot"])] = Source(link["origin_id"], link["origin_slot"])
    return Graph(nodes)


def slots_of(node: Node) -> tuple[list[dict], list[dict]]:
    """The inputs and the outputs of a node, as they are written down."""
    return node.data.setdefault("inputs", []) or [], node.data.setdefault("outputs", []) or []


def new_data(node: Node) -> dict:
    """A new node as the front end writes it down, without links."""
    known = kinds.KINDS[node.kind]
    values = [node.values["text"]] if node.kind == NOTE else known.values(node.values, node.after)
    data = {
        "id": node.id,
        "type": node.kind,
        "pos": [0, 0],
        "size": list(known.size),
        "flags": {},
        "order": 0,
        "mode": ALWAYS,
        "inputs": known.slots(),
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in known.outputs.items()],
        "properties": {} if node.kind == NOTE else {"Node name for S&R": node.kind},
        "widgets_values": values,
    }
    return data | {key: node.data[key] for key in KEPT if key in node.data}


def number(scope: Scope) -> None:
    """Give new nodes their ids: that of the node whose place they take, or a new one."""
    graph = scope.graph
    state = scope.data.get("state", {})
    numbers = [node.id for node in graph.nodes.values() if isinstance(node.id, int)]
    numbers += [node.near.id for node in graph.nodes.values() if node.near and isinstance(node.near.id, int)]
    last = max([*numbers, scope.data.get("last_node_id") or 0, state.get("lastNodeId") or 0])
    ids, taken = {}, {node.id for node in graph.nodes.values() if not node.is_new}
    for node in graph.nodes.values():
        if node.is_new:
            if node.takes_place and node.near.id not in taken:
                ids[node.id] = node.near.id
                taken.add(node.near.id)
            else:
                last += 1
                ids[node.id] = last
    rename(graph, ids)
    if "state" in scope.data:
        state["lastNodeId"] = last
    else:
        scope.data["last_node_id"] = last


def rename(graph: Graph, ids: dict) -> None:
    for node in graph.nodes.values():
        node.id = ids.get(node.id, node.id)
        for name, source in node.links.items():
            node.links[name] = Source(ids.get(source.node, source.node), source.slot)
    graph.nodes = {node.id: node for node in graph.nodes.values()}


def write_ui(scope: Scope) -> None:
    """Write the nodes and links of a graph into its part of the file. A link whose target stays keeps its id."""
    number(scope)
    nodes = scope.graph.nodes
    old = {(one["target_id"], one["target_slot"]): one for one in map(link_of, scope.data.get("links") or [])}
    last = max([one["id"] for one in old.values()] + [scope.data.get("last_link_id") or 0])
    for node in nodes.values():
        if node.is_new:
            node.data = new_data(node)
    ends = {key: slots_of(node) for key, node in nodes.items()}
    for inputs, outputs in ends.values():
        for slot in outputs:
            slot["linkIds" if "linkIds" in slot else "links"] = []
        for slot in inputs:
            slot["linkIds" if "linkIds" in slot else "link"] = [] if "linkIds" in slot else None
    links = []
    for node in nodes.values():
        inputs = ends[node.id][0]
        for name, source in node.links.items():
            slot = int(name) if node.kind == OUTPUT_END else [one["name"] for one in inputs].index(name)
            begin, end = ends[source.node][1][source.slot], inputs[slot]
            before = old.get((node.id, slot)) if not node.is_new else None
            if before is None:
                last += 1
            number_ = before["id"] if before else last
            places = {"id": number_, "origin_id": source.node, "origin_slot": source.slot}
            link = (before or {}) | places | {"target_id": node.id, "target_slot": slot, "type": begin["type"]}
            links.append(link)
            begin["linkIds" if "linkIds" in begin else "links"].append(number_)
            if "linkIds" in end:
                end["linkIds"].append(number_)
            else:
                end["link"] = number_
    finish(scope, links, last)


def finish(scope: Scope, links: list[dict], last: int) -> None:
    """Write down nodes and links, and what the file says about them."""
    data = scope.data
    data["nodes"] = [node.data for node in scope.graph.nodes.values() if node.kind not in (INPUT_END, OUTPUT_END)]
    ids = {link["id"] for link in links}
    if "state" in data:
        data["links"] = links
        data["state"]["lastLinkId"] = last
        for bend in data.get("reroutes") or []:
            bend["linkIds"] = [one for one in bend.get("linkIds") or [] if one in ids]
    else:
        data["links"] = [
            [link[name] for name in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]
            for link in links
        ]
        data["last_link_id"] = last
        extra = data.get("extra") or {}
        if "linkExtensions" in extra:
            extra["linkExtensions"] = [one for one in extra["linkExtensions"] if one.get("id") in ids]


# the API format


def is_link(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def read_api(data: dict) -> Graph:
    nodes = []
    for key, one in data.items():
        inputs = one.get("inputs") or {}
        links = {name: Source(*value) for name, value in inputs.items() if is_link(value)}
        values = {name: value for name, value in inputs.items() if name not in links}
        nodes.append(Node(key, one["class_type"], links, values, data=one))
    return Graph(nodes, has_notes=False)


def write_api(graph: Graph) -> dict:
    last = max([int(key) for key in graph.nodes if str(key).isdigit()] + [0])
    last = max([last] + [int(n.near.id) for n in graph.nodes.values() if n.near and str(n.near.id).isdigit()])
    ids = {}
    for node in graph.nodes.values():
        if node.is_new and node.takes_place and node.near.id not in ids.values():
            ids[node.id] = node.near.id
        elif node.is_new:
            last += 1
            ids[node.id] = str(last)
    rename(graph, ids)
    result = {}
    for node in graph.nodes.values():
        values = node.values
        if node.is_new:
            values = {
                name: node.values.get(name, value) for name, (_, value) in kinds.KINDS[node.kind].widgets.items()
            }
        inputs = values | {name: [source.node, source.slot] for name, source in node.links.items()}
        kept = {} if node.is_new else {key: value for key, value in node.data.items() if key != "class_type"}
        title = {"_meta": {"title": node.data.get("title", node.kind)}} if node.is_new else {}
        result[node.id] = {**kept, **title, "class_type": node.kind, "inputs": inputs}
    return result

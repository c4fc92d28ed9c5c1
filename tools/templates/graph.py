"""A graph under construction, laid out in numbered groups, and written down as a subgraph of ComfyUI's front end.

Nodes stand in columns. A link to the next column is drawn straight. A longer one goes up into a lane of its own above
the groups and down again before its target, so that no link runs behind a node.
"""

import dataclasses
import uuid

from .kinds import KINDS, WIDGET_TYPES

NAMESPACE = uuid.UUID("217afcf9-d5e1-5787-8d8d-833e718026ec")
INPUT_NODE, OUTPUT_NODE = -10, -20  # the ids that the front end gives to a subgraph's two ends
FIRST_ID = 11  # of the nodes inside; those outside have smaller ones
COLOUR = "#3f789e"  # of groups
TITLE = 30  # pixels of a node's title, above its position

BETWEEN_COLUMNS, BETWEEN_NODES = 140, 70
PADDING, GROUP_TITLE = 24, 50
LANES, LANE = 40, 20  # pixels from the groups up to the first lane, and from lane to lane: that of the ends' slots
BEND = 10  # pixels between the bends of two lanes
END_WIDTH = 160  # of the subgraph's ends


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a link begins: an output of a node, or what the subgraph is given.

    Args:
        value: what the widgets hold that a given value is put into.
    """

    node: int
    slot: int
    type: str
    value: object = None


@dataclasses.dataclass
class Node:
    id: int
    kind: str
    column: int
    data: dict

    def __getitem__(self, output: str) -> Source:
        names = list(KINDS[self.kind].outputs)
        slot = names.index(output)
        return Source(self.id, slot, KINDS[self.kind].outputs[output])


@dataclasses.dataclass
class Link:
    id: int
    source: Source
    target: int
    slot: int
    parent: int | None = None

    def data(self) -> dict:
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        values = (self.id, self.source.node, self.source.slot, self.target, self.slot, self.source.type)
        return dict(zip(names, values, strict=True)) | ({} if self.parent is None else {"parentId": self.parent})


class Graph:
    """The inside of a subgraph. Add nodes from left to right: `group`, `column`, `add`."""

    def __init__(self):
        self.nodes: list[Node] = []
        self.links: list[Link] = []
        self.given: dict[str, Source] = {}
        self.results: dict[str, Link] = {}
        self.columns: list[str] = []  # the title of each column's group
        self.shown: list[tuple[int, str]] = []  # widgets of nodes that the subgraph's node shows, without an input

    def ask(self, name: str, kind: str, value: object = None) -> Source:
        """An input of the subgraph: a widget with a value, or a socket."""
        self.given[name] = Source(INPUT_NODE, len(self.given), kind, value)
        return self.given[name]

    def group(self, title: str) -> None:
        """Begin a group, with its first column."""
        self.columns.append(f"{len(dict.fromkeys(self.columns)) + 1} {title}")

    def column(self) -> None:
        """Begin another column of the group."""
        self.columns.append(self.columns[-1])

    def add(
        self, kind: str, *, title: str = "", properties: dict | None = None, after: dict | None = None, **values
    ) -> Node:
        """Add a node below the last one of the column.

        Args:
            properties: of the node, for the front end.
            after: see `Kind`.
            values: of its inputs: a `Source` to link from, or a widget's value.
        """
        known = KINDS[kind]
        links = {name: value for name, value in values.items() if isinstance(value, Source)}
        literals = {name: value for name, value in values.items() if name not in links}
        literals |= {name: value.value for name, value in links.items() if name in known.widgets}
        slots = known.slots()
        names = [slot["name"] for slot in slots]
        if unknown := set(values) - set(names):
            raise ValueError(f"{kind} has no inputs {sorted(unknown)}, expected some of {names}")
        node = node_data(FIRST_ID + len(self.nodes), kind, title, known.values(literals, after or {}), slots)
        node["properties"] |= properties or {}
        self.nodes.append(Node(node["id"], kind, len(self.columns) - 1, node))
        for name, source in links.items():
            self.link(source, node["id"], names.index(name))
        return self.nodes[-1]

    def link(self, source: Source, target: int, slot: int) -> Link:
        link = Link(1 + len(self.links), source, target, slot)
        self.links.append(link)
        for node in self.nodes:
            if node.id == source.node:
                node.data["outputs"][source.slot]["links"].append(link.id)
            if node.id == target:
                node.data["inputs"][slot]["link"] = link.id
        return link

    def give(self, name: str, source: Source) -> None:
        """An output of the subgraph."""
        self.results[name] = self.link(source, OUTPUT_NODE, len(self.results))

    def show(self, node: Node, *names: str) -> None:
        """Show widgets on the subgraph's node that are no inputs of it.

        A seed that is an input stays as it is after a run on front ends before 1.49. This way it changes on all of
        them, but those before 1.28 don't show it.
        """
        self.shown += [(node.id, name) for name in names]

    # the layout

    def place(self) -> list[float]:
        """Give every node its position; the left edges of the columns, and after them where the last one ends."""
        lefts, x = [], 0
        for index in range(len(self.columns)):
            lefts.append(x)
            y = 0
            inside = [node for node in self.nodes if node.column == index]
            for node in inside:
                node.data["pos"] = [x, y]
                y += node.data["size"][1] + BETWEEN_NODES
            x += max(node.data["size"][0] for node in inside) + BETWEEN_COLUMNS
        return [*lefts, x]

    def groups(self) -> list[dict]:
        """A frame around the nodes of each group."""
        groups = []
        for number, title in enumerate(dict.fromkeys(self.columns), 1):
            inside = [node.data for node in self.nodes if self.columns[node.column] == title]
            left, top = min(node["pos"][0] for node in inside) - PADDING, -TITLE - GROUP_TITLE
            right = max(node["pos"][0] + node["size"][0] for node in inside) + PADDING
            bottom = max(node["pos"][1] + node["size"][1] for node in inside) + PADDING
            bounding = [left, top, right - left, bottom - top]
            groups.append(
                {"id": number, "title": title, "bounding": bounding, "color": COLOUR, "font_size": 24, "flags": {}}
            )
        return groups

    def reroutes(self, lefts: list[float]) -> list[dict]:
        """The bends of the long links, which are told the last bend that they come through."""
        columns = {node.id: node.column for node in self.nodes} | {INPUT_NODE: -1, OUTPUT_NODE: len(self.columns)}
        sources = list(dict.fromkeys(link.source for link in self.links if link.source.node != INPUT_NODE))
        top = self.top_lane()
        bends: list[dict] = []
        for source in [*self.given.values(), *sources]:
            given = source.node == INPUT_NODE
            far = [
                link
                for link in self.links
                if link.source == source and columns[link.target] > columns[source.node] + 1
            ]
            if not far:
                continue
            lane = source.slot if given else len(self.given) + sources.index(source)
            y = top + LANE * lane
            shift = PADDING + 8 + BEND * (lane % 6)
            ups = [] if given else [(lefts[columns[source.node] + 1] - BETWEEN_COLUMNS + shift, far)]
            targets = sorted({columns[link.target] for link in far})
            downs = [(lefts[c] - shift, [link for link in far if columns[link.target] >= c]) for c in targets]
            parent = {}
            for x, passing in ups + downs:
                bend = {"id": len(bends) + 1, "pos": [x, y], "linkIds": [link.id for link in passing], **parent}
                bends.append(bend)
                parent = {"parentId": bend["id"]}
                for link in passing:
                    link.parent = bend["id"]
        return bends

    def top_lane(self) -> float:
        """Where the highest lane is: those of what is given, at the height of the ends' slots, and of the outputs."""
        sources = {link.source for link in self.links if link.source.node != INPUT_NODE}
        return -TITLE - GROUP_TITLE - LANES - LANE * (len(self.given) + len(sources))

    # written down

    def subgraph(self, title: str, category: str, description: str) -> dict:
        """The definition of a subgraph."""
        lefts = self.place()
        groups = self.groups()
        bends = self.reroutes(lefts)
        first_slot = 20  # pixels below the upper edge of an end
        ends = self.ends(title)
        last = {
            "lastGroupId": len(groups),
            "lastNodeId": self.nodes[-1].id,
            "lastLinkId": len(self.links),
            "lastRerouteId": len(bends),
        }
        return {
            "id": made_id(title),
            "version": 1,
            "state": last,
            "revision": 0,
            "config": {},
            "name": title,
            "inputNode": end_box(INPUT_NODE, -BETWEEN_COLUMNS - END_WIDTH, self.top_lane() - first_slot, ends[0]),
            "outputNode": end_box(OUTPUT_NODE, lefts[-1], 0, ends[1]),
            "inputs": ends[0],
            "outputs": ends[1],
            "widgets": [],
            "nodes": [node.data for node in self.nodes],
            "groups": groups,
            "links": [link.data() for link in self.links],
            "reroutes": bends,
            "extra": {},
            "category": category,
            "description": description,
        }

    def ends(self, title: str) -> tuple[list[dict], list[dict]]:
        """The inputs and the outputs of the subgraph."""
        inputs = [
            end(title, "in", name, source.type, [link.id for link in self.links if link.source == source])
            for name, source in self.given.items()
        ]
        outputs = [end(title, "out", name, link.source.type, [link.id]) for name, link in self.results.items()]
        return inputs, outputs

    def instance(self, node_id: int, title: str, size: tuple[int, int]) -> dict:
        """The node that stands for the subgraph, whose values are those inside it."""
        inputs = []
        for name, source in self.given.items():
            widget = {"widget": {"name": name}} if source.type in WIDGET_TYPES else {}
            inputs.append({"name": name, "type": source.type, "link": None, **widget})
        outputs = [{"name": name, "type": link.source.type, "links": []} for name, link in self.results.items()]
        node = plain_node(node_id, made_id(title), title, size, inputs, outputs, [])
        node["properties"] = {"proxyWidgets": [[str(inside), name] for inside, name in self.shown]}
        return node


def made_id(*names: str) -> str:
    """An id that is the same whenever it is made."""
    return str(uuid.uuid5(NAMESPACE, "/".join(names)))


def end(title: str, side: str, name: str, kind: str, links: list[int]) -> dict:
    """An input or output of a subgraph."""
    return {"id": made_id(title, side, name), "name": name, "type": kind, "linkIds": links}


def end_box(node_id: int, x: float, y: float, slots: list) -> dict:
    """The subgraph's input or output node."""
    return {"id": node_id, "bounding": [x, y, END_WIDTH, 40 + LANE * len(slots)]}


def plain_node(node_id, kind, title, size, inputs, outputs, values) -> dict:
    node = {
        "id": node_id,
        "type": kind,
        "pos": [0, 0],
        "size": list(size),
        "flags": {},
        "order": 0,
        "mode": 0,
        "inputs": inputs,
        "outputs": outputs,
        "properties": {},
        "widgets_values": values,
    }
    return node | ({"title": title} if title else {})


def node_data(node_id: int, kind: str, title: str, values: list, slots: list | None = None) -> dict:
    """A node of a known kind."""
    known = KINDS[kind]
    outputs = [{"name": name, "type": output, "links": []} for name, output in known.outputs.items()]
    node = plain_node(node_id, kind, title, known.size, known.slots() if slots is None else slots, outputs, values)
    if kind != "MarkdownNote":
        node["properties"] = {"Node name for S&R": kind}
    return node

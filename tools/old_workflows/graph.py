"""Nodes and links of one graph, in the same form for both file formats."""

import dataclasses
from collections.abc import Iterator

SET, GET, REROUTE = "SetNode", "GetNode", "Reroute"  # SetNode and GetNode are those of ComfyUI-KJNodes
PASSES_ON = {SET, GET, REROUTE}
INPUT_END, OUTPUT_END = "subgraph input", "subgraph output"
NOTE = "MarkdownNote"
ALWAYS, MUTED, BYPASSED = 0, 2, 4  # modes of a node in a file


@dataclasses.dataclass(frozen=True)
class Source:
    """An output of a node, where a link begins.

    Args:
        value: what the widget holds that the link leads to.
    """

    node: object
    slot: int
    value: object = dataclasses.field(default=None, compare=False)


@dataclasses.dataclass
class Node:
    """A node.

    Args:
        links: name of an input -> where its link begins.
        values: name -> value, as far as they are known.
        after: name of a value -> what the front end saves behind it.
        data: as in the file. For a new node: position, size, mode, title and colours.
        is_new: made by the conversion, of a kind in `kinds.KINDS`.
        near: the old node that it was made of.
        takes_place: it stands where that node stood, and gets its id.
    """

    id: object
    kind: str
    links: dict[str, Source] = dataclasses.field(default_factory=dict)
    values: dict[str, object] = dataclasses.field(default_factory=dict)
    after: dict[str, object] = dataclasses.field(default_factory=dict)
    data: dict = dataclasses.field(default_factory=dict)
    is_new: bool = False
    near: "Node | None" = None
    takes_place: bool = False

    def out(self, slot: int = 0) -> Source:
        return Source(self.id, slot)


class Graph:
    """Nodes by their id. ``has_notes`` is False for the API format, which can't hold notes."""

    def __init__(self, nodes: list[Node], has_notes: bool = True):
        self.nodes = {node.id: node for node in nodes}
        self.has_notes = has_notes
        self.moved: dict[Source, Source] = {}  # output of an old node -> the output that replaces it
        self.replaced: set = set()  # ids of old nodes that have a new one in their place

    def of_kind(self, kind: str) -> list[Node]:
        return [node for node in self.nodes.values() if node.kind == kind and not node.is_new]

    def origin(self, source: Source | None) -> Source | None:
        """Where a link really begins: behind reroutes, SetNode and GetNode. None if it begins nowhere.

        It may be an output of a node that was replaced.
        """
        seen = set()
        while source is not None and source not in seen:
            seen.add(source)
            node = self.nodes.get(source.node)
            if node is None:
                return source if source in self.moved or source.node in self.replaced else None
            if node.kind == GET:
                node = self.setter(node)
            elif node.kind != REROUTE:
                return source
            source = next(iter(node.links.values()), None) if node is not None else None
        return None

    def setter(self, getter: Node) -> Node | None:
        """The SetNode with the name that a GetNode asks for."""
        name = (getter.data.get("widgets_values") or [None])[0]
        for node in self.of_kind(SET):
            if (node.data.get("widgets_values") or [None])[0] == name:
                return node
        return None

    def origin_node(self, source: Source | None) -> Node | None:
        found = self.origin(source)
        return self.nodes.get(found.node) if found is not None else None

    def consumers(self, node: Node) -> Iterator[tuple[Node, str]]:
        """The nodes that take an output of this one, also behind reroutes, and the names of their inputs."""
        for other in list(self.nodes.values()):
            if other.kind not in PASSES_ON:
                for name, source in other.links.items():
                    if (found := self.origin(source)) is not None and found.node == node.id:
                        yield other, name

    def settle(self) -> list[tuple[Node, str]]:
        """Lead every link to the output that replaces the one where it began.

        Returns:
            The inputs whose link has nowhere to begin any more. They are left without a link.
        """
        lost = []
        for node in self.nodes.values():
            for name, source in list(node.links.items()):
                while source in self.moved:
                    source = self.moved[source]
                if source.node in self.nodes:
                    node.links[name] = source
                else:
                    del node.links[name]
                    lost.append((node, name))
        return lost

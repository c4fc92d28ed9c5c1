"""What the families of nodes are rewritten with: read an old node, make new ones, say what is missing."""

import contextlib
import dataclasses
from collections.abc import Iterable

from . import report as states
from .graph import BYPASSED, GET, MUTED, NOTE, OUTPUT_END, PASSES_ON, SET, Graph, Node, Source
from .kinds import KINDS
from .report import Entry, Report
from .values import Old, Read, UnknownVersionError, read_list, read_named

BEFORE = (
    "is of ComfyUI-CogVideoXWrapper before November 19, 2024, where one wire named `pipeline` carried model and VAE. "
    "Rebuild this part with the tables of docs/migrating.md"
)


class Conversion:
    """One graph in conversion."""

    def __init__(self, graph: Graph, report: Report, scope: str = ""):
        self.graph = graph
        self.report = report
        self.scope = scope
        self.made: dict[object, Node] = {}  # id of an old node -> the new node in its place
        self.parts: dict[object, dict[str, Node]] = {}  # id of an old node -> other new nodes that belong to it
        self.lost_ends: list[int] = []  # outputs of a subgraph whose node inside can't be converted
        self.retyped: set[Source] = set()  # outputs of nodes that stay, and inputs of the subgraph, of a new type
        self.muted = {node.id for node in graph.nodes.values() if node.data.get("mode") == MUTED}
        for node in graph.nodes.values():
            if not node.kind.startswith("subgraph "):
                report.entries[scope, node.id] = Entry(scope, node.id, node.kind)

    # old nodes

    def entry(self, node: Node) -> Entry:
        return self.report.entries[self.scope, node.id]

    def problem(self, node: Node, text: str) -> None:
        entry = self.entry(node)
        entry.problems.append(text)
        entry.state = states.NONE if entry.state == states.NONE else states.PARTLY

    def remark(self, node: Node, text: str) -> None:
        self.entry(node).remarks.append(text)

    def read(self, node: Node, old: Old) -> bool:
        """Name the values of a node. False if it is of a version that can't be converted; then it is gone."""
        entry = self.entry(node)
        entry.state = states.CONVERTED
        widgets = {widget.name for order in old.orders() for widget in order}
        strange = [name for name in self.sockets(node) if name not in widgets | set(old.inputs)]
        if "pipeline" in strange:
            self.lose(node, BEFORE)
            return False
        try:
            read = self.saved(node, old)
        except UnknownVersionError as error:
            self.problem(node, str(error))
            read = Read({})
        for text in read.problems:
            self.problem(node, text)
        for name in strange:
            if name in node.links:
                expected = ", ".join(old.inputs) or "none"
                self.problem(node, f"its input `{name}` is unknown, expected some of {expected}: it is not connected")
        node.values, node.after = read.values, read.after
        return True

    def sockets(self, node: Node) -> list[str]:
        slots = node.data.get("inputs")
        return [slot["name"] for slot in slots or []] if self.graph.has_notes else list(node.links)

    def saved(self, node: Node, old: Old) -> Read:
        if not self.graph.has_notes:
            return read_named(node.kind, old, node.values)
        values = node.data.get("widgets_values")
        if isinstance(values, dict):
            return read_named(node.kind, old, values)
        return read_list(node.kind, old, values or [])

    def given(self, node: Node, name: str, default: object = None) -> object:
        """What an input is given: a `Source`, or its value."""
        value = node.values.get(name, default)
        return dataclasses.replace(node.links[name], value=value) if name in node.links else value

    def is_muted(self, source: Source | None) -> bool:
        """Whether a link begins at a node that was muted. ComfyUI runs the target without this input."""
        found = self.graph.origin(source)
        return found is not None and found.node in self.muted

    def live(self, node: Node, name: str) -> Source | None:
        """The link to an optional input, None if it comes from a muted node. In a muted branch every link counts."""
        source = node.links.get(name)
        if source is None or node.id in self.muted or not self.is_muted(source):
            return source
        self.remark(node, f"`{name}` came from a muted node, which ComfyUI leaves out: it is not connected")
        return None

    def old_of(self, source: Source | None) -> Node | None:
        """The old node where a link begins, also if it is converted and `parts` has it."""
        if source is None:
            return None
        return self.graph.nodes.get(source.node) or self.parts.get(source.node, {}).get("old")

    def lose(self, node: Node, why: str, old: Old | None = None) -> None:
        """Put a note in the place of a node that nothing replaces. With its facts, the note names its values."""
        saved = node.data.get("widgets_values") if self.graph.has_notes else node.values
        with contextlib.suppress(UnknownVersionError):
            saved = self.saved(node, old).values if old is not None else saved
        if isinstance(saved, dict):
            saved = ", ".join(f"`{name}` {value}" for name, value in saved.items())
        self.entry(node).state = states.NONE
        self.problem(node, why)
        text = f"**{node.kind}** (node {node.id}): {why}.\n\nIts values were: {saved or 'none'}"
        self.remove(node)
        if self.graph.has_notes:
            self.make(NOTE, node, takes_place=True, text=text)

    def remove(self, node: Node) -> None:
        del self.graph.nodes[node.id]

    # new nodes

    def make(self, kind: str, near: Node, *, takes_place: bool = False, title: str = "", **inputs) -> Node:
        """Add a node. An input that is given None keeps its default.

        Args:
            near: the old node that it is made of.
            takes_place: it stands where that node stood.
            inputs: a `Source` to link from, or a value.
        """
        known = KINDS[kind]
        names = (
            {name.rstrip("?") for name in known.inputs} | set(known.widgets) | ({"text"} if kind == NOTE else set())
        )
        if unknown := set(inputs) - names:
            raise ValueError(f"{kind} has no inputs {sorted(unknown)}, expected some of {sorted(names)}")
        node = Node(f"new {len(self.graph.nodes)} {near.id} {kind}", kind, is_new=True, near=near)
        while node.id in self.graph.nodes:
            node.id += "'"
        node.takes_place = takes_place
        if title:
            node.data["title"] = title
        for name, value in inputs.items():
            if isinstance(value, Source):
                node.links[name] = value
                value = value.value if name in known.widgets else None
            if value is not None:
                node.values[name] = value
        if takes_place and near.after:
            node.after = {name: near.after[name] for name in near.after if name in known.widgets}
        self.graph.nodes[node.id] = node
        return node

    def replace(self, old: Node, kind: str, outputs: dict[int, int] | None = None, **inputs) -> Node:
        """Put a node in the place of another one.

        Args:
            outputs: output of the old node -> output of the new one. By default the first to the first.
        """
        new = self.make(kind, old, takes_place=True, **inputs)
        for before, after in ({0: 0} if outputs is None else outputs).items():
            self.graph.moved[old.out(before)] = new.out(after)
        self.remove(old)
        self.graph.replaced.add(old.id)
        self.made[old.id] = new
        return new

    # after all families

    def finish(self) -> None:
        """Lead the links to the new nodes, and mute what lost an input that it needs."""
        lost = self.graph.settle()
        while dead := [node for node, _ in lost if node.kind in PASSES_ON and node.id in self.graph.nodes]:
            names = {(node.data.get("widgets_values") or [None])[0] for node in dead if node.kind == SET}
            dead += [one for one in self.graph.of_kind(GET) if (one.data.get("widgets_values") or [None])[0] in names]
            for node in dead:
                self.graph.nodes.pop(node.id, None)
                self.entry(node).state = states.CONVERTED
                self.remark(node, "what it passed on is not needed")
            lost = [one for one in lost if one[0].kind not in PASSES_ON] + self.graph.settle()
        self.retype()
        self.rename_widgets()
        self.mute(lost)

    def type_of(self, source: Source) -> str:
        node = self.graph.nodes[source.node]
        if node.is_new:
            return list(KINDS[node.kind].outputs.values())[source.slot]
        return (node.data.get("outputs") or [{}] * (source.slot + 1))[source.slot].get("type", "*")

    def retype(self) -> None:
        """Reroutes, SetNode and GetNode name the type that they pass on."""
        for node in self.graph.nodes.values():
            source = self.graph.origin(node.out()) if node.kind in (GET, "Reroute") else None
            if node.kind == SET and node.links:
                source = self.graph.origin(next(iter(node.links.values())))
            if source is None or not (self.graph.nodes[source.node].is_new or source in self.retyped):
                continue
            kind = self.type_of(source)
            for slot in [*(node.data.get("inputs") or []), *(node.data.get("outputs") or [])]:
                if slot.get("name") == slot.get("type") and slot["type"] != "*":
                    if slot["name"] in node.links:
                        node.links[kind] = node.links.pop(slot["name"])
                    slot["name"] = kind
                slot["type"] = kind if slot.get("type") != "*" else "*"

    def rename_widgets(self) -> None:
        """WidgetToString of ComfyUI-KJNodes asks a node for a widget by its name. A prompt is ``text`` here."""
        for node in self.graph.of_kind("WidgetToString"):
            saved = node.data.get("widgets_values") if self.graph.has_notes else None
            source = self.graph.origin(node.links.get("any_input"))
            asked = self.graph.nodes.get(source.node) if source is not None else None
            if saved and "prompt" in saved and asked is not None and asked.kind == "CLIPTextEncode":
                node.data["widgets_values"] = ["text" if value == "prompt" else value for value in saved]
                self.remark(node, "the widget `prompt` that it asks for is `text` here")

    def mute(self, lost: Iterable[tuple[Node, str]]) -> None:
        """A node without a needed input would stop the run. Those after it lack their input, too."""
        waiting = list(lost)
        while waiting:
            node, name = waiting.pop()
            if node.kind == OUTPUT_END:
                self.lost_ends.append(int(name))
                continue
            if node.is_new or not self.graph.has_notes:
                if not node.is_new:
                    self.problem(node, f"its input `{name}` came from a node that can't be converted: connect another")
                continue
            slots = {slot["name"]: slot for slot in node.data.get("inputs") or []}
            slot = slots.get(name, {})
            if (
                "widget" in slot or slot.get("shape") == 7 or node.data.get("mode") in (MUTED, BYPASSED)
            ):  # optional, or off
                continue
            node.data["mode"] = MUTED
            self.problem(node, f"it is muted, since its input `{name}` came from a node that can't be converted")
            waiting += [(other, input_name) for other, input_name in self.graph.consumers(node)]

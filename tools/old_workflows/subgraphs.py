"""What subgraphs show outside: the types of their inputs and outputs, and the widgets of nodes inside."""

from templates.graph import INPUT_NODE

from . import facts
from .conversion import Conversion
from .document import Scope
from .graph import OUTPUT_END, Node, Source
from .kinds import KINDS

# widget of an old node -> that of the new one, as far as the names differ
RENAMED = {
    **dict.fromkeys(("precision", "base_precision", "quantization"), "weight_dtype"),
    **dict.fromkeys(("num_frames", "video_length"), "length"),
    "unet_name": "model",
    "clip_name": "text_encoder",
    "model_name": "vae_name",
    "lora": "lora_name",
    "strength_model": "strength",
    "prompt": "text",
    "scheduler": "sampler_name",
    "denoise_strength": "denoise",
    "noise_aug_strength": "noise_augmentation",
    "context_frames": "context_length",
}
PROMOTED = "proxyWidgets"  # [id of the inner node, name of its widget] for each one that the outer node shows


class Subgraphs:
    """The subgraphs of a file whose graphs are converted, and not written yet."""

    def __init__(self, scopes: list[Scope], conversions: list[Conversion]):
        self.conversions = conversions
        pairs = zip(scopes, conversions, strict=True)
        self.inside = {scope.data.get("id"): (scope, one) for scope, one in pairs if "inputNode" in scope.data}
        self.shown = [
            (conversion, node)
            for conversion in conversions
            for node in conversion.graph.nodes.values()
            if node.kind in self.inside
        ]
        self.promoted: list[tuple[Node, list]] = []

    def finish(self) -> None:
        """Set types, and say what is missing."""
        while any([self.type_ends(*one) for one in self.inside.values()]):
            for conversion in self.conversions:
                conversion.retype()
        for conversion, node in self.shown:
            scope, inside = self.inside[node.kind]
            for slot in inside.lost_ends:
                name = scope.data["outputs"][slot]["name"]
                conversion.problem(node, f"its output `{name}` came from a node inside that can't be converted")
            pairs = (node.data.get("properties") or {}).get(PROMOTED) or []
            found = [(pair, self.widget(inside, *pair[:2])) for pair in pairs]
            for (key, name, *_), now in found:
                if now is None:
                    conversion.problem(node, f"the widget `{name}` of the node {key} inside can't be converted")
            self.promoted.append((node, found))

    def write(self) -> None:
        """Name the promoted widgets, after the new nodes have their ids."""
        for node, found in self.promoted:
            pairs = [[id_of(now[0]), now[1], *pair[2:]] for pair, now in found if now is not None]
            saved = node.data.get("widgets_values")
            if isinstance(saved, list) and len(saved) == len(found):
                node.data["widgets_values"] = [
                    value for value, (_, now) in zip(saved, found, strict=True) if now is not None
                ]
            node.data["properties"][PROMOTED] = pairs

    # types

    def type_ends(self, scope: Scope, conversion: Conversion) -> bool:
        """Give the ends of a subgraph the types of what is linked to them inside. Whether a type was changed."""
        graph = conversion.graph
        changed = False
        for slot, end in enumerate(scope.data["inputs"]):
            source = Source(INPUT_NODE, slot)
            targets = [
                (node, name)
                for node in graph.nodes.values()
                for name, one in node.links.items()
                if graph.origin(one) == source
            ]
            if set_type(end, [self.input_type(*target) for target in targets]):
                changed = True
                conversion.retyped.add(source)
                for _, node in self.nodes_for(scope):
                    of_name(node.data.get("inputs"), end["name"])["type"] = end["type"]
        (last,) = [node for node in graph.nodes.values() if node.kind == OUTPUT_END]
        for slot, end in enumerate(scope.data["outputs"]):
            origin = graph.origin(last.links.get(str(slot)))
            known = origin is not None and (graph.nodes[origin.node].is_new or origin in conversion.retyped)
            if set_type(end, [conversion.type_of(origin) if known else "*"] if origin is not None else []):
                changed = True
                for outside, node in self.nodes_for(scope):
                    of_name(node.data.get("outputs"), end["name"])["type"] = end["type"]
                    outside.retyped.add(node.out(slot))
        return changed

    def nodes_for(self, scope: Scope) -> list[tuple[Conversion, Node]]:
        """The nodes that stand for a subgraph, each with the graph that it is in."""
        return [one for one in self.shown if one[1].kind == scope.data["id"]]

    def input_type(self, node: Node, name: str) -> str:
        """The type of an input, "*" if it is not one that was changed."""
        if node.is_new:
            known = KINDS[node.kind]
            sockets = {key.rstrip("?"): kind for key, kind in known.inputs.items()}
            return sockets.get(name) or known.widgets[name][0]
        return of_name(node.data.get("inputs"), name)["type"] if node.kind in self.inside else "*"

    # widgets

    def widget(self, inside: Conversion, key: str, name: str) -> tuple[Node | str, str] | None:
        """The inner node, or its id, and the widget that a promoted widget is now. None if there is none."""
        node = next((one for one in inside.graph.nodes.values() if str(one.id) == key and not one.is_new), None)
        if node is not None and node.kind in self.inside:
            return key, self.nested(node, name)
        made = next((one for old, one in inside.made.items() if str(old) == key), None)
        if made is None:  # "-1" is an input of the subgraph
            was_here = any(scope == inside.scope and str(old) == key for scope, old in inside.report.entries)
            return (key, name) if node is not None or not was_here else None
        parts = [made] + [one for one in inside.graph.nodes.values() if one.is_new and one.near is made.near]
        for wanted in (RENAMED.get(name), name):
            for part in parts:
                if wanted in KINDS[part.kind].widgets:
                    return part, wanted
        return None

    def nested(self, node: Node, name: str) -> str:
        """The new name of a widget of a node that stands for a subgraph: that of its input, or of the inner widget."""
        pairs = (node.data.get("properties") or {}).get(PROMOTED) or []
        if any(slot["name"] == name for slot in node.data.get("inputs") or []):
            return name
        for key, inner, *_ in pairs:
            now = self.widget(self.inside[node.kind][1], key, inner) if inner == name else None
            if now is not None:
                return now[1]
        return name


def id_of(node: Node | str) -> str:
    return str(node.id) if isinstance(node, Node) else node


def of_name(slots: list[dict] | None, name: str) -> dict:
    """The slot of a name, or an empty one if there is none."""
    return next((slot for slot in slots or [] if slot["name"] == name), {"type": "*"})


def set_type(end: dict, kinds: list[str]) -> bool:
    """Give an end the type of what it is linked to, unless one fits. An old wire without a link gets any type."""
    if "*" in (end["type"], *kinds) or any(set(end["type"].split(",")) & set(kind.split(",")) for kind in kinds):
        return False
    if not kinds and end["type"] not in facts.OLD_WIRES:
        return False
    end["type"] = kinds[0] if kinds else "*"
    return True

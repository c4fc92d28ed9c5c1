"""Places for new nodes and notes, so that nothing lies on anything else."""

from .conversion import Conversion
from .graph import ALWAYS, BYPASSED, MUTED, NOTE, Node
from .kinds import KINDS

TITLE, GAP, STEP = 30, 40, 40  # pixels: of a node's title above its position, between nodes, of a search
SLOT, WIDGET, MARGIN = 20, 24, 16  # pixels: heights of a socket, of a widget, and around them
SUMMARY = (560, 400)  # pixels
NOTE_COLOURS = {"color": "#222", "bgcolor": "#000"}
COLOUR = "#3f789e"  # of groups
KEPT = ("mode", "color", "bgcolor")


def box(x: float, y: float, width: float, height: float) -> tuple:
    """Left, top, right and bottom of a node, with its title."""
    return x, y - TITLE, x + width, y + height


def box_of(node: Node) -> tuple:
    return box(*node.data["pos"][:2], *node.data["size"][:2])


def overlap(one: tuple, other: tuple) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def place(conversion: Conversion, groups: list[dict]) -> None:
    """Give every new node a position: that of the old node, or in a group below it."""
    nodes = [node for node in conversion.graph.nodes.values() if "pos" in node.data or node.is_new]
    others: dict[object, list[Node]] = {}
    for node in nodes:
        if not node.is_new:
            continue
        old = node.near.data
        node.data = {key: old[key] for key in KEPT if key in old} | node.data
        if node.data.get("mode") == MUTED and passes_model(node):
            node.data["mode"] = BYPASSED  # muted, it would cut the model's wire
        if node.kind == NOTE:
            node.data |= {"mode": ALWAYS, **NOTE_COLOURS}
        if node.takes_place:
            width, height = old["size"][:2]
            node.data |= {"pos": list(old["pos"]), "size": [width, max(height, least_height(node))]}
            node.data |= {key: old[key] for key in ("title", "flags") if old.get(key) and key not in node.data}
        else:
            node.data["size"] = list(KINDS[node.kind].size)
            others.setdefault(node.near.id, []).append(node)
    boxes = [box_of(node) for node in nodes if "pos" in node.data]
    boxes += [bounds(group) for group in groups]
    last = max([group.get("id") or 0 for group in groups] + [0])
    for row in others.values():
        last += 1
        groups.append(place_row(row, boxes, last))
        boxes.append(bounds(groups[-1]))


def passes_model(node: Node) -> bool:
    """Whether a new node takes a model and gives it on, as LoRA loaders do."""
    known = KINDS[node.kind]
    return known.inputs.get("model") == "MODEL" and next(iter(known.outputs.values()), None) == "MODEL"


def least_height(node: Node) -> int:
    """The height in pixels to which the front end enlarges a smaller node."""
    known = KINDS[node.kind]
    widgets = len(known.widgets) + len(known.after)
    return SLOT * max(len(known.inputs), len(known.outputs)) + WIDGET * widgets + MARGIN


def bounds(group: dict) -> tuple:
    x, y, width, height = group["bounding"]
    return x, y, x + width, y + height


def place_row(row: list[Node], boxes: list[tuple], number: int) -> dict:
    """Put the nodes that one old node was split into beside each other, in a group in the first free place below."""
    old = row[0].near
    width = sum(node.data["size"][0] + GAP for node in row) + GAP
    height = max(node.data["size"][1] for node in row) + TITLE + 3 * GAP
    x, y = old.data["pos"][0], old.data["pos"][1] + old.data["size"][1] + GAP
    while any(overlap((x, y, x + width, y + height), other) for other in boxes):
        y += STEP
    left = x + GAP
    for node in row:
        node.data["pos"] = [left, y + TITLE + 2 * GAP]
        left += node.data["size"][0] + GAP
    title = f"Made of {old.data.get('title') or old.kind} ({old.id})"
    bounding = [x, y, width, height]
    return {"id": number, "title": title, "bounding": bounding, "color": COLOUR, "font_size": 24, "flags": {}}


def add_summary(conversion: Conversion, lines: list[str], groups: list[dict]) -> None:
    """A note above the graph that lists problems and remarks."""
    boxes = [box_of(node) for node in conversion.graph.nodes.values() if "pos" in node.data]
    boxes += [bounds(group) for group in groups]
    x, y = min((one[0] for one in boxes), default=0), min((one[1] for one in boxes), default=0)
    text = "## Converted for CogVideoX-Fun\n\n" + "\n".join(f"- {line}" for line in lines)
    anchor = Node("summary", NOTE, data={"pos": [x, y - SUMMARY[1] - GAP], "size": list(SUMMARY), "title": "Read me"})
    note = conversion.make(NOTE, anchor, text=text)
    note.data = anchor.data | NOTE_COLOURS

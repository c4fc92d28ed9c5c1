"""Read workflows in UI format, to compare one before and after a conversion."""

INPUT_END, OUTPUT_END = -10, -20  # the ids that a subgraph's ends have in its links


class UIGraph:
    """One graph of a workflow, with values and links by name.

    Args:
        data: a workflow, or the definition of a subgraph.
    """

    def __init__(self, data: dict):
        self.data = data
        self.nodes = {node["id"]: node for node in data["nodes"]}
        names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        self.links = [one if isinstance(one, dict) else dict(zip(names, one, strict=True)) for one in data["links"]]

    def of_kind(self, kind: str) -> list[dict]:
        return [node for node in self.nodes.values() if node["type"] == kind]

    def one(self, kind: str) -> dict:
        (node,) = self.of_kind(kind)
        return node

    def source(self, node: dict, name: str) -> tuple[int, int] | None:
        """The node and the output that an input is linked from."""
        for link in self.links:
            if link["target_id"] == node["id"] and node["inputs"][link["target_slot"]]["name"] == name:
                return link["origin_id"], link["origin_slot"]
        return None

    def before(self, node: dict, name: str) -> dict:
        """The node that an input is linked from."""
        return self.nodes[self.source(node, name)[0]]

    def outputs(self, node_id: int) -> list[dict]:
        return self.data["inputs"] if node_id == INPUT_END else self.nodes[node_id]["outputs"]

    def inputs(self, node_id: int) -> list[dict]:
        return self.data["outputs"] if node_id == OUTPUT_END else self.nodes[node_id]["inputs"]

    def check(self) -> None:
        """Both ends of every link know it, their types fit, and no id is given twice."""
        assert len(self.nodes) == len(self.data["nodes"]), "two nodes have one id"
        assert len({link["id"] for link in self.links}) == len(self.links), "two links have one id"
        ends = []
        for link in self.links:
            begin = self.outputs(link["origin_id"])[link["origin_slot"]]
            end = self.inputs(link["target_id"])[link["target_slot"]]
            assert link["id"] in (begin.get("linkIds") or begin.get("links"))
            assert link["id"] == end.get("link") or link["id"] in end.get("linkIds", [])
            assert fits(begin["type"], end["type"]), f"{begin} into {end}"
            ends.append((link["target_id"], link["target_slot"]))
        assert len(set(ends)) == len(ends), "an input has two links"
        known = {link["id"] for link in self.links}
        for node in self.nodes.values():
            assert {slot["link"] for slot in node.get("inputs") or [] if slot.get("link") is not None} <= known
            assert {one for slot in node.get("outputs") or [] for one in slot.get("links") or []} <= known


def fits(output: str, wanted: str) -> bool:
    """Types with a comma are several."""
    return "*" in (output, wanted) or bool(set(output.split(",")) & set(wanted.split(",")))


def overlap(one: dict, other: dict) -> bool:
    """Whether two nodes lie on each other."""
    (x, y), (width, height) = one["pos"][:2], one["size"][:2]
    (left, top), (wide, high) = other["pos"][:2], other["size"][:2]
    return x < left + wide and left < x + width and y - 30 < top + high and top - 30 < y + height

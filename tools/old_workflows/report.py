"""What became of every node of an old workflow."""

import dataclasses

KEPT, CONVERTED, PARTLY, NONE = "kept", "converted", "partly", "none"


@dataclasses.dataclass
class Entry:
    """One node of the old workflow.

    Args:
        state: KEPT (a node of ComfyUI or another pack, as it was), CONVERTED (with all its values), PARTLY (a value or
            a link is missing, see ``problems``) or NONE (nothing here replaces it).
        problems: what is missing, and what to do.
        remarks: values that became other values by a rule.
    """

    scope: str
    id: object
    kind: str
    state: str = KEPT
    problems: list[str] = dataclasses.field(default_factory=list)
    remarks: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        inside = f" in {self.scope}" if self.scope else ""
        return f"{self.kind} ({self.id}{inside})"


class Report:
    """The entries of all nodes, in the order of the file."""

    def __init__(self):
        self.entries: dict[tuple[str, object], Entry] = {}

    def counts(self) -> dict[str, int]:
        states = [entry.state for entry in self.entries.values()]
        return {state: states.count(state) for state in (KEPT, CONVERTED, PARTLY, NONE)}

    def figure(self) -> str:
        """ "9 of 10 nodes arrive with their values (4 converted, 5 kept), 1 has no counterpart"."""
        counts = self.counts()
        arrived = counts[KEPT] + counts[CONVERTED]
        text = (
            f"{arrived} of {len(self.entries)} nodes arrive with their values "
            f"({counts[CONVERTED]} converted, {counts[KEPT]} kept)"
        )
        text += f", {counts[PARTLY]} in part" if counts[PARTLY] else ""
        return text + (f", {counts[NONE]} without a counterpart" if counts[NONE] else "")

    def lines(self) -> list[str]:
        """Every problem and remark, one line each."""
        return [
            f"{entry.name}: {text}" for entry in self.entries.values() for text in (*entry.problems, *entry.remarks)
        ]

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
        """ "9 of 10 nodes keep all their values (4 converted, 5 unchanged), 1 can't be converted"."""
        counts = self.counts()
        whole = counts[KEPT] + counts[CONVERTED]
        text = (
            f"{whole} of {len(self.entries)} nodes keep all their values "
            f"({counts[CONVERTED]} converted, {counts[KEPT]} unchanged)"
        )
        text += f", {counts[PARTLY]} in part" if counts[PARTLY] else ""
        return text + (f", {counts[NONE]} can't be converted" if counts[NONE] else "")

    def lines(self) -> list[str]:
        """Every problem and remark, one line each."""
        return [
            f"{entry.name}: {text}" for entry in self.entries.values() for text in (*entry.problems, *entry.remarks)
        ]

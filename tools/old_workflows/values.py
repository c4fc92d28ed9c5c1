"""The saved values of old nodes. The UI format saves them as a list without names."""

import dataclasses
from collections.abc import Mapping

CHECKS = {
    "b": ("true or false", lambda value: isinstance(value, bool)),
    "i": ("a whole number", lambda value: is_number(value) and float(value).is_integer()),
    "f": ("a number", lambda value: is_number(value)),
    "s": ("a text", lambda value: isinstance(value, str)),
}


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class UnknownVersionError(ValueError):
    """The values of a node are not those of a known version of its pack."""


@dataclasses.dataclass(frozen=True)
class Widget:
    """One value of an old node: its name, what it is (a key of CHECKS), and whether another value follows it."""

    name: str
    check: str
    has_control: bool  # the front end saves "fixed" or "randomize" behind a seed

    @classmethod
    def of(cls, text: str) -> "Widget":
        """From "name:check", or "name:check+" for a seed."""
        name, _, check = text.partition(":")
        return cls(name, check.rstrip("+"), check.endswith("+"))

    def accepts(self, value: object) -> bool:
        return CHECKS[self.check][1](value)


@dataclasses.dataclass(frozen=True)
class Old:
    """The facts about an old type of node.

    Args:
        versions: the orders in which versions of its pack saved the values, newest first. Each is a text with one
            word for a value, see `Widget.of`.
        inputs: its sockets. A node that has other ones is of another version.
    """

    versions: tuple[str, ...]
    inputs: tuple[str, ...] = ()

    def orders(self) -> list[list[Widget]]:
        return [[Widget.of(word) for word in version.split()] for version in self.versions]


@dataclasses.dataclass
class Read:
    """What was read of a node: name -> value, name -> the value behind it, and what is wrong with the rest."""

    values: dict[str, object]
    after: dict[str, object] = dataclasses.field(default_factory=dict)
    problems: list[str] = dataclasses.field(default_factory=list)


def check(kind: str, order: list[Widget], values: Mapping[str, object]) -> Read:
    """The values that are what they should be. The others become problems, and the new node keeps its default."""
    read = Read({})
    for widget in order:
        if widget.name not in values:
            continue
        value = values[widget.name]
        if widget.accepts(value):
            read.values[widget.name] = value
        else:
            read.problems.append(
                f"`{widget.name}` of {kind} is {value!r}, expected {CHECKS[widget.check][0]}: "
                "the default is used, so check the new node"
            )
    return read


def read_list(kind: str, old: Old, saved: list) -> Read:
    """Name the values of the UI format.

    Raises:
        UnknownVersionError: no known version saved that many values.
    """
    candidates = []
    for order in old.orders():
        if len(order) + sum(widget.has_control for widget in order) == len(saved):
            rest = list(saved)
            values, after = {}, {}
            for widget in order:
                values[widget.name] = rest.pop(0)
                if widget.has_control:
                    after[widget.name] = rest.pop(0)
            read = check(kind, order, values)
            read.after = after
            candidates.append(read)
    if not candidates:
        known = " or ".join(version_text(order) for order in old.orders())
        raise UnknownVersionError(
            f"{kind} has {len(saved)} values ({saved!r}), expected {known}: set the values of the new node by hand, "
            "or open the workflow with the pack that made it, save it again and convert that file"
        )
    return min(candidates, key=lambda read: len(read.problems))


def version_text(order: list[Widget]) -> str:
    """ "3 (a, b, the value behind b)": what a version saves."""
    names = []
    for widget in order:
        names += [widget.name, f"control of {widget.name}"] if widget.has_control else [widget.name]
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def read_named(kind: str, old: Old, saved: Mapping[str, object]) -> Read:
    """Check the values of the API format, and of UI files that save names.

    Raises:
        UnknownVersionError: a value has a name that no known version has.
    """
    known = {widget.name: widget for order in reversed(old.orders()) for widget in order}
    if strange := sorted(set(saved) - known.keys()):
        raise UnknownVersionError(
            f"{kind} has the value {strange[0]} ({saved[strange[0]]!r}), expected some of "
            f"{', '.join(known) or 'none'}: set the values of the new node by hand"
        )
    return check(kind, list(known.values()), saved)

"""What is wrong with a file, and how names and texts from outside are shown in messages and in the log."""

import unicodedata
from collections.abc import Iterable

LONGEST_MESSAGE = 2000  # characters
LONGEST_VALUE = 200
LISTED = 20  # names in a message
UNSHOWN = ("C", "Zl", "Zp")  # Unicode's categories of control characters, and of what ends a line


def readable(message: str, longest: int = LONGEST_MESSAGE) -> str:
    """A message on one line, without control characters, and with its middle left out where it is very long."""
    if len(message) > longest:
        message = f"{message[: longest * 3 // 4]} ... {message[-longest // 5 :]}"
    return "".join(ascii(c)[1:-1] if unicodedata.category(c).startswith(UNSHOWN) else c for c in message)


def shown(value) -> str:
    """A name or text from a file, a folder or a graph, fit for a message or the log: short and on one line."""
    return readable(str(value), LONGEST_VALUE)


def listed(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(shown, names[:LISTED])) + more


class CheckpointError(ValueError):
    """A file or folder that is no model of this pack; the message names the file, what is wrong and the remedy."""

    def __init__(self, message: str):
        super().__init__(readable(message))

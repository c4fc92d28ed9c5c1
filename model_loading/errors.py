"""What is wrong with a file, and how names and texts from outside are shown in messages and in the log."""

import contextlib
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path

LONGEST_MESSAGE = 2000  # characters
LONGEST_VALUE = 200
LISTED = 20  # names in a message
UNSHOWN = ("C", "Zl", "Zp")  # Unicode's categories of control characters and of line ends


def readable(message: str, longest: int = LONGEST_MESSAGE) -> str:
    """A message on one line without control characters; a very long one loses its middle."""
    if len(message) > longest:
        message = f"{message[: longest * 3 // 4]} ... {message[-longest // 5 :]}"
    return "".join(ascii(c)[1:-1] if unicodedata.category(c).startswith(UNSHOWN) else c for c in message)


def shown(value) -> str:
    """A name or text from a file, a folder or a graph, as messages and the log show it: short and on one line."""
    return readable(str(value), LONGEST_VALUE)


def listed(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(map(shown, names[:LISTED])) + more


class CheckpointError(ValueError):
    """A file or folder that is no model of this pack.

    Args:
        message: what is wrong, with the value, what was expected and the remedy.
        path: the file or folder, which goes in front of the message; None if only the caller knows it, see `naming`.
    """

    def __init__(self, message: str, path: Path | str | None = None):
        self.path = path
        super().__init__(readable(message if path is None else f"{path} {message}"))


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add a file or folder to the errors that do not name one yet."""
    try:
        yield
    except ValueError as error:
        if getattr(error, "path", None) is not None:
            raise
        raise CheckpointError(f"can't be loaded: {error}", path) from error
    except (LookupError, TypeError) as error:  # something in the file is missing or of another kind, or it is a bug
        remedy = "download it again; if that does not help, report this with the log"
        raise CheckpointError(f"can't be loaded ({error!r}): {remedy}", path) from error

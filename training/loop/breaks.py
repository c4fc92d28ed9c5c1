"""What a run says when it breaks: how far it got, and the command that goes on."""

import logging
import shlex
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...model_loading.errors import CheckpointError
from .config import ConfigError, Phase
from .progress import read_rows
from .state import newest

log = logging.getLogger(__name__)


class Terminated(BaseException):
    """The process got SIGTERM. Not an Exception, so that nothing on the way handles it."""


def started_by() -> str:
    """The command that started this program. In several processes it is that of the launcher, their parent."""
    import psutil

    own = [sys.executable, *sys.argv]
    try:
        launcher = psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):  # the parent has ended, or is another user's
        launcher = []
    return shlex.join(launcher if sys.argv[0] in launcher else own)


def where_it_stands(phase: Phase) -> str:
    """How many steps a phase's run has done, and its last checkpoint, from its folder."""
    folder = Path(phase.output) / "run"
    rows = read_rows(folder / "loss.csv") if (folder / "loss.csv").is_file() else []
    done = int(rows[-1]["step"]) + 1 if rows else 0
    checkpoint = newest(folder)
    kept = f"the last checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
    return f"after step {done} of {phase.steps}; {kept}"


def _terminate(number, frame) -> None:
    raise Terminated


def interruption(error: BaseException) -> BaseException | None:
    """The Ctrl+C or SIGTERM behind an error, or None: PyTorch's writer of files raises its own when interrupted."""
    found: BaseException | None = error
    while isinstance(found, Exception):
        found = found.__cause__ or found.__context__
    return found


@contextmanager
def explained(phase: Phase, main: bool) -> Iterator[None]:
    """Around a run: whatever breaks it, the main process logs the error and then one line about how to go on.

    SIGTERM breaks it as Ctrl+C does.

    Args:
        main: whether this is the main process. The others log nothing.

    Raises:
        SystemExit: 130 after Ctrl+C, 143 after SIGTERM, and on the main process 1 after an error. Other processes
            raise the error as it is.
    """
    own_thread = threading.current_thread() is threading.main_thread()  # no other may set a handler
    before = signal.signal(signal.SIGTERM, _terminate) if own_thread else None
    try:
        yield
    except (Exception, KeyboardInterrupt, Terminated) as error:
        if own_thread:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the last line is still to be written
        codes = {KeyboardInterrupt: ("interrupted", 130), Terminated: ("terminated", 143)}
        what, code = codes.get(type(interruption(error)), (type(error).__name__, 1))
        if code == 1 and not main:
            raise
        user_error = isinstance(error, CheckpointError | ConfigError)
        if code == 1:
            log.error("%s", error, exc_info=None if user_error else error)
        if main:
            then = "fix that, then run" if user_error else "to go on"
            log.error("stopped (%s) %s; %s: %s", what, where_it_stands(phase), then, started_by())
        raise SystemExit(code) from None
    finally:
        if own_thread:
            signal.signal(signal.SIGTERM, before)

"""Messages under the node that runs. web/said.js shows them, and they stay after the run."""

import logging

from ..model_loading.comfyui.page import page

EVENT = "cogvideox-fun.said"


def say(text: str) -> None:
    """Show a text under the node that ComfyUI is running, in the page that started the run."""
    tell = page()
    if tell is not None:
        tell(EVENT, {"text": text})


class OnTheNode(logging.Handler):
    """Shows warnings under the node that they are about."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            say(record.getMessage())
        except Exception:  # as every handler of Python: a message must not stop a run
            self.handleError(record)


def show_warnings(package: str) -> None:
    """From now on, show what the loggers of a package warn of."""
    logger = logging.getLogger(package)
    if not any(isinstance(handler, OnTheNode) for handler in logger.handlers):
        logger.addHandler(OnTheNode(logging.WARNING))

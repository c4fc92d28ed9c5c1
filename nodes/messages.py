"""Messages under the node that runs. web/messages.js shows them, and they stay after the run."""

import logging

from ..model_loading.comfyui.events import event_sender

EVENT = "cogvideox-fun.said"


def show_message(text: str) -> None:
    """Show a text under the node that ComfyUI is running, in the page that started the run."""
    send = event_sender()
    if send is not None:
        send(EVENT, {"text": text})


class NodeWarnings(logging.Handler):
    """Shows warnings under the node that they are about."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            show_message(record.getMessage())
        except Exception:  # as every handler of Python: a message must not stop a run
            self.handleError(record)


def show_warnings(package: str) -> None:
    """From now on, show what the loggers of a package warn of."""
    logger = logging.getLogger(package)
    if not any(isinstance(handler, NodeWarnings) for handler in logger.handlers):
        logger.addHandler(NodeWarnings(logging.WARNING))

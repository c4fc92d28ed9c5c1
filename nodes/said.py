"""Messages under the node that runs. web/said.js shows them, and they stay after the run."""

import logging

from comfy_execution.utils import get_executing_context

EVENT = "cogvideox-fun.said"


def say(text: str) -> None:
    """Show a text under the node that ComfyUI is running, in the page that started the run."""
    context = get_executing_context()
    if context is None:
        return
    from server import PromptServer  # here, because it starts a large part of ComfyUI

    server = getattr(PromptServer, "instance", None)
    if server is not None and server.client_id is not None:
        message = {"node": context.node_id, "prompt": context.prompt_id, "text": text}
        server.send_sync(EVENT, message, server.client_id)


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

"""Events for the page that started a run, about the node that is running."""

from collections.abc import Callable

from comfy_execution.utils import get_executing_context


def page() -> Callable[[str, dict], None] | None:
    """A function (event, values) that tells the page; None if no node is running, or nobody is listening."""
    context = get_executing_context()
    if context is None:
        return None
    from server import PromptServer  # here, because it starts a large part of ComfyUI

    server = getattr(PromptServer, "instance", None)
    if server is None or server.client_id is None:
        return None
    about, client = {"node": context.node_id, "prompt": context.prompt_id}, server.client_id
    return lambda event, values: server.send_sync(event, {**about, **values}, client)

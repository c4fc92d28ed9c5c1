"""Events for the page that started a run, about the node that is running."""

from collections.abc import Callable

from comfy_execution.utils import get_executing_context


def event_sender() -> Callable[[str, dict], None] | None:
    """A function (event, values) that sends to the page; None if no node is running, or nobody is listening."""
    context = get_executing_context()
    if context is None:
        return None
    from server import PromptServer  # here, because it starts a large part of ComfyUI

    server = getattr(PromptServer, "instance", None)
    if server is None or server.client_id is None:
        return None
    about = {"node": context.node_id, "prompt": context.prompt_id, "graph": graph_of(server, context.prompt_id)}
    client = server.client_id
    return lambda event, values: server.send_sync(event, {**about, **values}, client)


def graph_of(server, prompt_id: str) -> str | None:
    """The id of the workflow that a run was queued from; None if it was sent without one."""
    for _number, running, _prompt, extra_data, *_ in list(server.prompt_queue.currently_running.values()):
        workflow = (extra_data.get("extra_pnginfo") or {}).get("workflow")
        if running == prompt_id and isinstance(workflow, dict):
            return workflow.get("id")
    return None

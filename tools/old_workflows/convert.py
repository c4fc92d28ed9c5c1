"""A whole file: every graph in it by every family of nodes."""

from . import document, layout, native, videox_fun, wrapper
from .conversion import Conversion
from .report import Report
from .subgraphs import Subgraphs


def convert(data: object) -> tuple[dict, Report]:
    """Rewrite a workflow in UI or API format for this pack.

    Args:
        data: the file, as JSON has it. It is not changed.

    Returns:
        The new file, and what became of every node.

    Raises:
        WorkflowError: the file is no workflow.
    """
    read = document.read(data)
    report = Report()
    conversions = [Conversion(scope.graph, report, scope.title) for scope in read.scopes]
    for conversion in conversions:
        videox_fun.convert(conversion)
        wrapper.convert(conversion)
        native.convert(conversion)
        conversion.finish()
    subgraphs = Subgraphs(read.scopes, conversions)
    subgraphs.finish()
    if not read.is_api:
        for scope, conversion in zip(read.scopes, conversions, strict=True):
            if any(node.is_new for node in scope.graph.nodes.values()):
                layout.place(conversion, scope.data.setdefault("groups", []))
        if lines := report.lines():
            layout.add_summary(conversions[0], lines, read.data.get("groups") or [])
    new = document.write(read)
    subgraphs.write()
    return new, report

"""The pack's own source files and what they import."""

import ast
from collections.abc import Iterator
from pathlib import Path

from pack import ROOT

LAYERS = ("nodes", "model_loading", "sampling")
COMFYUI = set("comfy comfy_api comfy_execution folder_paths latent_preview node_helpers nodes server".split())


def pack_files() -> list[Path]:
    """Every module that runs in ComfyUI."""
    return [ROOT / "__init__.py", *(path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py")))]


def name_of(path: Path) -> str:
    """A file's path in the repository, as a test's id."""
    return path.relative_to(ROOT).as_posix()


def imports(nodes) -> Iterator[tuple[int, str, list[str]]]:
    """(level, module, names) of the import statements among the nodes of a syntax tree."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]

"""The commands of training/run.py: what each of them imports when it is called is there."""

import ast
import importlib

import pytest
from pack import ROOT

RUN = ast.parse((ROOT / "training" / "run.py").read_text(encoding="utf-8"))
IMPORTS = [node for node in ast.walk(RUN) if isinstance(node, ast.ImportFrom) and "cogvideox_fun" in node.module]


@pytest.mark.parametrize("node", IMPORTS, ids=lambda node: f"{node.module}:{node.lineno}")
def test_what_a_command_imports_exists(node):
    module = importlib.import_module(node.module)
    for alias in node.names:
        if not hasattr(module, alias.name):
            importlib.import_module(f"{node.module}.{alias.name}")

"""The commands of training/run.py: what they import when they are called is there, and numbers are checked."""

import ast
import importlib
import subprocess
import sys

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


@pytest.mark.parametrize(
    "command, words",
    [
        ("evaluate --count 0", "argument --count: 0, expected a whole number from 1"),
        ("plan a.toml --utilisation 0", "argument --utilisation: 0, expected more than 0 and at most 1"),
        ("evaluate --size 100", "argument --size: 100, expected a multiple of 16"),
        ("plan a.toml --gpus -1", "argument --gpus: -1, expected a whole number from 1"),
    ],
)
def test_a_number_that_no_command_can_use(command, words):
    done = subprocess.run(
        [sys.executable, ROOT / "training" / "run.py", *command.split()], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stderr.rstrip().endswith(words)

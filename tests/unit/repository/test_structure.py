"""Which part may import which, read from the import statements."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from pack import ROOT
from sources import COMFYUI, imports, name_of, pack_files

HEAVY = {"transformers", "diffusers", "kornia", "sentencepiece", "tokenizers", "safetensors", "PIL", "gguf"}
# A file may import from its own rank and from lower ones. The second names are those inside model_loading.
RANKS = {"sampling": 0, "errors": 1, "networks": 2, "files": 3, "standalone": 4, "comfyui": 4, "nodes": 5}
TRAINING = sorted((ROOT / "training").rglob("*.py"))


def rank(parts) -> int:
    """Of a module, given its path in the pack."""
    name = parts[1] if parts[0] == "model_loading" else parts[0]
    return RANKS[name.removesuffix(".py")]


def targets(path: Path):
    """The modules that a file imports from the pack, each as its path in the pack."""
    for level, module, names in imports(ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
        if level:
            package = path.parents[level - 1].joinpath(*module.split("."))
            for end in (package / name for name in names):
                found = end if end.is_dir() or end.with_suffix(".py").is_file() else package
                yield found.relative_to(ROOT).parts


@pytest.mark.parametrize("path", pack_files()[1:], ids=name_of)
def test_imports_point_one_way(path):
    """nodes -> comfyui, standalone -> files -> networks -> errors -> sampling."""
    for target in targets(path):
        assert rank(target) <= rank(path.relative_to(ROOT).parts), f"imports upward from {'.'.join(target)}"


@pytest.mark.parametrize("path", [*pack_files()[1:], *TRAINING], ids=name_of)
def test_only_two_folders_import_comfyui(path):
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    found = {module.split(".")[0] for level, module, _ in imports(tree) if level == 0} & COMFYUI
    assert not found or path.is_relative_to(ROOT / "nodes") or path.is_relative_to(ROOT / "model_loading" / "comfyui")


@pytest.mark.parametrize("path", TRAINING, ids=name_of)
def test_training_stands_on_the_models_and_the_maths(path):
    assert all(target[0] in ("model_loading", "sampling", "training") for target in targets(path))


@pytest.mark.parametrize("path", pack_files(), ids=name_of)
def test_large_libraries_are_imported_where_they_are_used(path):
    """A library that is missing or broken then stops one node and not the whole pack."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert not {module.split(".")[0] for level, module, _ in imports(body) if level == 0} & HEAVY


def test_importing_changes_nothing():
    """Neither the environment, sys.path, logging nor PyTorch's generator; nothing heavy is imported."""
    script = f"""
import json, logging, os, sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import torch, einops, numpy, tqdm, importlib.util
def state():
    return dict(os.environ), list(sys.path), logging.getLogger().handlers[:], torch.get_rng_state().tolist()
modules, before = set(sys.modules), state()
import pack
pack.load_pack()
import cogvideox_fun.model_loading.standalone
new = {{name.split(".")[0] for name in set(sys.modules) - modules}}
print(json.dumps([sorted(new & set({sorted(HEAVY | COMFYUI)!r})), state() == before]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [[], True]


def test_requirements_leave_comfyuis_libraries_alone():
    lines = [line.split("#")[0].strip().lower() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert not {"torch", "torchvision", "torchaudio", "numpy"} & set(lines)
    assert not [line for line in lines if set(line) & set("=<>~")], "nothing is pinned"

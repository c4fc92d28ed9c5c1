"""Who may import whom, from the import statements themselves."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pack
import pytest

ROOT = pack.ROOT
HOST = {"comfy", "comfy_api", "folder_paths", "node_helpers", "latent_preview", "nodes", "server", "comfy_execution"}
HEAVY = {"transformers", "diffusers", "kornia", "sentencepiece", "tokenizers", "safetensors", "PIL", "gguf"}
LAYERS = {"sampling": 0, "model_loading": 1, "nodes": 5}
ROOMS = {"errors": 1, "networks": 2, "files": 3, "standalone": 4, "comfyui": 4}  # of model_loading
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).glob("**/*.py"))


def imports(path: Path, top_level_only: bool = False):
    """(level, module) of every import statement of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level and node.module is None:
                yield from ((node.level, alias.name) for alias in node.names)
            else:
                yield node.level, node.module or ""


def rank(parts) -> int:
    """Of a module, by its path: what it imports ranks no higher."""
    layer, room = parts[0], parts[1].removesuffix(".py") if len(parts) > 1 else ""
    return ROOMS.get(room, 2) if layer == "model_loading" else LAYERS[layer]


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_layers(path):
    """One way: nodes -> comfyui, standalone -> files -> networks -> errors; and sampling, which imports nothing."""
    layer = path.relative_to(ROOT).parts[0]
    for level, module in imports(path):
        top = module.split(".")[0]
        if level:
            at = path.parts[len(ROOT.parts) : -level]
            target = [*at, *module.split(".")] if module else at
            assert rank(target) <= rank(path.parts[len(ROOT.parts) :]), f"{path} imports upward from {module}"
        if level == 0 and top in HOST:
            assert layer == "nodes" or "comfyui" in path.parts, f"{path.name} imports the host's {module}"


@pytest.mark.parametrize("path", sorted((ROOT / "training").rglob("*.py")), ids=lambda p: p.stem)
def test_training_needs_no_host(path):
    """It stands on the model and the maths; no node and no host."""
    depth = len(path.relative_to(ROOT / "training").parts)
    for level, module in imports(path):
        top = module.split(".")[0]
        assert level != 0 or top not in HOST
        assert level <= depth or top in ("model_loading", "sampling"), module


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_heavy_libraries_are_imported_where_they_are_used(path):
    top_level = {module.split(".")[0] for level, module in imports(path, top_level_only=True) if level == 0}
    assert not top_level & HEAVY


def test_import_has_no_side_effects():
    """Without a host, a GPU or a model: importing the pack and its pure parts changes nothing outside itself."""
    script = f"""
import json, logging, os, sys
sys.path.insert(0, {str(ROOT / "tools")!r})
import torch, einops, numpy, tqdm, typing, importlib.util
before = (set(sys.modules), dict(os.environ), list(sys.path), logging.getLogger().handlers[:], torch.get_rng_state())
import pack
pack.load_pack()
import cogvideox_fun.model_loading.standalone
import cogvideox_fun.model_loading.files.checkpoint
after = (set(sys.modules), dict(os.environ), list(sys.path), logging.getLogger().handlers[:], torch.get_rng_state())
new = sorted({{m.split(".")[0] for m in after[0] - before[0]}} & set({sorted(HEAVY | HOST)!r}))
same = all(a == b for a, b in zip(before[1:4], after[1:4])) and torch.equal(before[4], after[4])
print(json.dumps([new, same]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [[], True]


def test_the_pack_never_names_a_device_or_opens_the_network():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r'\.cuda\(|"cuda', text), path
        assert not {"requests", "urllib", "huggingface_hub", "socket", "pickle"} & {
            module.split(".")[0] for _, module in imports(path)
        }, path


def test_requirements_leave_the_hosts_libraries_alone():
    names = [line.split("#")[0].strip().lower() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert not {"torch", "torchvision", "torchaudio", "numpy"} & set(names)
    assert not any(set(name) & set("=<>~") for name in names), "nothing is pinned"


def test_every_node_has_a_help_page():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    classes = {alias.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and n.level for alias in n.names}
    ids = set()
    for path in (ROOT / "nodes").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name in classes:
                ids |= {k.value.value for k in ast.walk(node) if isinstance(k, ast.keyword) and k.arg == "node_id"}
    assert len(ids) == len(classes) == 19
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} == ids

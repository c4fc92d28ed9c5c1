"""What the registry publishes: it runs by itself and holds nothing that only the repository needs."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pack import ROOT
from sources import COMFYUI, imports

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

RUNTIME = {"__init__.py", "locales", "model_loading", "models", "nodes", "sampling", "subgraphs", "web", "workflows"}
PUBLISHED = RUNTIME | {"CHANGELOG.md", "LICENSE", "README.md", "docs", "pyproject.toml", "requirements.txt"}
# ComfyUI brings torch, torchvision and numpy, ComfyUI-GGUF brings gguf, and PyTorch brings triton for some GPUs.
NOT_REQUIRED = COMFYUI | {"torch", "torchvision", "numpy", "av", "gguf", "triton"} | set(sys.stdlib_module_names)
LARGEST = 28e6  # bytes; the nano model, with its Control model, takes 24e6, and pictures 2e6


def tracked(*arguments: str) -> set[str]:
    command = ["git", "ls-files", "-z", "--cached", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in result.stdout.split("\0") if name and (ROOT / name).exists()}


@pytest.fixture(scope="module")
def names() -> set[str]:
    """The files that comfy-cli packs: those that git tracks, without those that .comfyignore names."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("what is published comes from git: not a git checkout, or no git")
    return tracked() - tracked("--ignored", "--exclude-from=.comfyignore")


@pytest.fixture(scope="module")
def unpacked(names, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("custom_nodes") / "cogvideox-fun"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_holds_what_runs_and_nothing_else(names):
    assert {name.split("/")[0] for name in names} == PUBLISHED
    missing = {name for name in tracked() if name.split("/")[0] in RUNTIME} - names
    assert missing and all(name.startswith("models/nano/training/") for name in missing)
    assert sum((ROOT / name).stat().st_size for name in names) < LARGEST


def test_requires_what_it_imports(unpacked, project):
    required = {line for line in (unpacked / "requirements.txt").read_text().splitlines() if line[:1] not in ("#", "")}
    assert set(project["project"]["dependencies"]) == required, "pyproject.toml and requirements.txt"
    for path in unpacked.rglob("*.py"):
        for level, module, _ in imports(ast.walk(ast.parse(path.read_text(encoding="utf-8")))):
            top = module.split(".")[0]
            assert level or top in NOT_REQUIRED or {"PIL": "pillow"}.get(top, top) in required, f"{path}: {module}"


def test_runs_alone_without_comfyui_and_diffusers(unpacked, tmp_path):
    """In a process that sees nothing of the repository. ComfyUI has every requirement but diffusers, which only the
    schedulers from diffusers need."""
    script = f"""
import importlib, importlib.util, json, pathlib, sys
sys.modules["diffusers"] = None
root = pathlib.Path({str(unpacked)!r})
where = {{"submodule_search_locations": [str(root)]}}
spec = importlib.util.spec_from_file_location("published", root / "__init__.py", **where)
module = sys.modules["published"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
for layer in ("sampling", "model_loading"):
    for path in sorted((root / layer).rglob("*.py")):
        if "comfyui" not in path.parts:
            importlib.import_module(".".join(["published", *path.relative_to(root).with_suffix("").parts]))
from published.model_loading.standalone import Pipeline
pipeline = Pipeline.from_folder(root / "models" / "nano")
text = pipeline.text_encoder("a red square moves right over the fog")
latent = pipeline.sample(pipeline.noise(64, 64, 5, 0), text, text, steps=2, cfg=1.0)
print(json.dumps([list(latent.shape), bool(latent.isfinite().all())]))
"""
    command = [sys.executable, "-I", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [[1, 16, 2, 8, 8], True]


def test_the_version_is_the_changelogs_newest(project):
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert released[0] == project["project"]["version"]

"""What the registry publishes: it is whole, runs by itself, and holds nothing that only the repository needs."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pack
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it there

ROOT = pack.ROOT
RUNTIME = {"__init__.py", "model_loading", "models", "nodes", "sampling", "web", "workflows"}
NEEDED = RUNTIME | {"CHANGELOG.md", "LICENSE", "README.md", "docs", "pyproject.toml", "requirements.txt"}
HOST = {
    "torch",
    "numpy",
    "comfy",
    "comfy_api",
    "comfy_execution",
    "folder_paths",
    "latent_preview",
    "node_helpers",
    "nodes",
    "server",
}
# gguf comes with the node pack that GGUF files are loaded through, and triton with PyTorch where a GPU can use it
OPTIONAL = {"gguf", "triton"}
DISTRIBUTIONS = {"PIL": "pillow"}
ACCELERATORS = {"NVIDIA CUDA", "AMD ROCm", "Intel Arc", "Apple Metal"}  # that the registry knows


def tracked(*arguments: str) -> set[str]:
    command = ["git", "ls-files", "-z", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in result.stdout.split("\0") if name}


@pytest.fixture(scope="module")
def names() -> set[str]:
    """As comfy-cli packs: the files that git tracks, less those that .comfyignore names."""
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("what is published comes from git: not a git checkout, or no git")
    left_out = tracked("--cached", "--ignored", "--exclude-from=.comfyignore")
    return {name for name in tracked("--cached") - left_out if (ROOT / name).exists()}


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
    tops = {name.split("/")[0] for name in names}
    assert NEEDED <= tops <= NEEDED | {"locales", "subgraphs"}
    assert not [name for name in names if {"tests", "training", "benchmarks", "tools"} & set(name.split("/"))]
    assert not [name for name in names if Path(name).suffix in {".csv", ".log", ".zip", ".mp4", ".npz"}]
    assert {name for name in names if name.endswith(".toml")} == {"pyproject.toml"}


def test_holds_every_file_of_the_parts_that_run(names):
    missing = {name for name in tracked("--cached") if name.split("/")[0] in RUNTIME} - names
    assert {name.rsplit("/", 1)[0] for name in missing} == {"models/nano/training"}


def test_is_small(names):
    sizes = {name: (ROOT / name).stat().st_size for name in names}
    nano = sum(size for name, size in sizes.items() if name.startswith("models/nano/"))
    assert 20e6 < nano < 23e6, f"the nano model is {nano / 1e6:.1f} MB"
    assert sum(sizes.values()) - nano < 3e6, "what is not the nano model"


def imports(path: Path):
    """(level, module, names) of every import statement, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.level, node.module or "", [alias.name for alias in node.names]


def is_module(path: Path) -> bool:
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def test_imports_nothing_that_is_left_out(unpacked):
    """Also inside functions, and of the modules that need a host."""
    seen = 0
    for path in unpacked.rglob("*.py"):
        for level, module, objects in imports(path):
            if not level:
                continue
            seen += 1
            package = path.parents[level - 1]
            assert package.is_relative_to(unpacked), f"{path.name} imports from above the pack"
            if module:
                assert is_module(package.joinpath(*module.split("."))), f"{path.name}: {module} is not published"
            else:
                assert all(is_module(package / name) for name in objects), f"{path.name}: {objects}"
    assert seen > 50


def test_requires_what_it_imports(unpacked, project):
    required = {line for line in (unpacked / "requirements.txt").read_text().splitlines() if line[:1] not in ("#", "")}
    assert set(project["project"]["dependencies"]) == required, "pyproject.toml and requirements.txt"
    for path in unpacked.rglob("*.py"):
        tops = {module.split(".")[0] for level, module, _ in imports(path) if not level}
        third = tops - set(sys.stdlib_module_names) - HOST - OPTIONAL
        assert {DISTRIBUTIONS.get(top, top) for top in third} <= required, path.name


def test_runs_alone_without_a_host(unpacked, tmp_path):
    """The pack is imported and the nano model makes a clip, in a process that sees nothing of the repository, nor
    diffusers: that is the one requirement that ComfyUI has not, and only the recipes' schedulers need it."""
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
files = [str(m.__file__) for n, m in sys.modules.items() if n.startswith("published.") and m.__file__]
print(json.dumps([list(latent.shape), bool(latent.isfinite().all()), all(f.startswith(str(root)) for f in files)]))
"""
    command = [sys.executable, "-I", "-c", script]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [[1, 16, 2, 8, 8], True, True]


def test_every_picture_and_page_comes_along(unpacked):
    for template in (unpacked / "workflows").glob("*.json"):
        assert template.with_suffix(".jpg").is_file(), template.name
    ids = set(re.findall(r'node_id="(\w+)"', "".join(p.read_text() for p in (unpacked / "nodes").glob("*.py"))))
    assert ids and {path.stem for path in (unpacked / "web" / "docs").glob("*.md")} >= ids


def test_the_version_is_the_changelogs_newest(project):
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version = project["project"]["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\] - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)
    assert released and released[0] == version
    order = [tuple(map(int, number.split("."))) for number in released]
    assert order == sorted(set(order), reverse=True), "the newest comes first, none twice"


def test_the_registry_understands_the_metadata(project):
    """What comfy-cli warns of and then leaves out."""
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", project["project"]["name"])
    assert "dynamic" not in project["project"], "comfy-cli reads dependencies from here alone"
    assert isinstance(project["project"]["license"], str) and (ROOT / "LICENSE").is_file()
    accelerators = {c.removeprefix("Environment :: ") for c in project["project"]["classifiers"] if "Environment" in c}
    assert accelerators <= {f"GPU :: {name}" for name in ACCELERATORS}
    comfy = project["tool"]["comfy"]
    assert comfy["DisplayName"] and comfy["PublisherId"]
    assert re.fullmatch(r">=\d+\.\d+\.\d+", comfy["requires-comfyui"])

"""Convert the shipped workflows to the API form that the tests post, as ``make api`` does.

The conversion is the host's own: its front end, in headless Chromium, loads each file of workflows/ and says what it
would queue. The host is the ComfyUI at COMFYUI_PATH (default ~/comfy/ComfyUI) with the Python at COMFYUI_PYTHON.
"""

import argparse
import difflib
import hashlib
import json
import sys
import tempfile
from pathlib import Path

from pack import ROOT, load_pack

load_pack()
sys.path.append(str(ROOT / "tests" / "helpers"))

import tiny_model  # noqa: E402
from cogvideox_fun.tools import comfyui_server as comfy  # noqa: E402
from webdriver import Page, browse, find_browser  # noqa: E402

WORKFLOWS = ROOT / "workflows"
API = ROOT / "tests" / "data" / "api"
SOURCES = "sources.json"  # workflow -> the sha256 of the UI file that its API form was made from
NOTES = {"Note", "MarkdownNote"}  # they live in the front end only

# Inputs that newer hosts' own nodes have and the oldest supported host, 0.3.64, has not. Left out, they take their
# defaults where they exist, and the files are the same whichever host made them.
NEWER_INPUTS = {"CreateVideo": ("bit_depth",), "SaveVideo": ("format.codec",)}

# A front end that has been used before opens its default graph, which is the sign that it is ready.
SETTINGS = {"Comfy.TutorialCompleted": True}
READY = "window.comfyAPI?.app?.app?.graph?.nodes?.length && window.LiteGraph?.registered_node_types?.SaveVideo"
CONVERT = """
const [workflow] = arguments;
const types = new Set(workflow.nodes.map(node => node.type));
const missing = [...types].filter(type => !(type in window.LiteGraph.registered_node_types));
if (missing.length) return {missing};
const app = window.comfyAPI.app.app;
await app.loadGraphData(workflow);
return {missing, output: (await app.graphToPrompt()).output};
"""


def what_is_missing() -> str | None:
    """One line that says what the conversion needs and how to give it; None if everything is there."""
    if comfy.find_host() is None:
        return comfy.NO_HOST
    if find_browser() is None:
        return "no Chromium: install chromium and chromedriver, or set CHROMIUM and CHROMEDRIVER to them"
    return None


def convert(page: Page, path: Path) -> dict:
    """One workflow in API form.

    Raises:
        RuntimeError: the host lacks one of its nodes, or the front end converted something else.
    """
    workflow = json.loads(path.read_text(encoding="utf-8"))
    answer = page.run(CONVERT, workflow)
    if answer["missing"]:
        raise RuntimeError(f"{path.name}: the host has no {', '.join(sorted(answer['missing']))}")
    api = answer["output"]
    expected = {str(node["id"]): node["type"] for node in workflow["nodes"] if node["type"] not in NOTES}
    converted = {name: node["class_type"] for name, node in api.items()}
    if converted != expected:
        raise RuntimeError(f"{path.name}: the front end converted the nodes {converted}, expected {expected}")
    for node in api.values():
        for name in NEWER_INPUTS.get(node["class_type"], ()):
            node["inputs"].pop(name, None)
    return api


def as_text(value: dict) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def source_hashes() -> dict[str, str]:
    """Workflow name -> sha256 of its UI file."""
    return {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(WORKFLOWS.glob("*.json"))}


def export() -> dict[str, str]:
    """File name -> text of everything that belongs into tests/data/api."""
    files = {SOURCES: as_text(source_hashes())}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        tiny_model.write_tiny_model(Path(folder) / "models" / "CogVideoX_Fun" / comfy.MODEL_NAME)
        user = Path(folder) / "user" / "default"
        user.mkdir(parents=True)
        (user / "comfy.settings.json").write_text(json.dumps(SETTINGS))
        with (
            comfy.serve(comfy.find_host(), Path(folder)) as server,
            browse(find_browser(), comfy.free_port()) as page,
        ):
            page.open(server.url)
            page.wait_for(READY, seconds=120)
            for path in sorted(WORKFLOWS.glob("*.json")):
                files[path.name] = as_text(convert(page, path))
    return files


def differences(files: dict[str, str]) -> str:
    """What is in tests/data/api, compared with what belongs there, as a unified diff; empty if they are equal."""
    present = {path.name: path.read_text(encoding="utf-8") for path in API.glob("*.json")}
    lines = []
    for name in sorted(files.keys() | present.keys()):
        old, new = (texts.get(name, "").splitlines(keepends=True) for texts in (present, files))
        lines += difflib.unified_diff(old, new, f"tests/data/api/{name}", f"{name} as converted now")
    return "".join(lines)


def write(files: dict[str, str]) -> None:
    """Write the files, and remove those of workflows that are gone."""
    API.mkdir(parents=True, exist_ok=True)
    for path in API.glob("*.json"):
        if path.name not in files:
            path.unlink()
    for name, text in files.items():
        (API / name).write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with tests/data/api instead of writing there")
    args = parser.parse_args()
    problem = what_is_missing()
    if problem:
        sys.exit(problem)
    try:
        files = export()
    except (RuntimeError, TimeoutError) as error:
        sys.exit(str(error))
    if not args.check:
        write(files)
        sys.stdout.write(f"{len(files) - 1} workflows written to {API}\n")
        return
    found = differences(files)
    if found:
        sys.exit(found + "tests/data/api is out of date: run make api")
    sys.stdout.write(f"{len(files) - 1} workflows are as in {API}\n")


if __name__ == "__main__":
    main()

"""Convert the shipped workflows to the API form that the tests post: ``python tools/export_api.py``.

ComfyUI's own front end loads each file of workflows/ in headless Chromium and says what it would queue. The answers go
to tests/data/api.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

from pack import ROOT, load_pack

load_pack()

from cogvideox_fun.tools import comfyui_server as comfy  # noqa: E402
from front_end import FrontEnd, find_browser, start_browser  # noqa: E402

WORKFLOWS = ROOT / "workflows"
API = ROOT / "tests" / "data" / "api"
SOURCES = "sources.json"  # workflow -> the sha256 of the UI file that its API form was made from
NOTES = {"Note", "MarkdownNote"}  # they live in the front end only

# Inputs of ComfyUI's own nodes that are left out, so that every version makes the same files: those that 0.3.64 does
# not have, which take their defaults where they exist, and the video that 1.49 shows in a node.
LEFT_OUT = {"CreateVideo": ("bit_depth",), "SaveVideo": ("format.codec",), "LoadVideo": ("video-preview",)}


def what_is_missing() -> str | None:
    """One line that says what the conversion needs and how to get it; None if everything is there."""
    if comfy.find_host() is None:
        return comfy.NO_HOST
    if find_browser() is None:
        return "no Chromium: install it, or set CHROMIUM to it"
    return None


def queued(front: FrontEnd) -> dict:
    """What the open graph would queue, the same from every version of ComfyUI."""
    api = front.queued()
    for node in api.values():
        for name in LEFT_OUT.get(node["class_type"], ()):
            node["inputs"].pop(name, None)
    return api


def flat(workflow: dict) -> dict[str, str]:
    """Id -> type of every node that is run; those inside a subgraph have the ids of both: "8:11"."""
    inside = {one["id"]: one["nodes"] for one in workflow["definitions"]["subgraphs"]}
    nodes = {}
    for node in workflow["nodes"]:
        if node["type"] in inside:
            nodes |= {f"{node['id']}:{one['id']}": one["type"] for one in inside[node["type"]]}
        elif node["type"] not in NOTES:
            nodes[str(node["id"])] = node["type"]
    return nodes


def convert(front: FrontEnd, path: Path) -> dict:
    """One workflow in API form.

    Raises:
        RuntimeError: the front end left out a node, for example one that this ComfyUI does not have.
    """
    workflow = json.loads(path.read_text(encoding="utf-8"))
    front.app("await app.loadGraphData(arguments[0])", workflow)
    api = queued(front)
    expected = flat(workflow)
    converted = {name: node["class_type"] for name, node in api.items()}
    if converted != expected:
        raise RuntimeError(f"{path.name}: the front end converted the nodes {converted}, expected {expected}")
    return api


def main() -> None:
    if problem := what_is_missing():
        sys.exit(problem)
    workflows = sorted(WORKFLOWS.glob("*.json"))
    files = {SOURCES: {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in workflows}}
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        comfy.serve(comfy.find_host(), Path(folder)) as server,
        start_browser() as browser,
    ):
        front = FrontEnd(browser, server.url)
        front.open()
        front.close_dialogs()
        files |= {path.name: convert(front, path) for path in workflows}
    for path in API.glob("*.json"):
        if path.name not in files:
            path.unlink()
    for name, value in files.items():
        text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (API / name).write_text(text, encoding="utf-8")
    print(f"{len(workflows)} workflows written to {API}")


if __name__ == "__main__":
    main()

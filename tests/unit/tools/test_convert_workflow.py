"""Workflows of other packs become this pack's. The small ones of tests/data always run. Published ones are fetched by
whoever runs the test: OLD_WORKFLOWS is a folder with their JSON files, see docs/beyond.md."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from old_workflow_graphs import DATA, converted, graphs, load, values
from old_workflows import facts
from old_workflows.convert import convert
from old_workflows.document import WorkflowError
from old_workflows.kinds import KINDS
from pack import ROOT
from ui_graph import UIGraph, overlap

FETCHED = sorted(Path(os.environ["OLD_WORKFLOWS"]).rglob("*.json")) if os.environ.get("OLD_WORKFLOWS") else []
OWN = sorted(path for path in DATA.glob("*.json") if "_api" not in path.name)
COMMAND = ROOT / "tools" / "convert_workflow.py"
OLD_TYPES = facts.WRAPPER.keys() | facts.WRAPPER_ONLY.keys() | facts.WRAPPER_BEFORE | facts.RENAMED.keys()
OLD_TYPES |= facts.VIDEOX_FUN.keys() | facts.VIDEOX_FUN_ONLY.keys()
OLD_WIRES = {"COGVIDEOMODEL", "FunModels", "STRING_PROMPT", "COGLORA", "COGCONTEXT", "TORAFEATURES", "COMPILEARGS"}


@pytest.fixture(scope="module", params=[*OWN, *FETCHED], ids=lambda path: path.stem)
def pair(request):
    """The graphs of a workflow before and after, and the report."""
    data = json.loads(request.param.read_text(encoding="utf-8"))
    new, report = convert(data)
    return graphs(data), graphs(new), report


class TestAnyWorkflow:
    """What holds for every file, ours and published ones."""

    def test_links_are_whole_and_of_one_type(self, pair):
        for graph in pair[1]:
            graph.check()

    def test_no_old_node_and_no_old_wire_is_left(self, pair):
        for graph in pair[1]:
            assert not {node["type"] for node in graph.nodes.values()} & OLD_TYPES
            ends = [slot["type"] for node in graph.nodes.values() for slot in node.get("outputs") or []]
            ends += [slot["type"] for side in ("inputs", "outputs") for slot in graph.data.get(side, [])]
            assert not set(ends) & OLD_WIRES

    def test_promoted_widgets_are_those_of_nodes_inside(self, pair):
        inside = {graph.data["id"]: graph for graph in pair[1] if "inputNode" in graph.data}
        for graph in pair[1]:
            for node in graph.nodes.values():
                for key, name in (node.get("properties") or {}).get("proxyWidgets", []):
                    inner = inside[node["type"]].nodes[int(key)]
                    assert name in {slot["name"] for slot in inner["inputs"]}

    def test_nodes_of_other_packs_stay_as_they_were(self, pair):
        """But those that are muted, and the name of a widget that WidgetToString asks for."""
        entries = pair[2].entries
        for old, new in zip(*pair[:2], strict=True):
            scope = old.data.get("name", "") if "inputNode" in old.data else ""
            kept = [node for node in old.nodes.values() if entries[scope, node["id"]].state == "kept"]
            for node in kept:
                after = new.nodes[node["id"]]
                assert after["type"] == node["type"]
                assert as_pair(after["pos"]) == as_pair(node["pos"]) and after["mode"] == node.get("mode", 0)
                if node["type"] != "WidgetToString":
                    assert after.get("widgets_values") == node.get("widgets_values")
            groups = old.data.get("groups", [])
            assert new.data.get("groups", [])[: len(groups)] == groups

    def test_old_nodes_give_their_places_to_new_ones(self, pair):
        for old, new in zip(*pair[:2], strict=True):
            for node in old.nodes.values():
                if node["id"] in new.nodes:
                    assert as_pair(new.nodes[node["id"]]["pos"]) == as_pair(node["pos"])
                else:
                    assert node["type"] in ("SetNode", "GetNode", "Reroute")

    def test_added_nodes_lie_on_nothing(self, pair):
        for old, new in zip(*pair[:2], strict=True):
            added = [node for key, node in new.nodes.items() if key not in old.nodes]
            for node in added:
                assert not [other["id"] for other in new.nodes.values() if other is not node and overlap(node, other)]

    def test_values_arrive(self, pair):
        """Read by their place in the old list here, apart from the tables that the conversion reads."""
        for old, new in zip(*pair[:2], strict=True):
            for node in old.nodes.values():
                check_values(node, new)


def as_pair(value) -> list:
    return [value["0"], value["1"]] if isinstance(value, dict) else value[:2]


def check_values(node: dict, new: UIGraph) -> None:
    saved, now = node.get("widgets_values"), new.nodes.get(node["id"])
    if node["type"] == "CogVideoSampler" and len(saved) == 7 and isinstance(saved[1], int):
        got = values(now)
        assert (got["seed"], got["seed after"], got["cfg"]) == (saved[3], saved[4], saved[2])
        assert (got["steps"], got["denoise"]) == (int(saved[1] * saved[6]), int(saved[1] * saved[6]) / saved[1])
    if node["type"] in ("CogVideoXFunT2VSampler", "CogVideoXFunInpaintSampler", "CogVideoXFunV2VSampler"):
        seed = {"CogVideoXFunT2VSampler": 4}.get(node["type"], 2)
        got = values(now)
        assert (got["seed"], got["seed after"], got["cfg"]) == (saved[seed], saved[seed + 1], saved[seed + 3])
        strength = saved[6] if node["type"] == "CogVideoXFunV2VSampler" and "control" not in linked(node) else 1
        steps = int(saved[seed + 2] * strength)
        assert (got["steps"], got["denoise"]) == (steps, steps / saved[seed + 2])
        lengths = [values(one)["length"] for one in new.nodes.values() if "length" in KINDS_WITH.get(one["type"], ())]
        assert saved[0] in lengths
    if node["type"] in ("FunTextBox", "CogVideoTextEncode") and len(saved) < 4:
        assert now["widgets_values"] == [saved[0]]
    if node["type"] in ("CogVideoLoraSelect", "LoadCogVideoXFunLora"):
        assert now["widgets_values"] == saved[:2]
    if node["type"] in ("LoadCogVideoXFunModel", "DownloadAndLoadCogVideoModel"):
        assert values(now)["model"] == saved[0].split("/")[-1]


KINDS_WITH = {kind: known.widgets for kind, known in KINDS.items()}


def linked(node: dict) -> str:
    return " ".join(slot["name"] for slot in node["inputs"] if slot.get("link") is not None)


@pytest.mark.skipif(not FETCHED, reason="OLD_WORKFLOWS is no folder with published workflows (docs/beyond.md)")
def test_published_workflows_are_those_of_the_page():
    """25 files of the wrapper and of VideoX-Fun, and ComfyUI's blueprint. docs/beyond.md has the same figures."""
    page = (ROOT / "docs" / "beyond.md").read_text(encoding="utf-8")
    for path in FETCHED:
        _, report = convert(json.loads(path.read_text(encoding="utf-8")))
        counts = report.counts()
        arrived = counts["kept"] + counts["converted"]
        assert f"| {path.stem} | {arrived} of {len(report.entries)} |" in page, path.name


def test_the_api_format_has_no_notes_but_the_report_says_the_same():
    encode = {"tora_model": ["1", 0], "vae": ["4", 1], "width": 720}
    old = {
        "1": {"class_type": "DownloadAndLoadToraModel", "inputs": {"model": "Tora"}},
        "2": {"class_type": "ToraEncodeTrajectory", "inputs": encode},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 1]}},
        "4": {"class_type": "CogVideoXVAELoader", "inputs": {"model_name": "vae.safetensors", "tiles": 3}},
    }
    new, report = convert(old)
    assert {key: node["class_type"] for key, node in new.items()} == {
        "3": "PreviewImage",
        "4": "CogVideoXFunVAELoader",
    }
    assert new["3"]["inputs"] == {}
    problems = {key: " ".join(entry.problems) for (_, key), entry in report.entries.items()}
    assert "Tora is not supported" in problems["1"] and "`images`" in problems["3"]
    assert "has the value tiles (3), expected some of model_name, precision" in problems["4"]


def test_comfyuis_own_nodes():
    graph, _ = converted("native")
    assert values(graph.nodes[1]) == {"model": "cogvideox_5b.safetensors", "weight_dtype": "fp8_e4m3fn"}
    assert graph.nodes[2]["type"] == "CogVideoXFunTextEncoderLoader" and graph.nodes[7]["type"] == "KSampler"
    assert values(graph.nodes[6]) == {"width": 720, "height": 480, "length": 49, "batch_size": 1}
    assert values(graph.nodes[8]) == {"tile_size": 512, "overlap": 64}


def test_a_graph_of_another_model_is_not_changed():
    data = load("native")
    data["nodes"][1]["widgets_values"][1] = "wan"
    new, report = convert(data)
    assert report.counts()["kept"] == len(data["nodes"])
    assert [node["type"] for node in new["nodes"]] == [node["type"] for node in data["nodes"]]


def test_this_packs_own_workflows_are_not_changed():
    for path in sorted((ROOT / "workflows").glob("*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        new, report = convert(data)
        assert set(report.counts().items()) >= {("converted", 0), ("partly", 0), ("none", 0)}
        for before, after in zip(graphs(data), graphs(new), strict=True):
            assert before.nodes == after.nodes
            assert sorted(map(str, before.links)) == sorted(map(str, after.links))


@pytest.mark.parametrize("data", [[], {"a": 1}, "text", {"nodes": None}])
def test_a_file_that_is_no_workflow(data):
    with pytest.raises(WorkflowError, match="expected a workflow of ComfyUI"):
        convert(data)


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, str(COMMAND), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command(tmp_path):
    result = run(DATA / "videox_fun_images.json", tmp_path / "new.json")
    assert result.stdout.startswith("8 of 8 nodes keep all their values"), result.stderr
    UIGraph(json.loads((tmp_path / "new.json").read_text(encoding="utf-8"))).check()
    counted = run("--count", DATA).stdout
    assert "videox_fun_images.json: 8 of 8 nodes keep" in counted and "Tora is not supported" in counted
    (tmp_path / "no.json").write_text("{")
    failed = run(tmp_path / "no.json", tmp_path / "new.json")
    assert failed.returncode == 1 and "can't be read as JSON" in failed.stderr


def test_the_command_in_a_python_that_does_not_look_in_the_scripts_folder(tmp_path):
    """As the one of ComfyUI's portable version."""
    command = [sys.executable, "-I", str(COMMAND), str(DATA / "native.json"), str(tmp_path / "new.json")]
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0 and "nodes keep" in result.stdout, result.stderr


def test_the_command_does_not_overwrite_the_old_file(tmp_path):
    old = tmp_path / "old.json"
    old.write_bytes((DATA / "native.json").read_bytes())
    failed = run(old, tmp_path / "." / "old.json")
    assert failed.returncode == 1 and "is the old file" in failed.stderr and "give another name" in failed.stderr
    assert old.read_bytes() == (DATA / "native.json").read_bytes()


def test_the_command_names_the_file_that_it_can_not_use(tmp_path):
    (tmp_path / "settings.json").write_text('{"a": 1}')
    failed = run(tmp_path / "settings.json", tmp_path / "new.json")
    assert failed.returncode == 1 and failed.stderr.startswith(str(tmp_path / "settings.json"))
    missing = tmp_path / "missing" / "new.json"
    failed = run(DATA / "native.json", missing)
    assert failed.returncode == 1 and failed.stderr.startswith(f"{missing} can't be written")
    assert "Traceback" not in failed.stderr


def test_counting_goes_on_after_a_file_that_is_no_workflow(tmp_path):
    (tmp_path / "a.json").write_text('{"a": 1}')
    (tmp_path / "b.json").write_bytes((DATA / "native.json").read_bytes())
    (tmp_path / "c.json").write_text("{")
    counted = run("--count", tmp_path)
    lines = [line for line in counted.stdout.splitlines() if not line.startswith(" ")]
    assert lines[0] == "a.json: not a workflow" and lines[2] == "c.json: not a workflow", counted.stderr
    assert lines[1].startswith("b.json: ") and counted.returncode == 0


def test_a_path_that_does_not_exist_is_said_so(tmp_path):
    ran = subprocess.run(
        [sys.executable, COMMAND, tmp_path / "none.json", tmp_path / "new.json"], capture_output=True, text=True
    )
    assert ran.returncode != 0
    assert "none.json does not exist: give the path of a saved workflow" in ran.stderr and "JSON" not in ran.stderr

"""The shipped workflows and blueprints, as far as they can be checked without ComfyUI."""

import hashlib
import json

import make_templates
import pytest
from pack import ROOT
from PIL import Image
from templates import notes
from templates.document import NOTE, SAVE, TASK, filled, name_of
from templates.graph import INPUT_NODE, OUTPUT_NODE
from templates.tasks import EDITIONS, TASKS

WORKFLOWS = ROOT / "workflows"
API = ROOT / "tests" / "data" / "api"
NAMES = sorted(name_of(task, nano) for task, nano in EDITIONS)
REAL_TASKS = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.title)


def load(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_what_is_shipped_is_made_from_the_source():
    assert make_templates.present() == make_templates.made(), "run make templates"
    assert sorted(path.stem for path in WORKFLOWS.glob("*.json")) == NAMES
    assert all("cogvideox" in name.lower() for name in NAMES), "a search finds them all"


def test_every_workflow_has_an_api_form_made_from_it():
    hashes = {name: hashlib.sha256((WORKFLOWS / f"{name}.json").read_bytes()).hexdigest() for name in NAMES}
    assert load(API / "sources.json") == hashes, "a workflow has changed: run make api"
    assert {path.stem for path in API.glob("*.json")} == {*NAMES, "sources"}, "run make api"


@pytest.mark.parametrize("name", NAMES)
def test_every_card_moves(name):
    with Image.open(WORKFLOWS / f"{name}.jpg") as card:
        assert card.format == "WEBP" and card.n_frames >= 17


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_from_an_output_to_an_input_and_back(name):
    """Outside and inside: both ends of a link know it, and no input has two."""
    workflow = load(WORKFLOWS / f"{name}.json")
    (inside,) = workflow["definitions"]["subgraphs"]
    outer = [
        dict(zip(("id", "origin_id", "origin_slot", "target_id", "target_slot"), link, strict=False))
        for link in workflow["links"]
    ]
    ends = [
        {"id": INPUT_NODE, "outputs": [{"links": slot["linkIds"]} for slot in inside["inputs"]]},
        {"id": OUTPUT_NODE, "inputs": [{"link": slot["linkIds"][0]} for slot in inside["outputs"]]},
    ]
    for nodes, links in ((workflow["nodes"], outer), (inside["nodes"] + ends, inside["links"])):
        known = {node["id"]: node for node in nodes}
        assert len(known) == len(nodes)
        for link in links:
            assert link["id"] in known[link["origin_id"]]["outputs"][link["origin_slot"]]["links"]
            assert known[link["target_id"]]["inputs"][link["target_slot"]]["link"] == link["id"]
        used = [slot["link"] for node in nodes for slot in node.get("inputs", ()) if slot["link"] is not None]
        assert sorted(used) == sorted(link["id"] for link in links)
    for bend in inside["reroutes"]:
        assert set(bend["linkIds"]) <= {link["id"] for link in inside["links"]}
    assert {link["parentId"] for link in inside["links"] if "parentId" in link} <= {
        b["id"] for b in inside["reroutes"]
    }


@pytest.mark.parametrize("name", NAMES)
def test_nothing_overlaps_and_no_link_runs_behind_a_node(name):
    workflow = load(WORKFLOWS / f"{name}.json")
    (inside,) = workflow["definitions"]["subgraphs"]

    def box(node: dict) -> tuple:
        (x, y), (width, height) = node["pos"], node["size"]
        return x, y - 30, x + width, y + height

    for nodes in (workflow["nodes"], inside["nodes"]):
        boxes = [box(node) for node in nodes]
        for i, one in enumerate(boxes):
            for other in boxes[:i]:
                assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    places = {node["id"]: node["pos"][0] for node in inside["nodes"]}
    columns = sorted(set(places.values()))
    for link in inside["links"]:
        first = columns.index(places[link["origin_id"]]) if link["origin_id"] in places else -1
        last = columns.index(places[link["target_id"]]) if link["target_id"] in places else len(columns)
        assert last == first + 1 or "parentId" in link or last == first, "a straight link goes to the next column"
    tops = min(group["bounding"][1] for group in inside["groups"])
    assert all(bend["pos"][1] < tops for bend in inside["reroutes"]), "the lanes are above the groups"


@pytest.mark.parametrize("task, nano", EDITIONS, ids=[name_of(*edition) for edition in EDITIONS])
class TestEdition:
    def test_the_loader_names_the_files_of_the_model(self, task, nano):
        loader = filled(task, task.nano if nano else task.real).nodes[0].data
        model = loader["widgets_values"][0]
        if nano:  # its model comes with the pack
            assert (ROOT / "models" / model).is_dir() and "models" not in loader["properties"]
            return
        for entry in loader["properties"]["models"]:
            folder = entry["directory"].removeprefix(f"CogVideoX_Fun/{model}").strip("/")
            path = f"{folder}/{entry['name']}".strip("/")
            assert entry["url"] == f"https://huggingface.co/alibaba-pai/{model}/resolve/main/{path}"

    def test_plays_at_the_models_rate_or_the_clips(self, task, nano):
        inputs = load(API / f"{name_of(task, nano)}.json")
        (create,) = (node["inputs"] for node in inputs.values() if node["class_type"] == "CreateVideo")
        frames = [key for key, node in inputs.items() if node["class_type"] == "CogVideoXFunClipFrames"]
        assert create["fps"] in (8, [*frames, 1])
        assert create.get("audio") == ([frames[0], 2] if frames else None)

    def test_vae_encode_asks_the_model_for_its_noise(self, task, nano):
        """Only video to video starts from a draw of the VAE's distribution, as in VideoX-Fun."""
        inputs = load(API / f"{name_of(task, nano)}.json")
        (loader,) = (key for key, node in inputs.items() if node["class_type"] == "CogVideoXFunModelLoader")
        for encode in (node["inputs"] for node in inputs.values() if node["class_type"] == "CogVideoXFunVAEEncode"):
            assert encode["model"] == [loader, 0] and encode["noise_augmentation"] == -1
            assert encode["sample_posterior"] == (task.title == "Video to Video")

    def test_app_mode_shows_sources_prompt_and_seed(self, task, nano):
        workflow = load(WORKFLOWS / f"{name_of(task, nano)}.json")
        nodes = {str(node["id"]): node for node in workflow["nodes"]}
        nodes |= {str(node["id"]): node for node in workflow["definitions"]["subgraphs"][0]["nodes"]}
        app = workflow["extra"]["linearData"]
        assert app["outputs"] == [str(SAVE)]
        for node, widget in app["inputs"]:
            assert widget in [slot["name"] for slot in nodes[node]["inputs"] if "widget" in slot]
        sources = {str(key) for key in map(int, nodes) if key not in (NOTE, TASK, SAVE) and key < TASK}
        assert {node for node, widget in app["inputs"] if widget not in ("prompt", "word", "seed")} == sources


@REAL_TASKS
def test_the_note_has_a_link_for_each_file(task):
    text = load(WORKFLOWS / f"{name_of(task, False)}.json")["nodes"][0]["widgets_values"][0]
    assert all(f"({entry['url']})" in text for entry in notes.model_entries(task.real.model))
    assert text.index("## 中文") < text.index("## The model's files"), "the long list is the last"
    assert f"hf download alibaba-pai/{task.real.model} " in text


def test_sam3_is_named_with_its_file():
    """In its loader, for the front end, and in the note."""
    (task,) = (task for task in TASKS if task.real.word)
    (loader,) = (node for node in filled(task, task.real).nodes if node.kind == "CheckpointLoaderSimple")
    (entry,) = loader.data["properties"]["models"]
    assert loader.data["widgets_values"] == [entry["name"]] and entry["directory"] == "checkpoints"
    text = notes.note("title", task.note, task.real.model)
    assert f"({entry['url']}) into `models/checkpoints`" in text and entry["url"].endswith(f"/{entry['name']}")


def test_the_node_and_the_note_name_the_same_raft():
    folder, name = notes.RAFT.rsplit("/", 1)
    text = (ROOT / "nodes" / "masks.py").read_text(encoding="utf-8")
    assert f'"{folder}"' in text and f"/{name}" in text

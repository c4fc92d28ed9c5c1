"""What can be said of the shipped workflows without a host."""

import hashlib
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = ROOT / "workflows"
API = ROOT / "tests" / "data" / "api"
NAMES = [
    "control_with_canny",
    "extend_a_clip",
    "image_to_video",
    "inpaint_region",
    "start_end_image_to_video",
    "text_to_video",
    "try_it_without_a_download",
    "video_to_video",
]
NANO = "try_it_without_a_download"  # the one that runs from the model that comes with the pack
PREFIX = "CogVideoXFun"
NOTES = {"Note", "MarkdownNote"}

# Nodes of the host for pictures and video that the oldest supported one has, too.
CORE = {
    "CLIPTextEncode",
    "Canny",
    "CreateVideo",
    "EmptyImage",
    "GetVideoComponents",
    "ImageBatch",
    "ImageCompositeMasked",
    "ImageFromBatch",
    "ImageScale",
    "ImageToMask",
    "LoadImage",
    "LoadVideo",
    "MaskToImage",
    "SaveVideo",
}

# Widget values that the front end keeps beside the inputs: after a seed, and the button that uploads.
CONTROL = {"fixed", "increment", "decrement", "randomize"}
UPLOAD = {"LoadImage": "image", "LoadVideo": "image"}


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def nodes_of(name: str, kind: str) -> list[dict]:
    return [node for node in load(WORKFLOWS / f"{name}.json")["nodes"] if node["type"] == kind]


def test_folder_holds_workflows_and_thumbnails_only():
    expected = {f"{name}{suffix}" for name in NAMES for suffix in (".json", ".jpg")}
    assert {path.name for path in WORKFLOWS.iterdir()} == expected


def test_api_form_was_made_from_these_files():
    hashes = {path.stem: hashlib.sha256(path.read_bytes()).hexdigest() for path in WORKFLOWS.glob("*.json")}
    assert load(API / "sources.json") == hashes, "a workflow has changed since its API form was made: run make api"
    assert {path.stem for path in API.glob("*.json")} == {*NAMES, "sources"}, "run make api"


@pytest.mark.parametrize("name", NAMES)
class TestWorkflow:
    def test_thumbnail_is_a_small_jpeg(self, name):
        picture = (WORKFLOWS / f"{name}.jpg").read_bytes()
        assert picture.startswith(b"\xff\xd8\xff")
        assert len(picture) < 100_000

    def test_is_in_ui_form_without_subgraphs(self, name):
        workflow = load(WORKFLOWS / f"{name}.json")
        assert {"nodes", "links", "groups", "version"} <= workflow.keys()
        assert not workflow.get("definitions", {}).get("subgraphs")

    def test_nodes_are_ours_or_the_hosts(self, name):
        ours = set()
        for path in (ROOT / "nodes").glob("*.py"):
            ours |= set(re.findall(r'node_id="(\w+)"', path.read_text(encoding="utf-8")))
        used = {node["type"] for node in load(WORKFLOWS / f"{name}.json")["nodes"]} - NOTES
        assert {kind for kind in used if kind.startswith(PREFIX)} <= ours
        assert {kind for kind in used if not kind.startswith(PREFIX)} <= CORE

    def test_links_agree_with_the_slots_on_both_ends(self, name):
        workflow = load(WORKFLOWS / f"{name}.json")
        nodes = {node["id"]: node for node in workflow["nodes"]}
        for link, source, output, target, slot, kind in workflow["links"]:
            assert link in nodes[source]["outputs"][output]["links"]
            assert nodes[target]["inputs"][slot]["link"] == link
            assert nodes[source]["outputs"][output]["type"] == nodes[target]["inputs"][slot]["type"] == kind
        ends = [slot["link"] for node in nodes.values() for slot in node["inputs"] if slot["link"] is not None]
        assert sorted(ends) == sorted(link[0] for link in workflow["links"])

    def test_every_widget_value_reaches_its_input(self, name):
        """One value too many or too few would shift all that follow it."""
        api = load(API / f"{name}.json")
        for node in load(WORKFLOWS / f"{name}.json")["nodes"]:
            if node["type"] in NOTES:
                continue
            inputs = api[str(node["id"])]["inputs"].values()
            sent = [value for value in inputs if not isinstance(value, list)]
            widgets = [value for value in node["widgets_values"] if value not in CONTROL]
            if node["type"] in UPLOAD:
                widgets.remove(UPLOAD[node["type"]])
            assert sorted(map(str, map(plain, sent))) == sorted(map(str, map(plain, widgets))), node["type"]

    def test_nodes_do_not_overlap(self, name):
        title = 30
        boxes = []
        for node in load(WORKFLOWS / f"{name}.json")["nodes"]:
            (x, y), (width, height) = node["pos"], node["size"]
            boxes.append((x, y - title, x + width, y + height, node["id"]))
        for i, (left, top, right, bottom, a) in enumerate(boxes):
            for x0, y0, x1, y1, b in boxes[i + 1 :]:
                assert right <= x0 or x1 <= left or bottom <= y0 or y1 <= top, (a, b)

    def test_says_what_to_choose_and_where_the_model_goes(self, name):
        (note,) = nodes_of(name, "MarkdownNote")
        assert "models/CogVideoX_Fun" in note["widgets_values"][0]
        if nodes_of(name, f"{PREFIX}InpaintConditioning"):
            assert "1 (white) = generate" in note["widgets_values"][0]

    def test_loader_names_the_files_of_the_model(self, name):
        (loader,) = nodes_of(name, f"{PREFIX}ModelLoader")
        model = loader["widgets_values"][0]
        if name == NANO:
            assert "models" not in loader["properties"] and (ROOT / "models" / model).is_dir()
            return
        files = loader["properties"]["models"]
        for entry in files:
            folder = entry["directory"].removeprefix(f"CogVideoX_Fun/{model}").strip("/")
            path = f"{folder}/{entry['name']}".strip("/")
            assert entry["url"] == f"https://huggingface.co/alibaba-pai/{model}/resolve/main/{path}"
        parts = {entry["directory"].rpartition("/")[2] for entry in files if entry["name"].endswith(".safetensors")}
        assert parts == {"transformer", "text_encoder", "vae"}

    def test_guides_away_from_something_and_plays_at_the_models_rate(self, name):
        prompts = {node["title"]: node["widgets_values"][0] for node in nodes_of(name, "CLIPTextEncode")}
        assert prompts["Positive prompt"].strip()
        assert bool(prompts["Negative prompt"].strip()) == (name != NANO), "the nano model learned the empty prompt"
        (create,) = nodes_of(name, "CreateVideo")
        assert create["widgets_values"][0] == 8


def plain(value):
    """6.0 and 6 are one number: JSON that has been through a browser does not tell them apart."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value


def test_video_to_video_is_the_authors_50_steps_at_strength_0_7():
    (sampler,) = nodes_of("video_to_video", f"{PREFIX}Sampler")
    _seed, _control, steps, _cfg, name, _spacing, denoise, _dynamic = sampler["widgets_values"]
    assert (steps, denoise, name) == (35, 0.7, "cogvideox_ddim")


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"text_to_video"}))
def test_vae_encode_asks_the_model_for_its_noise_and_draws_the_start_of_video_to_video(name):
    """As the authors: V1.1 gets the noise that it was trained with, and video to video starts from a draw."""
    inputs = load(API / f"{name}.json")
    (encode,) = (node["inputs"] for node in inputs.values() if node["class_type"] == f"{PREFIX}VAEEncode")
    (loader,) = (key for key, node in inputs.items() if node["class_type"] == f"{PREFIX}ModelLoader")
    assert encode["model"] == [loader, 0]
    assert encode["noise_augmentation"] == -1
    assert encode["sample_posterior"] == (name == "video_to_video")

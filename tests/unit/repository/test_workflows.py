"""The shipped workflows and blueprints, as far as they can be checked without ComfyUI."""

import hashlib
import json

import make_blueprints
import pytest
from pack import ROOT

WORKFLOWS = ROOT / "workflows"
API = ROOT / "tests" / "data" / "api"
NAMES = sorted(path.stem for path in WORKFLOWS.glob("*.json"))


def load(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def nodes_of(name: str, kind: str = "") -> list[dict]:
    return [node for node in load(WORKFLOWS / f"{name}.json")["nodes"] if kind in ("", node["type"])]


def test_every_workflow_has_a_thumbnail_and_an_api_form_made_from_it():
    assert all((WORKFLOWS / f"{name}.jpg").is_file() for name in NAMES)
    hashes = {name: hashlib.sha256((WORKFLOWS / f"{name}.json").read_bytes()).hexdigest() for name in NAMES}
    assert load(API / "sources.json") == hashes, "a workflow has changed: run make api"
    assert {path.stem for path in API.glob("*.json")} == {*NAMES, "sources"}, "run make api"


def test_the_blueprints_are_made_from_the_workflows():
    present = {path.name: path.read_text(encoding="utf-8") for path in make_blueprints.SUBGRAPHS.iterdir()}
    assert present == make_blueprints.made(), "run make blueprints"


@pytest.mark.parametrize("name", NAMES)
class TestWorkflow:
    def test_loader_names_the_files_of_the_model(self, name):
        (loader,) = nodes_of(name, "CogVideoXFunModelLoader")
        model = loader["widgets_values"][0]
        if name == "try_it_without_a_download":  # its model comes with the pack
            assert (ROOT / "models" / model).is_dir()
            return
        for entry in loader["properties"]["models"]:
            folder = entry["directory"].removeprefix(f"CogVideoX_Fun/{model}").strip("/")
            path = f"{folder}/{entry['name']}".strip("/")
            assert entry["url"] == f"https://huggingface.co/alibaba-pai/{model}/resolve/main/{path}"

    def test_plays_at_the_models_rate(self, name):
        (create,) = nodes_of(name, "CreateVideo")
        assert create["widgets_values"][0] == 8

    def test_vae_encode_asks_the_model_for_its_noise(self, name):
        """Only video to video starts from a draw of the VAE's distribution, as in VideoX-Fun."""
        inputs = load(API / f"{name}.json")
        (loader,) = (key for key, node in inputs.items() if node["class_type"] == "CogVideoXFunModelLoader")
        for encode in (node["inputs"] for node in inputs.values() if node["class_type"] == "CogVideoXFunVAEEncode"):
            assert encode["model"] == [loader, 0] and encode["noise_augmentation"] == -1
            assert encode["sample_posterior"] == (name == "video_to_video")

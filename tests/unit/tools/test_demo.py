"""The pack without ComfyUI, as ``make demo`` runs it."""

import json
import subprocess
import sys

import pack
from cogvideox_fun.tools import comfyui_server, media
from PIL import Image


def test_the_same_seed_gives_the_same_video_in_two_processes(tmp_path):
    pictures = []
    for name in ("first", "second"):
        size = ["--steps", "2", "--length", "5", "--width", "64", "--height", "48", "--output", str(tmp_path / name)]
        command = [sys.executable, str(pack.ROOT / "tools" / "demo.py"), "--without-comfyui", *size]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "nano model" in result.stdout
        pictures.append((tmp_path / name / "demo.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert Image.open(tmp_path / "first" / "demo.png").size == (5 * 64, media.HEADING + 2 * 48)
    assert media.read_video(tmp_path / "first" / "demo.mp4").shape == (5, 192, 256, 3), "enlarged"


def test_a_camera_move_stands_beside_its_true_render(tmp_path):
    options = ["--scene", "camera", "--steps", "1", "--width", "64", "--height", "48", "--output", str(tmp_path)]
    command = [sys.executable, str(pack.ROOT / "tools" / "demo.py"), "--without-comfyui", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "the camera pans right quickly over the coffee" in result.stdout
    sheet = Image.open(tmp_path / "demo.png")
    assert sheet.size == (2 * 5 * 64 + media.GAP, media.HEADING + 4 * 48), "17 frames between two pictures, twice"


def test_a_lora_is_put_behind_the_loader_of_the_workflow():
    """Every node that took the model takes the LoRA's; CLIP and VAE come from the loader, as before."""
    before = json.loads(comfyui_server.WORKFLOW.read_text())
    after = json.loads(comfyui_server.WORKFLOW.read_text())
    comfyui_server.add_lora(after, "nano/few_steps.safetensors")
    added = after.pop("lora")
    (loader,) = (key for key, node in before.items() if node["class_type"] == "CogVideoXFunModelLoader")
    assert added["inputs"] == {"model": [loader, 0], "lora_name": "nano/few_steps.safetensors", "strength": 1.0}
    changed = 0
    for key, node in before.items():
        for name, value in node["inputs"].items():
            expected = ["lora", 0] if value == [loader, 0] else value
            assert after[key]["inputs"][name] == expected
            changed += expected != value
    assert changed >= 2, "the sampler and the builder"

"""The pack without ComfyUI, as ``make demo`` runs it."""

import subprocess
import sys

import pack
from cogvideox_fun.tools import media
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

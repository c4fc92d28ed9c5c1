"""The pack without ComfyUI, as ``make demo`` runs it."""

import subprocess
import sys

import pack
from cogvideox_fun.tools import media


def test_the_same_seed_gives_the_same_video_in_two_processes(tmp_path):
    pictures = []
    for name in ("first", "second"):
        size = ["--steps", "2", "--length", "5", "--width", "64", "--height", "48", "--output", str(tmp_path / name)]
        command = [sys.executable, str(pack.ROOT / "tools" / "demo.py"), "--without-comfyui", *size]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "nano model" in result.stdout
        pictures.append((tmp_path / name / "demo.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert media.read_video(tmp_path / "first" / "demo.mp4").shape == (5, 48, 64, 3)

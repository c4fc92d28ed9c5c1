"""The measurements: rehearsed with small models on the CPU, and held to bounds on a GPU."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import peft
import pytest
from cogvideox_fun.benchmarks.gpu import table
from cogvideox_fun.benchmarks.gpu.comfyui import has_gpu
from cogvideox_fun.tools import comfyui_server as comfy


def measured(folder, *arguments: str) -> dict:
    """The results of a run in the tests' ComfyUI, by part."""
    host = comfy.find_host()
    if host is None:
        pytest.skip(comfy.NO_HOST)
    if not (host.path / "comfy" / "model_prefetch.py").exists():
        pytest.skip("the measurements on a GPU need ComfyUI 0.33")
    command = [str(host.python), "-m", "benchmarks.gpu.run", *arguments, "--output", str(folder)]
    site = folder / "site"  # what ComfyUI's Python lacks, as in the bundle
    site.mkdir()
    for path in (p for name in ("accelerate", "peft") for p in Path(peft.__file__).parents[1].glob(f"{name}*")):
        (site / path.name).symlink_to(path, target_is_directory=True)
    environment = {**os.environ, "COMFYUI_PATH": str(host.path), "PYTHONPATH": str(site)}
    answer = subprocess.run(command, cwd=comfy.ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return table.read(folder)


def test_the_page_shows_the_results():
    results = comfy.ROOT / "benchmarks" / "gpu" / "results"
    assert (comfy.ROOT / "docs" / "gpu.md").read_text(encoding="utf-8") == table.page(results)


def test_the_page_says_which_part_failed(tmp_path):
    """One before its first figure, and one after it."""
    shutil.copytree(comfy.ROOT / "benchmarks" / "gpu" / "results", tmp_path, dirs_exist_ok=True)
    parts = table.read(tmp_path)
    error = "Traceback (most recent call last):\nRuntimeError: no fp8 here\nCompile with `TORCH_USE_CUDA_DSA`\n"
    kernels = {name: value for name, value in parts["kernels"]["result"].items() if name in ("tokens", "copy")}
    for name, result in {"loop": {}, "numbers": {}, "kernels": kernels}.items():
        part = {**parts[name], "result": result, "error": error, "reason": "RuntimeError: no fp8 here"}
        (tmp_path / f"{name}.json").write_text(json.dumps(part), encoding="utf-8")
    page = table.page(tmp_path)
    assert page.count("This part failed: `RuntimeError: no fp8 here`") == 3
    assert "copy on the device" in page and "## The VAE" in page


@pytest.mark.long
def test_measuring_with_small_models(tmp_path):
    """Compilation and the VAE are left out: they take minutes on a CPU."""
    parts = "kernels", "calls", "small", "loop", "training", "numbers"
    found = measured(tmp_path, *parts, "--rehearse", "--loops", "eager", "fp8")
    assert set(found) == set(parts)
    assert not [part["error"] for part in found.values() if "error" in part]
    loop = found["loop"]["result"]
    assert loop["steps"] == 2 and min(loop[name]["seconds"] for name in ("eager", "fp8, --fast fp8_matrix_mult")) > 0
    assert found["numbers"]["result"]["nano"]["fp32"] >= 40, "the nano model's video, by the nodes and without them"
    page = table.page(tmp_path)
    for title in (
        "steps of the 5B",
        "One call",
        "With less VRAM",
        "Single kernels",
        "A step of training",
        "The numbers",
    ):
        assert title in page


@pytest.mark.skipif(shutil.which("nvidia-smi") is None or not has_gpu(), reason="needs an NVIDIA GPU")
def test_numbers_on_a_gpu(tmp_path):
    """Bounds of a few roundings: bfloat16 keeps 8 bits, float16 and TF32 (in which PyTorch convolves patches) 11."""
    result = measured(tmp_path, "numbers")["numbers"]["result"]
    for found in result["calls"].values():
        assert found["fp32"] <= 1e-3 and found["bf16"] <= 2e-2 and found["fp16"] <= 3e-3, found
    assert min(result["nano"].values()) >= 40, result["nano"]

"""What travels to a GPU machine, and ComfyUI in one process as it runs there."""

import json
import os
import struct
import subprocess

import pytest
from cogvideox_fun.benchmarks.gpu import bundle, rehearsal
from cogvideox_fun.tools import comfyui_server as comfy

PTX, CUBIN = 1, 2


def entry(kind: int, capability: int, code: bytes) -> bytes:
    return struct.pack("<HHIQ", kind, 0x101, 64, len(code)) + struct.pack("<12xI32x", capability) + code


def fat_binary(*entries: bytes) -> bytes:
    body = b"".join(entries)
    return struct.pack("<IHHQ", bundle.FATBIN_MAGIC, 1, 16, len(body)) + body


def test_only_the_code_for_compute_capability_9_0_is_kept():
    other, wanted, ptx = b"8" * 24, b"9" * 40, b"p" * 16
    before = b"host code, and the magic by chance: " + struct.pack("<IHHQ", bundle.FATBIN_MAGIC, 7, 16, 8)
    library = before + 2 * fat_binary(entry(CUBIN, 80, other), entry(CUBIN, 90, wanted), entry(PTX, 90, ptx))
    kept = bundle.keep_sm_90(library + b"the end")
    gone = 2 * fat_binary(entry(CUBIN, 80, bytes(24)), entry(CUBIN, 90, wanted), entry(PTX, 90, bytes(16)))
    assert kept == before + gone + b"the end"


def test_a_library_without_code_for_compute_capability_9_0_is_refused():
    with pytest.raises(ValueError, match=r"no GPU code for compute capability 9\.0"):
        bundle.keep_sm_90(fat_binary(entry(CUBIN, 80, b"8" * 8)))


def test_versions_are_those_that_comfyui_names():
    requirements = "torch\ncomfy-kitchen==0.2.31\ntorchsde\n"
    assert bundle.pinned(("comfy-kitchen", "torchsde"), requirements) == ["comfy-kitchen==0.2.31", "torchsde"]


def test_the_nano_model_runs_in_a_comfyui_without_a_server():
    host = comfy.find_host()
    if host is None:
        pytest.skip(comfy.NO_HOST)
    if not (host.path / "comfy" / "model_prefetch.py").exists():
        pytest.skip("the measurements on a GPU need ComfyUI 0.33")
    command = [str(host.python), "-m", "benchmarks.gpu.rehearsal", "--cpu"]
    environment = {**os.environ, "COMFYUI_PATH": str(host.path)}
    answer = subprocess.run(command, cwd=comfy.ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-3000:]
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["device"] == "cpu"
    assert found["latent"] == [1, 16, 3, rehearsal.HEIGHT // 8, rehearsal.WIDTH // 8]
    assert found["pixels"] == [rehearsal.LENGTH, rehearsal.HEIGHT, rehearsal.WIDTH, 3]
    assert found["std"] > 0.05  # a picture, where a flat colour has 0

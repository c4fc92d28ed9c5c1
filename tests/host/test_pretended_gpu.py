"""What waits for the GPU, counted on a pretended one: every sampler of ours, windows, control, VAE; see `pretended`.

That all of it runs says that no operator meets tensors of two devices.
"""

import json
import subprocess
from pathlib import Path

import pytest
from pretended import CHUNKS
from tiny_model import write_tiny_model

pytestmark = pytest.mark.long

CHECK = "samplers:on_step _local_scalar_dense.default"  # the look for NaN, once a step
RANDOM = "torch_utils:randn_tensor _to_copy.default"  # diffusers draws Euler A's noise on the CPU
SAMPLED = (
    "cogvideox_ddim_origin", "cogvideox_euler", "cogvideox_euler_a", "cogvideox_dpm++", "cogvideox_pndm",
    "2b", "5b", "v1.5", "2b-control", "euler of ComfyUI",
    "windows standard_static", "windows standard_uniform", "windows looped_uniform",
    "windows flat", "windows relative", "windows overlap-linear",
    "dynamic_cfg", "video to video", "control", "inpaint", "noise mask", "another schedule",
)  # fmt: skip
VAE_RUNS = {"decode": 1, "decode in tiles": 2, "encode": 1, "encode in tiles": 2}  # and how many tiles


@pytest.fixture(scope="module")
def found(host, tmp_path_factory) -> dict:
    """What the cases of `pretended` did, run in ComfyUI's own Python."""
    ask = [str(host.python), "-c", "import torch; print(torch.version.cuda)"]
    if subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip() == "None":
        pytest.skip("ComfyUI's PyTorch is not built for CUDA")
    folder = tmp_path_factory.mktemp("pretended")
    for variant in ("2b", "5b", "v1.5", "2b-control"):
        write_tiny_model(folder / f"tiny-{variant}", variant)
    command = [str(host.python), Path(__file__).with_name("pretended.py"), host.path, folder, folder / "found.json"]
    answer = subprocess.run(list(map(str, command)), cwd=host.path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr[-6000:]
    return json.loads((folder / "found.json").read_text())


def grown(runs: list[dict], what: str) -> dict[str, int]:
    """By how much each count is larger in the longer run."""
    short, long = (run[what] for run in runs)
    return {name: long[name] - short.get(name, 0) for name in long if long[name] != short.get(name, 0)}


def test_every_case_was_run(found):
    assert set(found) == {*SAMPLED, *VAE_RUNS}


@pytest.mark.parametrize("case", SAMPLED)
def test_a_step_waits_once(found, case):
    """For the look for NaN. Before the first step and after the last a run may wait, but not for each of a list."""
    expected = {CHECK: 1} | ({RANDOM: 1} if case == "cogvideox_euler_a" else {})
    assert grown(found[case], "waits") == expected
    assert sum(found[case][0]["waits"].values()) - found[case][0]["waits"][CHECK] < 40


@pytest.mark.parametrize("case, tiles", VAE_RUNS.items())
def test_the_vae_waits_for_no_chunk_before_the_next_is_launched(found, case, tiles):
    for run, chunks in zip(found[case], CHUNKS[case.split()[0]], strict=True):
        assert run["waits"] == {} and run["uploads"] == {"tiling:upload": chunks * tiles}
        order = ["launch", "copy"] + ["launch", "copy", "arrived"] * (chunks * tiles - 1) + ["arrived"]
        assert run["order"] == order


def test_nothing_is_computed_in_float64_on_the_gpu(found):
    """Not every GPU has it: MPS refuses it."""
    assert {name: run["float64"] for name, runs in found.items() for run in runs if run["float64"]} == {}

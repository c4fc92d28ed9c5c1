"""The Triton kernels by Triton's interpreter on the CPU, and what can only be seen inside ComfyUI's process."""

import json
import os
import re
import subprocess

import pack
import pytest

SCRIPT = """
import importlib.util, json, sys
import torch
import torch.nn.functional as F
spec = importlib.util.spec_from_file_location("kernels", sys.argv[1])
kernels = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernels)
found = {}
for name in ("float32", "bfloat16"):
    dtype = getattr(torch, name)
    torch.manual_seed(0)
    x = torch.randn(2, 37, 5, 64).to(dtype)  # 370 rows: the last program is not full
    weight, bias = torch.randn(64).to(dtype), torch.randn(64).to(dtype)
    angles = 6 * torch.rand(37, 32)
    cos, sin = angles.cos(), angles.sin()
    rope = torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))[None, None].contiguous()
    normed = F.layer_norm(x.double(), (64,), weight.double(), bias.double(), 1e-6)
    even, odd = normed[..., ::2], normed[..., 1::2]
    c, s = cos[None, :, None].double(), sin[None, :, None].double()
    rotated = torch.stack([even * c - odd * s, even * s + odd * c], -1).flatten(-2)
    for key, expected, given in (("norm", normed, None), ("norm and rotation", rotated, rope)):
        result = kernels.norm_rotate_(x.clone(), weight, bias, 1e-6, given).double()
        found[f"{name}, {key}"] = ((result - expected).norm() / expected.norm()).item()
    x, modulation = torch.randn(2, 37, 192).to(dtype), torch.randn(2, 6 * 192).to(dtype)
    weight, bias = torch.randn(192).to(dtype), torch.randn(192).to(dtype)
    shift, scale, _, text_shift, text_scale, _ = modulation.double()[:, None].chunk(6, -1)
    normed = F.layer_norm(x.double(), (192,), weight.double(), bias.double(), 1e-5)
    text, image = normed[:, :5] * (1 + text_scale) + text_shift, normed[:, 5:] * (1 + scale) + shift
    expected = torch.cat([text, image], 1)
    result = kernels.norm_modulate(x, weight, bias, 1e-5, modulation, 5).double()
    found[f"{name}, norm and modulation"] = ((result - expected).norm() / expected.norm()).item()
print(json.dumps(found))
"""


def test_norms_in_triton(host):
    """Results are brought to the dtype of x once. In bfloat16 a GPU rounds them, by up to 2^-9, and the interpreter
    cuts them off, by up to 2^-8."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    kernels = str(pack.ROOT / "model_loading" / "comfyui" / "triton_kernels.py")
    command = [str(host.python), "-c", SCRIPT, kernels]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    if "No module named 'triton'" in answer.stderr:
        pytest.skip("Triton is not installed in ComfyUI's Python")
    assert answer.returncode == 0, answer.stderr
    found = json.loads(answer.stdout.splitlines()[-1])
    assert max(value for key, value in found.items() if "float32" in key) <= 1e-6, found
    assert max(found.values()) <= 2**-8, found


@pytest.fixture(scope="module")
def found(host, tiny_model):
    script = str(pack.ROOT / "tests" / "host" / "in_process.py")
    command = [str(host.python), script, str(host.path), str(tiny_model)]
    answer = subprocess.run(command, cwd=host.path, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-3000:]
    return json.loads(answer.stdout.splitlines()[-1])


def test_tritons_norms_are_used_where_they_can_be(found):
    """On tokens that lie together and need no gradient, with weights that are used as they are."""
    assert [name for name, used in found["norms"].items() if used] == ["plain"]


def test_comfy_kitchens_rotation_is_ours(found):
    if found["kitchen"] is None:
        pytest.skip("this ComfyUI has no comfy-kitchen that rotates in place")
    assert found["kitchen"] <= 1e-5  # float32, values of size 1


def test_the_next_blocks_weights_are_uploaded_while_one_runs(found):
    """Where ComfyUI's dynamic VRAM is in use: each block before it runs, and the end after the last. Without it, too,
    every layer's weights are cast or uploaded once a call."""
    assert found["fetched"] == {"unasked": 0, "order": [3, 0, 1, 2, None], "casts": [1]}


def test_weights_that_stay_in_ram_can_be_pinned(found):
    """CUDA can't pin pages of a file, so ComfyUI gets a copy, unless it refuses it; 0.3.64 pins nothing."""
    for pinned in found["pinned"]:  # of the model and of the VAE
        assert pinned in ([True], [True, True, [False, True]])


def test_models_whose_layers_make_their_parameters_when_they_are_loaded(found):
    if found["made when loaded"] is None:
        pytest.skip("this ComfyUI has no dynamic VRAM")
    assert found["made when loaded"]


def test_products_in_fp8_need_more_memory(found):
    """ComfyUI is told of the feed-forward's inputs once more in fp8: a byte a number beside the two of bf16."""
    plain, fp8 = found["declared"]
    assert plain > 0 and fp8 / plain == pytest.approx((6 * 2 + 4) / (6 * 2))


def test_positions_are_freed_when_the_model_is_unloaded(found):
    assert found["positions"] == [1, 0]


def test_frames_larger_than_the_device_are_decoded_in_tiles(found):
    """At once: some drivers move to RAM what does not fit and raise nothing."""
    in_tiles, (said,) = found["too large"]
    assert in_tiles == [True, False]
    assert re.fullmatch("decoding whole frames needs .* GB, and the device has .* GB: using tiles of 256 pixels", said)


def test_the_vae_computes_in_fp16_where_the_gpu_has_no_bf16(found):
    assert found["vae"] == ["torch.bfloat16", "torch.float16", "torch.float32"]


def test_a_2b_keeps_the_dtype_of_its_file_where_the_gpu_has_it(found):
    bf16, fp16, fp32 = (f"torch.{name}" for name in ("bfloat16", "float16", "float32"))
    assert found["2B"] == {bf16: [bf16, fp16, fp32], fp16: [fp16, fp16, fp32], fp32: [bf16, fp16, fp32]}


def test_a_preview_that_needs_too_much_memory_is_coarse(found):
    """Shown all the same, and from then on without the decoder: the log says so once."""
    count, (decoding, loading) = found["short of memory"]
    assert count == 3 and decoding == "out of memory for a sharp preview: the next ones are coarse"
    assert loading == "the previews are coarse: no memory"


def test_a_run_goes_on_when_a_preview_fails(found):
    assert found["failing"] == [1, ["a preview failed: there are none in the rest of this run"]]


def test_previews_are_sharp_where_that_is_affordable(found):
    """Five latent frames, of which a sharp preview makes 17 pictures. A decoder is tried twice with the first one."""
    cheap, dear, slow, very_slow = found["affordable"]
    assert cheap["shown"] == [5] * 13 + [17] * 87, "0.12 + 50 x 0.01 seconds are a twentieth of 13"
    assert cheap["decoded"] == 2 + 87 * 5
    assert dear["shown"] == [5] * 26 + [17] * 10, "from the step after the try on: one is a twentieth of 8 steps"
    assert slow["shown"] == [5] * 100 and slow["decoded"] == 2, "one would be more than a twentieth of 10 steps"
    assert very_slow["shown"] == [5] * 100 and very_slow["decoded"] == 2, (
        "the coarse ones don't wait for the time back"
    )
    assert all(one["share"] <= 0.05 for one in (cheap, dear, slow))
    assert very_slow["spent"] - (0.5 + 2 * 3.001) <= 0.05 * 100

"""What stays off a small card, what loading takes of the host's memory, and when the first picture comes."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
from cogvideox_fun.model_loading.networks.vae import VAEConfig
from cogvideox_fun.training.tasks import hub
from websockets.sync.client import connect

PINNING = """
import json, sys
sys.path[:0] = sys.argv[1:2]
from pretended import start
comfyui, path = sys.argv[2:]
start(comfyui)
import comfy.model_management, comfy.utils
from cogvideox_fun.model_loading.comfyui.load import load_model

def mapped_from_a_file(weight):
    for line in open("/proc/self/maps"):
        span, *_, name = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= weight.data_ptr() < last:
            return ".safetensors" in name

patcher, key = load_model(path), "diffusion_model.transformer_blocks.0.attn1.to_q.weight"
before, seen = comfy.utils.get_attr(patcher.model, key), []
comfy.model_management.MAX_PINNED_MEMORY = 1e12
comfy.model_management.pin_memory = lambda weight: seen.append(weight) or True
if hasattr(comfy.model_patcher.ModelPatcher, "pin_weight_to_device"):
    patcher.pin_weight_to_device(key)
print(json.dumps([mapped_from_a_file(before), *((mapped_from_a_file(w), bool((w == before).all())) for w in seen)]))
"""


def measured(lab, probe: str, **inputs) -> dict:
    graph, path = lab.graph(), lab.path(".json")
    if "name" in inputs:
        inputs["model"] = graph.loader(inputs.pop("name"))
    graph.node(probe, path=path, **inputs)
    lab.run(graph.workflow)
    return json.loads(Path(path).read_text())


@pytest.mark.parametrize("variant", ["2b", "5b", "v1.5"])
def test_the_modulation_leaves_the_card_first(lab, variant):
    """With too little memory for half of the modulation nothing else leaves; with half the memory all of it does.
    The result stays, a patch of it included, and the patch goes with its MODEL. What is to be patched or cast for a
    call goes to the card, where that is quicker."""
    found = measured(lab, "ProbePartialLoad", name=f"tiny-{variant}")
    modulations = set(found["modulations"])
    assert found["short"]["left"] and set(found["short"]["left"]) <= modulations
    assert modulations < set(found["half"]["left"])
    assert found["of the patch"] > 1e-2
    assert set(found["at home"]) == modulations - {found["patched"]} and not found["to be cast"]
    assert found["bypassed"] == "meta"
    assert max(found["short"]["difference"], found["half"]["difference"], found["afterwards"]) <= 1e-5


@pytest.mark.parametrize("weight_dtype, share", [("bf16", 0.1), ("fp8_e4m3fn", 0.6), ("fp32", 2.1)])
def test_loading_takes_no_memory_of_its_own(lab, tmp_path, weight_dtype, share):
    """A file of 110 MB in bf16: mapped as it is; what is cast takes its own size and nothing beside it."""
    config = TransformerConfig(num_attention_heads=8, num_layers=10, in_channels=33)
    hub.write_configs(tmp_path, config, VAEConfig(), config.default_schedule)
    state = CogVideoXTransformer(config).state_dict()
    hub.save_weights(tmp_path / hub.FILES["transformer"], state, torch.bfloat16)
    found = measured(lab, "ProbeLoading", folder=str(tmp_path), weight_dtype=weight_dtype)
    assert found["anonymous"] <= share, found


def test_weights_that_stay_in_ram_can_be_pinned(host, base):
    """CUDA can't pin pages of a file, so ComfyUI gets a copy; 0.3.64 pins nothing."""
    folder = base / "models" / "CogVideoX_Fun" / "tiny-2b"
    command = [str(host.python), "-c", PINNING, str(Path(__file__).parent), str(host.path), str(folder)]
    answer = subprocess.run(command, cwd=host.path, capture_output=True, text=True, timeout=300)
    assert answer.returncode == 0, answer.stderr[-3000:]
    before, *pinned = json.loads(answer.stdout.splitlines()[-1])
    assert before and pinned in ([], [[False, True]])


def test_the_first_preview_comes_after_the_first_step(lab):
    graph = lab.graph()
    model = graph.loader("nano")
    latent = graph.fun("EmptyLatent", width=64, height=64, length=9, batch_size=1)
    steps = 5
    sampled = graph.sampler(model, *graph.prompts(model[1]), latent, steps=steps)
    graph.node("ProbeSave", value=sampled, path=lab.path())
    client, events = "first-preview", []
    with connect(lab.server.url.replace("http", "ws") + f"/ws?clientId={client}", max_size=None) as socket:
        lab.server.post("/prompt", {"prompt": graph.workflow, "client_id": client})
        while True:
            message = socket.recv(timeout=120)
            if isinstance(message, bytes):
                events.append("preview")
                continue
            message = json.loads(message)
            if message["type"] == "progress" and message["data"]["node"] == sampled.key:
                events.append(message["data"]["value"])
            if message["type"] in ("execution_success", "execution_error"):
                assert message["type"] == "execution_success", message
                break
    first = events.index("preview")
    assert 1 in events and 2 not in events[:first], events
    assert events.count("preview") >= steps - 1, events

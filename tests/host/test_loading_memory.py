"""What loading takes of ComfyUI's memory, and when the first picture comes."""

import json

import pytest
import torch
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
from cogvideox_fun.model_loading.networks.vae import VAEConfig
from cogvideox_fun.training.tasks import hub
from websockets.sync.client import connect


@pytest.mark.parametrize("weight_dtype, share", [("bf16", 0.1), ("fp8_e4m3fn", 0.6), ("fp32", 2.1)])
def test_loading_takes_no_memory_of_its_own(lab, tmp_path, weight_dtype, share):
    """A file of 110 MB in bf16: mapped as it is; what is cast takes its own size and nothing beside it."""
    config = TransformerConfig(num_attention_heads=8, num_layers=10, in_channels=33)
    hub.write_configs(tmp_path, config, VAEConfig(), config.default_schedule)
    state = CogVideoXTransformer(config).state_dict()
    hub.save_weights(tmp_path / hub.FILES["transformer"], state, torch.bfloat16)
    graph = lab.graph()
    probe = graph.node("ProbeLoading", folder=str(tmp_path), weight_dtype=weight_dtype)
    assert float(lab.run(graph.workflow)["outputs"][probe.key]["text"][0]) <= share


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

"""What loading takes of ComfyUI's memory."""

import pytest
import torch
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
from cogvideox_fun.model_loading.networks.vae import VAEConfig
from cogvideox_fun.training.tasks import hub


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

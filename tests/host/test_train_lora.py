"""ComfyUI's TrainLoraNode with our MODEL."""

import pytest
import torch
from graph import relative


@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_trainloranode(lab, variant):
    """Two steps on one video's latent; the LoRA, given back to the MODEL, changes its video."""
    graph, model, positive, negative, latent = lab.setting(f"tiny-{variant}")
    video = graph.tensor("Latent", torch.randn(1, 16, 3, 6, 10, generator=torch.Generator().manual_seed(1)))
    types = {"training_dtype": "fp32", "lora_dtype": "fp32", "existing_lora": "[None]"}
    options = {"steps": 2, "batch_size": 1, "learning_rate": 0.01, "rank": 4, "seed": 1, **types}
    outputs = lab.server.get("/object_info/TrainLoraNode")["TrainLoraNode"]["output"]
    trained = graph.with_defaults("TrainLoraNode", model=model, latents=video, positive=positive, **options)
    lora = trained[outputs.index("LORA_MODEL")]
    patched = graph.with_defaults("LoraModelLoader", model=model, lora=lora)
    ours, plain = graph.get(*(graph.sampler(m, positive, negative, latent, steps=2) for m in (patched, model)))
    assert torch.isfinite(ours).all() and relative(ours, plain) > 1e-3

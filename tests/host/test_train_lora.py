"""ComfyUI's TrainLoraNode with our MODEL."""

import pytest
import torch
from graph import Graph


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def with_defaults(graph: Graph, class_type: str, **given):
    """A stock node with ComfyUI's defaults for what is not given; and its output types."""
    info = graph.lab.server.get("/object_info")[class_type]
    inputs = {}
    for name, (kind, *options) in {**info["input"]["required"], **info["input"].get("optional", {})}.items():
        values = options[0].get("options", []) if options else []
        first = kind[0] if isinstance(kind, list) else next(iter(values), None)
        default = options[0].get("default", first) if options else first
        if default is not None:
            inputs[name] = default
    return graph.node(class_type, **{**inputs, **given}), info["output"]


@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_trainloranode(lab, variant):
    """Two steps on one video's latent; the LoRA, given back to the MODEL, changes its video."""
    graph, model, positive, negative, latent = lab.setting(f"tiny-{variant}")
    video = graph.tensor("Latent", torch.randn(1, 16, 3, 6, 10, generator=torch.Generator().manual_seed(1)))
    types = {"training_dtype": "fp32", "lora_dtype": "fp32", "existing_lora": "[None]"}
    options = {"steps": 2, "batch_size": 1, "learning_rate": 0.01, "rank": 4, "seed": 1, **types}
    trained, outputs = with_defaults(graph, "TrainLoraNode", model=model, latents=video, positive=positive, **options)
    lora = trained[outputs.index("LORA_MODEL")]
    patched, _ = with_defaults(graph, "LoraModelLoader", model=model, lora=lora)
    ours, plain = graph.get(*(graph.sampler(m, positive, negative, latent, steps=2) for m in (patched, model)))
    assert torch.isfinite(ours).all() and relative(ours, plain) > 1e-3

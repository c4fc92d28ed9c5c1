"""torch.compile sees a block as one graph, and inductor compiles it."""

import shutil
import warnings

import pytest
import torch
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
from tiny_model import TINY, VARIANTS, random_weights


def compiled_and_plain(variant: str, backend: str, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model makes of one input with its blocks compiled, and as it is; fullgraph raises at the first break."""
    torch._dynamo.reset()
    model = CogVideoXTransformer(TransformerConfig(**TINY, **VARIANTS[variant]), dtype=dtype).requires_grad_(False)
    model.load_state_dict(random_weights(model, seed=0))
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(1, 16, 4, 6, 10, generator=generator).to(dtype),
        torch.tensor([500]),
        torch.randn(1, 8, model.config.text_embed_dim, generator=generator).to(dtype),
    )
    expected = model(*inputs)
    for index, block in enumerate(model.transformer_blocks):
        model.transformer_blocks[index] = torch.compile(block, backend=backend, fullgraph=True)
    return model(*inputs), expected


@pytest.mark.parametrize("variant", ["2b", "5b", "v1.5"])
def test_a_block_is_one_graph(variant):
    """The eager backend runs what was captured as it is."""
    found, expected = compiled_and_plain(variant, "eager")
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles for the CPU with g++, which is not here")
@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_inductor_compiles_a_block(variant):
    """Without a warning: complex numbers, which inductor can't fuse, would give one."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found, expected = compiled_and_plain(variant, "inductor")
    assert torch.allclose(found, expected, atol=1e-4)

"""torch.compile sees a block as one graph, and inductor compiles it."""

import shutil
import warnings

import pytest
import torch
from tiny_model import tiny_transformer


def compiled_and_plain(variant: str, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model makes of one input with its blocks compiled, and as it is; fullgraph raises at the first break."""
    torch._dynamo.reset()
    model = tiny_transformer(variant)
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(1, 16, 4, 6, 10, generator=generator),
        torch.tensor([500]),
        torch.randn(1, 8, model.config.text_embed_dim, generator=generator),
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

"""torch.compile sees a block as one graph: nothing in it falls back to Python."""

import pytest
import torch
from cogvideox_fun.model_loading.config import TransformerConfig
from cogvideox_fun.model_loading.transformer import CogVideoXTransformer
from tiny_model import TINY, VARIANTS, random_weights


@pytest.mark.parametrize("variant", ["2b", "5b", "v1.5"])
def test_a_block_is_one_graph(variant):
    """fullgraph raises at the first break; the eager backend runs what was captured as it is."""
    torch._dynamo.reset()
    model = CogVideoXTransformer(TransformerConfig(**TINY, **VARIANTS[variant])).requires_grad_(False)
    model.load_state_dict(random_weights(model, seed=0))
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(1, 16, 4, 6, 10, generator=generator),
        torch.tensor([500]),
        torch.randn(1, 8, model.config.text_embed_dim, generator=generator),
    )
    expected = model(*inputs)
    for index, block in enumerate(model.transformer_blocks):
        model.transformer_blocks[index] = torch.compile(block, backend="eager", fullgraph=True)
    assert torch.allclose(model(*inputs), expected, atol=1e-5)

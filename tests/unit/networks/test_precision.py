"""bf16 and fp16 against float32, for every variant, with activations near one and with outliers as the 5B has them."""

import pytest
import torch
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
from tiny_model import tiny_transformer, tiny_vae

CHECKED = ("2b", "5b", "v1.5")
DTYPES = (torch.bfloat16, torch.float16)
OUTLIERS = [5, 77]  # channels of the stream


def with_outliers(model: CogVideoXTransformer, size: float) -> CogVideoXTransformer:
    """Two channels of the stream of this size, and norms that bring the others back to one, as a trained model has."""
    model.patch_embed.proj.bias[OUTLIERS] += size
    model.patch_embed.text_proj.bias[OUTLIERS] -= size
    dim = model.config.dim
    norms = [norm.norm for block in model.transformer_blocks for norm in (block.norm1, block.norm2)]
    for norm in (*norms, model.norm_final):
        norm.weight *= size * (len(OUTLIERS) / dim) ** 0.5
        norm.weight[OUTLIERS] = 0.1
    return model


def run(model: CogVideoXTransformer, dtype: torch.dtype) -> torch.Tensor:
    """One call on inputs that are exact in both of the small types."""
    generator = torch.Generator().manual_seed(1)
    shapes = (2, 16, 4, 6, 10), (2, 21, model.config.text_embed_dim), (2, model.config.in_channels - 16, 4, 6, 10)
    x, text, extra = (torch.randint(-16, 17, shape, generator=generator).to(dtype) / 8 for shape in shapes)
    return model.to(dtype)(x, torch.tensor([999, 20]), text, concat_latents=extra).float()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", CHECKED)
def test_a_call_is_off_by_its_types_rounding(variant, dtype):
    """By at most 1.5 units of the type in the middle: about twenty roundings follow each other, of half a unit at
    most, up or down. Measured: 0.8 to 0.9."""
    expected = run(tiny_transformer(variant), torch.float32)
    assert error(run(tiny_transformer(variant), dtype), expected) <= 1.5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("size", [3e3, 2e4])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("variant", CHECKED)
def test_outliers_in_the_stream_cost_no_precision_and_overflow_nothing(variant, dtype, size):
    """Their square is too large for fp16, and so is the sum over the channels: nothing in between is kept in it.
    At most 2.5 units; measured: 1.3 to 1.5, since the norms' large weights and small inputs are rounded too."""
    expected = run(with_outliers(tiny_transformer(variant), size), torch.float32)
    found = run(with_outliers(tiny_transformer(variant), size), dtype)
    assert torch.isfinite(found).all() and error(found, expected) <= 2.5 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_the_vae_is_off_by_its_types_rounding(direction, dtype):
    """By at most 2.5 units in the middle of about thirty roundings; measured: 1.1 to decode, 1.7 to encode."""
    model = tiny_vae()
    generator = torch.Generator().manual_seed(2)
    shape = (1, 3, 9, 48, 80) if direction == "encode" else (1, 16, 3, 6, 10)
    x = torch.randint(-8, 9, shape, generator=generator) / 8
    expected = getattr(model, direction)(x)
    assert error(getattr(model.to(dtype), direction)(x, dtype=dtype), expected) <= 2.5 * torch.finfo(dtype).eps

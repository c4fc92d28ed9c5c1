"""Traced bytes of the real configurations, and computing in place, which changes no number."""

import pytest
import torch
from cogvideox_fun.benchmarks import traced
from cogvideox_fun.model_loading.networks import blocks
from cogvideox_fun.model_loading.networks import memory_estimate as memory
from cogvideox_fun.model_loading.networks.vae import VAEConfig
from tiny_model import tiny_transformer, tiny_vae

SMALL, LARGE = traced.SIZES["480x720x49"], traced.SIZES["1024x1024x49"]


@pytest.mark.parametrize("latent, gigabytes", [(SMALL, 1.0), (LARGE, 2.8)])
def test_transformer_activations_of_the_5b(latent, gigabytes):
    """One call at batch 1, bf16: guidance is two calls where memory is short."""
    assert traced.trace_transformer("5B", latent, layers=2) <= gigabytes * 1e9


def test_activations_do_not_depend_on_how_many_blocks_there_are():
    few, more = (traced.trace_transformer("5B", SMALL, layers=layers) for layers in (2, 4))
    assert more <= 1.001 * few


def test_vae_decode():
    whole = traced.trace_decode(SMALL)
    assert whole <= 7.5e9 and traced.trace_decode(SMALL, traced.TILE) <= 4e9
    assert traced.trace_decode((5, 60, 90)) >= whole - 1e6, "49 frames take what 17 take"


@pytest.mark.parametrize("name", ["2B", "5B"])
@pytest.mark.parametrize("latent", [(1, 60, 90), (3, 60, 60), SMALL, LARGE])
@pytest.mark.parametrize("batch", [1, 2])
def test_declared_memory_of_a_call(name, latent, batch):
    """What ComfyUI is told, against the trace: 0.8 to 1.5 times."""
    told = memory.transformer_bytes(traced.CONFIGS[name], (batch, 16, *latent), element=2)
    assert 0.8 <= told / traced.trace_transformer(name, latent, batch, layers=2) <= 1.5


@pytest.mark.parametrize("latent", [(1, 60, 90), (4, 32, 32), SMALL])
def test_declared_memory_of_the_vae(latent):
    t, h, w = latent
    frames, config = 4 * t - 3, VAEConfig()
    decode = memory.decode_bytes(config, (1, 16, *latent), element=2) / traced.trace_decode(latent)
    encode = memory.encode_bytes(config, (1, 3, frames, 8 * h, 8 * w), element=2)
    assert 0.8 <= decode <= 1.5
    assert 0.8 <= encode / traced.trace_encode(frames, 8 * h, 8 * w) <= 1.5


@pytest.mark.parametrize("variant", ["2b", "5b", "v1.5"])
def test_computing_in_place_changes_nothing(variant):
    """Without gradients the stream is overwritten; with them nothing is."""
    model = tiny_transformer(variant, heads=5).requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 4, 6, 10, generator=generator)
    text = torch.randn(2, 21, model.config.text_embed_dim, generator=generator)
    timestep = torch.tensor([500, 20])
    out_of_place = model(x, timestep, text).detach()
    model.requires_grad_(False)
    assert (model(x, timestep, text) - out_of_place).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rotation(dtype):
    """In place and out of place, against complex numbers in float64; text is not turned.

    A result is rounded once to ``dtype``, so it is off by half a unit in its last place.
    """
    q = torch.randn(2, 5, 12, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    angles = torch.rand(9, 4, generator=torch.Generator().manual_seed(1))
    rope = blocks.after_text(blocks.rotation_matrices(torch.polar(torch.ones(9, 4), angles)), text_tokens=3)
    pairs = torch.view_as_complex(q[:, :, 3:].double().unflatten(-1, (-1, 2)).contiguous())
    image = torch.view_as_real(pairs * torch.polar(torch.ones(9, 4), angles).to(torch.complex128)).flatten(-2)
    expected = torch.cat([q[:, :, :3].double(), image], dim=2)
    out_of_place = blocks.rotate(q.clone().requires_grad_(), rope).detach()
    in_place = q.clone()
    assert blocks.rotate(in_place, rope).data_ptr() == in_place.data_ptr()
    for found in (out_of_place, in_place):
        assert found.dtype == dtype and torch.equal(found[:, :, :3], q[:, :, :3])
        torch.testing.assert_close(found.double(), expected, rtol=torch.finfo(dtype).eps / 2, atol=1e-6)


def test_what_goes_in_is_not_overwritten():
    model, vae = tiny_transformer("5b"), tiny_vae()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 3, 6, 10, generator=generator)
    text = torch.randn(1, 9, model.config.text_embed_dim, generator=generator)
    extra = torch.randn(1, 17, 3, 6, 10, generator=generator)
    pixels = torch.randn(1, 3, 9, 48, 80, generator=generator)
    kept = [part.clone() for part in (x, text, extra, pixels)]
    with torch.no_grad():
        first = model(x, torch.tensor([500]), text, concat_latents=extra)
        assert torch.equal(first, model(x, torch.tensor([500]), text, concat_latents=extra))
        latent, decoded = vae.encode(pixels), vae.decode(x)
        assert torch.equal(latent, vae.encode(pixels)) and torch.equal(decoded, vae.decode(x))
    assert all(torch.equal(part, was) for part, was in zip((x, text, extra, pixels), kept, strict=True))

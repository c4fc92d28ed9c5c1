"""Encoding and decoding against VideoX-Fun's and, chunk by chunk, diffusers' VAE."""

import math

import pytest
import reference
import torch
from cogvideox_fun.model_loading.networks.vae import CogVideoXVAE, VAEConfig, draw
from diffusers import AutoencoderKLCogVideoX

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def vae():
    model = CogVideoXVAE(VAEConfig.from_dict(reference.metadata("vae_weights"))).eval().requires_grad_(False)
    model.load_state_dict(reference.load("vae_weights"))
    return model


@pytest.fixture(scope="module")
def oracle():
    model = AutoencoderKLCogVideoX(**reference.metadata("vae_weights")).eval().requires_grad_(False)
    model.load_state_dict(reference.load("vae_weights"))
    return model


def test_encode(vae):
    io = reference.load("vae_io")
    moments = torch.cat(list(vae.encode_stream(io["pixels"])), dim=2)
    mean, logvar = moments.chunk(2, dim=1)
    assert (mean - io["mean"]).abs().max() <= TOLERANCE
    assert (logvar.clamp(-30, 20) - io["logvar"]).abs().max() <= TOLERANCE
    assert torch.equal(vae.encode(io["pixels"]), mean)


def test_decode(vae):
    io = reference.load("vae_io")
    assert (vae.decode(io["mean"]) - io["decode_of_mean"]).abs().max() <= TOLERANCE


@pytest.mark.parametrize("length", [1, 5, 9, 13, 17, 21, 25])
def test_encode_equals_diffusers(vae, oracle, length):
    """The same chunks as VideoX-Fun's: diffusers' encoder has them too."""
    pixels = torch.rand(1, 3, length, 32, 48, generator=torch.Generator().manual_seed(length)) * 2 - 1
    expected = oracle.encode(pixels).latent_dist.mode()
    assert (vae.encode(pixels) - expected).abs().max() <= TOLERANCE


def test_a_draw_equals_diffusers(vae, oracle):
    """Clips that reach the bounds of the log-variance, too."""
    pixels = torch.rand(1, 3, 9, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
    distribution = oracle.encode(pixels).latent_dist
    expected = distribution.sample(generator=torch.Generator().manual_seed(7))
    drawn = draw(vae.encode_moments(pixels), seed=7)
    assert (drawn - expected).abs().max() <= TOLERANCE
    spread = float(distribution.std.square().mean().sqrt())
    assert float((drawn - distribution.mode()).std()) == pytest.approx(spread, rel=0.1)
    for bound in (-1e3, 1e3):  # a deviation of e ** -15 and e ** 10
        moments = torch.cat([torch.zeros(1, 16, 1, 2, 2), torch.full((1, 16, 1, 2, 2), bound)], dim=1)
        expected = math.exp(-15 if bound < 0 else 10)
        assert float(draw(moments, seed=7).std()) == pytest.approx(expected, rel=0.5)


def decode_in_videox_funs_chunks(oracle, z):
    """VideoX-Fun's loop around diffusers' decoder: the first latent frame alone, then two at a time."""
    out, cache = oracle.decoder(z[:, :, :1])
    parts = [out]
    for start in range(1, z.shape[2], 2):
        out, cache = oracle.decoder(z[:, :, start : start + 2], conv_cache=cache)
        parts.append(out)
    return torch.cat(parts, dim=2)


@pytest.mark.parametrize("latent_t", [1, 3, 5, 7])
def test_decode_equals_videox_funs_chunks(vae, oracle, latent_t):
    z = torch.randn(1, 16, latent_t, 4, 6, generator=torch.Generator().manual_seed(latent_t))
    assert (vae.decode(z) - decode_in_videox_funs_chunks(oracle, z)).abs().max() <= TOLERANCE

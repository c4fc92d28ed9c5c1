"""One call of every variant against VideoX-Fun's and, where it is right, diffusers' transformer."""

import pytest
import reference
import torch
from cogvideox_fun.model_loading.files.detect import detect
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
from diffusers import CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed


def tiny(variant: str) -> tuple[CogVideoXTransformer, dict]:
    weights = reference.load(f"transformer_{variant}_weights")
    config = detect(
        {k: tuple(v.shape) for k, v in weights.items()}, reference.metadata(f"transformer_{variant}_weights")
    )
    model = CogVideoXTransformer(config).eval().requires_grad_(False)
    model.load_state_dict(weights)
    return model, weights


@pytest.mark.parametrize("variant", reference.VARIANTS)
def test_against_videox_fun(variant):
    """1e-4, the bound for one call; 2e-5 seen, the rounding of another order of sums."""
    model, _ = tiny(variant)
    io = reference.load(f"transformer_{variant}_io")
    out = model(
        reference.channels_second(io["a.latents"]),
        io["a.timestep"],
        io["a.text"],
        reference.channels_second(io["a.extra"]),
    )
    assert (reference.channels_second(out) - io["a.out"]).abs().max() <= 1e-4


@pytest.mark.parametrize("variant, latent", [("5b", (3, 60, 90)), ("v1.5", (4, 16, 24))])
def test_against_diffusers(variant, latent):
    """1e-5 of the output's size. diffusers' 5B is right at its trained size only; V1.5 at any."""
    model, weights = tiny(variant)
    config = reference.metadata(f"transformer_{variant}_weights")
    config.pop("add_noise_in_inpaint_model")
    oracle = CogVideoXTransformer3DModel(**config).eval().requires_grad_(False)
    oracle.load_state_dict(weights)

    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 33, *latent, generator=generator)
    text = torch.randn(1, 226, 32, generator=generator)
    timestep = torch.tensor([499])
    grid = latent[1] // 2, latent[2] // 2
    if variant == "5b":
        rope = get_3d_rotary_pos_embed(64, ((0, 0), (30, 45)), grid, latent[0])
    else:
        rope = get_3d_rotary_pos_embed(64, None, grid, latent[0] // 2, grid_type="slice", max_size=(150, 150))
    expected = oracle(reference.channels_second(x), text, timestep, image_rotary_emb=rope).sample
    out = reference.channels_second(model(x[:, :16], timestep, text, x[:, 16:]))
    assert (out - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("variant", reference.VARIANTS)
def test_no_conditioning_is_zeros(variant):
    """Text to video, in VideoX-Fun's code, is an InP model with zeros."""
    model, _ = tiny(variant)
    generator = torch.Generator().manual_seed(2)
    x, text = torch.randn(1, 16, 4, 6, 10, generator=generator), torch.randn(1, 226, 32, generator=generator)
    zeros = torch.zeros(1, model.config.in_channels - 16, 4, 6, 10)
    timestep = torch.tensor([999])
    assert torch.equal(model(x, timestep, text), model(x, timestep, text, zeros))

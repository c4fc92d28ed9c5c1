import pytest
import torch
from cogvideox_fun.model_loading.networks.vae import (
    SpatialNorm3D,
    group_norm,
)
from tiny_model import tiny_vae
from torch import nn


@pytest.fixture(scope="module")
def vae():
    return tiny_vae()


@pytest.mark.parametrize("latent_t, frames", [(1, 1), (2, 5), (12, 45), (13, 49), (22, 85)])
def test_decoded_length(vae, latent_t, frames):
    assert vae.decode(torch.randn(1, 16, latent_t, 2, 2)).shape == (1, 3, frames, 16, 16)


def test_a_frame_never_sees_the_future(vae):
    """Changing the last chunk changes nothing before it."""
    pixels = torch.rand(1, 3, 17, 16, 16) * 2 - 1
    changed = pixels.clone()
    changed[:, :, 9:] = 0
    first, second = vae.encode(pixels), vae.encode(changed)
    assert torch.equal(first[:, :, :3], second[:, :, :3])
    assert not torch.allclose(first[:, :, 3:], second[:, :, 3:])


def test_spatial_norm_equals_enlarging_the_latent_first():
    """GroupNorm(x) * conv_y(enlarged z) + conv_b(enlarged z), but for rounding: values are about 1."""
    norm = SpatialNorm3D(8, 16, 4, nn).requires_grad_(False)
    x, z = torch.randn(1, 8, 8, 16, 24), torch.randn(1, 16, 2, 4, 6)
    enlarged = nn.functional.interpolate(z, size=x.shape[2:])
    expected = norm.norm_layer(x) * norm.conv_y["conv"](enlarged) + norm.conv_b["conv"](enlarged)
    torch.testing.assert_close(norm(x, z), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(norm(x.requires_grad_(), z), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_group_norm_against_float64(dtype):
    """Results are of size 1 and rounded once to ``dtype``; the statistics are those of what was given, also far from
    zero: at a mean of 30 standard deviations."""
    norm = nn.GroupNorm(4, 8, eps=1e-6).requires_grad_(False)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    for mean in (0, 30):
        x = (mean + torch.randn(2, 8, 3, 16, 24)).to(dtype)
        expected = nn.functional.group_norm(x.double(), 4, norm.weight.double(), norm.bias.double(), 1e-6)
        found = group_norm(x, norm.to(dtype))
        assert found.dtype == dtype
        rounding = torch.finfo(dtype).eps  # of the weights and of the result
        torch.testing.assert_close(found.double(), expected, rtol=2 * rounding, atol=4 * rounding + 1e-5)
        norm.float()


def test_a_batch_equals_its_parts(vae):
    z = torch.randn(2, 16, 3, 2, 4)
    assert torch.equal(vae.decode(z), torch.cat([vae.decode(z[:1]), vae.decode(z[1:])]))


def test_chunks_are_moved_one_by_one(vae):
    """Only one chunk at a time is brought to the device, and ticks count them."""
    seen, ticks = [], []
    z = torch.randn(1, 16, 5, 2, 2)
    list(vae.decode_stream(z, to=lambda part: seen.append(part.shape[2]) or part))
    assert seen == [1, 2, 2]
    vae.decode(z, on_progress=lambda done, total: ticks.append((done, total)))
    assert ticks == [(1, 3), (2, 3), (3, 3)]


def test_where_one_tile_lies_alone_it_is_that_tiles_own_video(vae):
    """12 wide in two tiles of 7: columns 0..4 see the first tile only, 7..11 the second only, whole in time."""
    z = torch.randn(1, 16, 4, 4, 12)
    tiled = vae.decode(z, tile=8, overlap=2)
    assert torch.allclose(tiled[..., :40], vae.decode(z[..., :7])[..., :40], atol=1e-6)
    assert torch.allclose(tiled[..., 56:], vae.decode(z[..., 5:])[..., 16:], atol=1e-6)

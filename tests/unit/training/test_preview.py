"""The matrix that shows a latent as a picture while the sampler works."""

import pack
import pytest
import torch
import torch.nn.functional as F
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.model_loading.files.safetensors_files import read_json
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.sampling.preview import PUBLISHED, PreviewFactors
from cogvideox_fun.training.data import shapes
from cogvideox_fun.training.nano import make as nano
from cogvideox_fun.training.tasks.preview import fit_preview, latent_pixels

NANO = pack.ROOT / "models" / "nano"


def clips(seed: int, count: int) -> list[torch.Tensor]:
    return [shapes.render(shapes.random_scene(seed, index), 17, 128, 128) for index in range(count)]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_folder(NANO)


def preview(latent: torch.Tensor, factors: PreviewFactors) -> torch.Tensor:
    """The pictures of a scaled latent, as ComfyUI makes them. C T h w -> T h w 3 of 0..1."""
    rgb = F.linear(latent.movedim(0, -1), torch.tensor(factors.factors).T, torch.tensor(factors.bias))
    return ((rgb + 1) / 2).clamp(0, 1)


def psnr(ours: torch.Tensor, expected: torch.Tensor) -> float:
    return float(-10 * (ours - expected).square().mean().log10())


def test_a_linear_map_is_found_again():
    """Latents made from pixels by an invertible matrix and an offset: the fit is its inverse."""
    generator = torch.Generator().manual_seed(0)
    video = torch.rand(9, 32, 48, 3, generator=generator)
    rgb = latent_pixels(video, 4, 6)
    mixing, offset = torch.randn(3, 3, generator=generator), torch.randn(3, generator=generator)
    latent = (rgb @ mixing + offset).movedim(-1, 0)
    assert psnr(preview(latent, fit_preview([latent], [video])), (rgb + 1) / 2) > 70


def test_the_nano_models_factors_are_those_of_its_vae(pipeline):
    videos = clips(nano.PREVIEW_SEED, nano.PREVIEW_CLIPS)
    again = fit_preview([pipeline.encode(video)[0] for video in videos], videos)
    stored = pipeline.checkpoint.preview
    assert torch.allclose(torch.tensor(again.factors), torch.tensor(stored.factors), atol=2e-4)
    assert torch.allclose(torch.tensor(again.bias), torch.tensor(stored.bias), atol=2e-4)


def test_other_models_take_the_published_ones(tiny_model):
    assert open_checkpoint(tiny_model).preview == PUBLISHED
    assert open_checkpoint(NANO).preview == PreviewFactors.from_config(read_json(NANO / "vae" / "config.json"))

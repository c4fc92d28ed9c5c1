"""The matrix that shows a latent as a picture while the sampler works."""

import pack
import pytest
import torch
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.model_loading.files.safetensors_files import read_json
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.sampling.preview import PUBLISHED, PreviewFactors
from cogvideox_fun.training.data import scenes
from cogvideox_fun.training.nano import make as nano
from cogvideox_fun.training.tasks.preview import fit_preview

NANO = pack.ROOT / "models" / "nano"


def clips(seed: int, count: int) -> list[torch.Tensor]:
    return [scenes.render(scenes.random_scene(seed, index), 17, 128, 128) for index in range(count)]


@pytest.fixture(scope="module")
def pipeline():
    return Pipeline.from_folder(NANO)


@pytest.mark.long
def test_the_nano_models_factors_are_those_of_its_vae(pipeline):
    videos = clips(nano.PREVIEW_SEED, nano.PREVIEW_CLIPS)
    again = fit_preview([pipeline.encode(video)[0] for video in videos], videos)
    stored = pipeline.checkpoint.preview
    assert torch.allclose(torch.tensor(again.factors), torch.tensor(stored.factors), atol=2e-4)
    assert torch.allclose(torch.tensor(again.bias), torch.tensor(stored.bias), atol=2e-4)


def test_other_models_take_the_published_ones(tiny_model):
    assert open_checkpoint(tiny_model).preview == PUBLISHED
    assert open_checkpoint(NANO).preview == PreviewFactors.from_config(read_json(NANO / "vae" / "config.json"))

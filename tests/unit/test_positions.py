"""The ways to make a 2B's table for a run's grid that are there for comparison, and batches of prompts."""

import json

import pytest
import torch
from cogvideox_fun.model_loading.config import CheckpointError
from cogvideox_fun.model_loading.pipeline import Pipeline
from cogvideox_fun.model_loading.text_encoder import prompt_length
from cogvideox_fun.sampling.positions import additive_table, interpolate_table, trained_table

BASE, SCALES = (3, 6, 8), (1.5, 1.0)


def table(mode: str, grid=(2, 4, 4)) -> torch.Tensor:
    return additive_table(64, grid, BASE, SCALES, mode).view(*grid, 64)


def test_fun_resizes_cut_takes_the_middle_and_generated_counts_from_the_corner():
    trained = trained_table(64, *BASE, *SCALES)
    assert torch.equal(table("fun").flatten(0, 2), interpolate_table(trained, 2, 4, 4))
    assert torch.equal(table("cut"), trained[:2, 1:5, 2:6])
    assert torch.equal(table("generated"), trained[:2, :4, :4])
    assert torch.equal(table("generated", (3, 7, 9))[:, :6, :8], trained), "and goes on beyond the trained one"
    for mode in ("fun", "cut", "generated"):
        assert torch.equal(table(mode, BASE), trained), "all the same on the trained grid"


def test_what_cant_be_made():
    with pytest.raises(ValueError, match="2 x 7 x 4 is larger than the trained table of 3 x 6 x 8"):
        table("cut", (2, 7, 4))
    with pytest.raises(ValueError, match="'nearest', expected one of"):
        table("nearest")


def test_a_batch_of_prompts_is_each_of_them_alone(tiny_model):
    pipeline = Pipeline.from_folder(tiny_model)
    noise = torch.cat([pipeline.noise(48, 32, 5, seed) for seed in (1, 2)])
    texts = torch.cat([pipeline.text_encoder(prompt) for prompt in ("a red ball", "a cat")])
    negative = pipeline.text_encoder("")
    both = pipeline.sample(noise, texts, negative, steps=2)
    for i in range(2):
        alone = pipeline.sample(noise[i : i + 1], texts[i : i + 1], negative, steps=2)
        assert torch.allclose(both[i : i + 1], alone, atol=1e-4)


@pytest.mark.parametrize("given, length", [(16, 16), (226, 226), (512, 226), (1e30, 226), (None, 226)])
def test_the_length_of_a_prompt(tmp_path, given, length):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({} if given is None else {"model_max_length": given}))
    assert prompt_length(tmp_path) == length


@pytest.mark.parametrize("given", [0, -5, "many", True])
def test_a_length_that_is_none(tmp_path, given):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": given}))
    with pytest.raises(CheckpointError, match="model_max_length"):
        prompt_length(tmp_path)

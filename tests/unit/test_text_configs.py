"""Configurations of text encoders that lie: 1,000, changed at random from a real one, before a T5 is made of them."""

import json
import random

import pytest
from cogvideox_fun.model_loading.files.checkpoint import naming
from cogvideox_fun.model_loading.files.safetensors_files import open_weights, read_json
from cogvideox_fun.model_loading.files.t5 import check_t5_config, comfy_t5_config, prompt_length, t5_weights
from cogvideox_fun.model_loading.networks.config import CheckpointError
from lies import change_json
from pack import ROOT

FOLDER = ROOT / "models" / "nano" / "text_encoder"
SIZES = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")
VALUES = json.loads((FOLDER / "config.json").read_text())


def test_a_configuration_that_lies_is_refused_by_name_or_has_the_weights_sizes(tmp_path):
    weights, loaded = t5_weights(open_weights(FOLDER)), 0
    path = tmp_path / "config.json"
    for number in range(1000):
        path.write_bytes(change_json(random.Random(f"T5 {number}"), VALUES))
        try:
            with naming(path):
                config = comfy_t5_config(read_json(path))
                check_t5_config(config, weights)
        except CheckpointError as error:
            assert str(path) in str(error)
            continue
        assert {name: config[name] for name in SIZES} == {name: VALUES[name] for name in SIZES}, number
        loaded += 1
    assert 200 < loaded < 800


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("change", [1, 10**9])
def test_a_size_that_is_not_the_weights_is_refused_before_a_t5_is_made_of_it(name, change):
    config = comfy_t5_config({**VALUES, name: VALUES[name] + change})
    with pytest.raises(CheckpointError, match="expected"):
        check_t5_config(config, t5_weights(open_weights(FOLDER)))


def test_a_tokenizer_configuration_that_lies(tmp_path):
    path = tmp_path / "tokenizer_config.json"
    for number in range(500):
        path.write_bytes(change_json(random.Random(f"tokenizer {number}"), {"model_max_length": 16}))
        try:
            assert 1 <= prompt_length(tmp_path) <= 226
        except CheckpointError as error:
            assert str(path) in str(error)

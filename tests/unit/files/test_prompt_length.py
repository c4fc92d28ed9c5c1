"""How long a prompt is, from the tokenizer's configuration, and how tokens are fitted to it."""

import json

import pytest
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files.t5 import fit_tokens, prompt_length


@pytest.mark.parametrize("given, length", [(16, 16), (512, 226), (1e30, 226), (None, 226)])
def test_the_length_of_a_prompt(tmp_path, given, length):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({} if given is None else {"model_max_length": given}))
    assert prompt_length(tmp_path) == length


@pytest.mark.parametrize("given", [0, "many"])
def test_a_length_that_is_none(tmp_path, given):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"model_max_length": given}))
    with pytest.raises(CheckpointError, match="model_max_length"):
        prompt_length(tmp_path)


def test_a_prompt_is_padded_or_cut_and_keeps_its_end():
    assert fit_tokens([5, 6, 1], length=5) == [5, 6, 1, 0, 0]
    assert fit_tokens([5, 6, 7, 8, 1], length=3) == [5, 6, 1]

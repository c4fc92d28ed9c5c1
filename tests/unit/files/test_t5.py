"""T5: tokens, the configuration for ComfyUI's T5, and the encoder without ComfyUI."""

import json
import logging

import pytest
import transformers
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files import t5


def test_a_prompt_is_padded_or_cut_keeps_its_end_and_the_log_says_what_was_cut(caplog):
    assert t5.fit_tokens([5, 6, 1], length=5) == [5, 6, 1, 0, 0] and t5.fit_tokens([5, 1], length=2) == [5, 1]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        out = t5.fit_tokens([*range(10, 20), 1], decode=lambda cut: f"<{cut}>", length=6)
    assert out == [10, 11, 12, 13, 14, 1]
    assert "11 tokens, the model reads 6" in caplog.text and "[15, 16, 17, 18, 19]" in caplog.text


@pytest.mark.parametrize("given, length", [(16, 16), (300, 226), (10**30, 226), (1e30, 226), (None, 226)])
def test_the_length_of_a_prompt(tmp_path, given, length):
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({} if given is None else {"model_max_length": given}))
    assert t5.prompt_length(tmp_path) == length


def test_tokenizer_json(tiny_model, tmp_path):
    """A folder with tokenizer.json gives the ids of spiece.model. What it says of padding and cutting is ignored."""
    transformers.T5Tokenizer.from_pretrained(tiny_model / "tokenizer", extra_ids=0).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    written = json.loads(path.read_text())
    padding = {"strategy": {"Fixed": 10**7}, "direction": "Right", "pad_to_multiple_of": None}
    written["padding"] = {**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    written["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(written))
    assert not (tmp_path / "spiece.model").is_file()
    for prompt in ("", "a red ball moves right", "the DOG, 3 cats"):
        first = t5.FolderTokenizer(tiny_model / "tokenizer")(prompt)
        assert t5.FolderTokenizer(tmp_path)(prompt) == first


def test_folders_without_a_whole_tokenizer(tmp_path):
    for reason in ("No such file", "expected"):
        with pytest.raises(CheckpointError, match=f"tokenizer.json is no tokenizer .*{reason}"):
            t5.FolderTokenizer(tmp_path)
        (tmp_path / "tokenizer.json").write_bytes(b"broken")


@pytest.fixture
def config(tiny_model):
    return json.loads((tiny_model / "text_encoder" / "config.json").read_text())


@pytest.mark.parametrize(
    "change, words",
    [
        ({"model_type": "umt5"}, "the text encoder is a 'umt5'"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj 'gated-silu'"),
        ({"d_model": None}, "'d_model': None.*expected whole numbers"),
    ],
)
def test_t5s_that_comfyuis_class_cannot_be(config, change, words):
    t5.comfy_t5_config(config)
    with pytest.raises(CheckpointError, match=words):
        t5.comfy_t5_config({**config, **change})

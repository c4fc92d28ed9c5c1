import json
import logging
import shutil

import pytest
import torch
from cogvideox_fun.model_loading.files import t5 as text_encoder
from cogvideox_fun.model_loading.files.safetensors_files import open_weights
from cogvideox_fun.model_loading.networks.config import CheckpointError
from safetensors.torch import load_file, save_file


def test_padding():
    assert text_encoder.fit_tokens([5, 6, 1], length=6) == [5, 6, 1, 0, 0, 0]


def test_truncation_keeps_the_end_token_and_logs_what_was_cut(caplog):
    with caplog.at_level(logging.WARNING):
        out = text_encoder.fit_tokens([*range(10, 20), 1], decode=lambda cut: f"<{cut}>", length=6)
    assert out == [10, 11, 12, 13, 14, 1]
    assert "11 tokens, the model reads 6" in caplog.text and "[15, 16, 17, 18, 19]" in caplog.text


def test_exactly_as_long_as_the_model_reads(caplog):
    assert text_encoder.fit_tokens([*range(225), 1]) == [*range(225), 1]
    assert not caplog.records


def test_long_prompts_are_cut_by_words(tiny_model, caplog):
    tokenizer = text_encoder.FolderTokenizer(tiny_model / "tokenizer")
    with caplog.at_level(logging.WARNING):
        ids = text_encoder.tokenize(tokenizer, "sun " * 300 + "moon")
    assert ids.shape == (1, 226) and ids[0, -1] == 1
    assert "moon" in caplog.text.replace("\N{DOUBLE QUESTION MARK}", "moon")  # unknown to the tiny vocabulary


def test_tokenizer_json(tiny_model, tmp_path):
    """A folder with tokenizer.json instead of spiece.model gives the same ids."""
    import transformers

    fast = transformers.T5Tokenizer.from_pretrained(tiny_model / "tokenizer", extra_ids=0)
    fast.save_pretrained(tmp_path)
    assert (tmp_path / "tokenizer.json").is_file() and not (tmp_path / "spiece.model").is_file()
    for prompt in ("", "a red ball moves right", "the DOG, 3 cats"):
        first = text_encoder.FolderTokenizer(tiny_model / "tokenizer")(prompt)
        assert text_encoder.FolderTokenizer(tmp_path)(prompt) == first


def test_a_file_that_asks_for_padding_or_cutting_gets_neither(tiny_model, tmp_path):
    """Ten million tokens took 72 seconds and 1.5 GB."""
    import transformers

    transformers.T5Tokenizer.from_pretrained(tiny_model / "tokenizer", extra_ids=0).save_pretrained(tmp_path)
    plain = text_encoder.FolderTokenizer(tmp_path)("a red ball moves right")
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    padding = {"strategy": {"Fixed": 10**7}, "direction": "Right", "pad_to_multiple_of": None}
    written["padding"] = {**padding, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
    written["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(written))
    assert text_encoder.FolderTokenizer(tmp_path)("a red ball moves right") == plain


def test_a_tokenizer_with_more_words_than_the_text_encoder(tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "text_encoder" / "config.json").read_text())
    (model / "text_encoder" / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    state = load_file(model / "text_encoder" / "model.safetensors")
    save_file(
        {**state, "shared.weight": state["shared.weight"][:50].contiguous()},
        model / "text_encoder" / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match="gives ids up to [0-9]+, .* has embeddings for 50: put the model's own"):
        text_encoder.TextEncoder(model / "text_encoder", model / "tokenizer")


def test_what_is_cut_off_is_shown_in_short(caplog):
    text_encoder.fit_tokens([*range(300_000), 1], decode=lambda cut: "sun\n\x1b[31m" * len(cut))
    assert len(caplog.text) < 500 and len(caplog.text.splitlines()) == 1


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(CheckpointError, match="neither spiece.model nor tokenizer.json"):
        text_encoder.FolderTokenizer(tmp_path)


@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
def test_broken_tokenizer(tmp_path, name):
    (tmp_path / name).write_bytes(b"broken")
    with pytest.raises(CheckpointError, match=name):
        text_encoder.FolderTokenizer(tmp_path)


def test_missing_weight(tiny_model, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model / "text_encoder", tmp_path / "text_encoder")
    state = load_file(folder / "model.safetensors")
    del state["encoder.block.1.layer.0.SelfAttention.q.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="lacks encoder.block.1.layer.0.SelfAttention.q.weight"):
        text_encoder.TextEncoder(folder, tiny_model / "tokenizer")


def test_another_model(tiny_model):
    with pytest.raises(CheckpointError, match="no T5 encoder"):
        text_encoder.t5_weights(open_weights(tiny_model / "transformer"))


@pytest.mark.parametrize(
    "change, words",
    [
        ({"relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64"),
        ({"model_type": "umt5"}, "model_type is 'umt5'"),
        ({"dense_act_fn": "swish"}, "activation is 'swish'"),
        ({"d_model": None}, "lacks d_model"),
    ],
)
def test_t5s_that_the_hosts_class_cannot_be(tiny_model, change, words):
    config = json.loads((tiny_model / "text_encoder" / "config.json").read_text())
    text_encoder.comfy_t5_config(config)
    with pytest.raises(CheckpointError, match=words):
        text_encoder.comfy_t5_config({**config, **change})


def test_features_are_deterministic_and_depend_on_the_prompt(tiny_model):
    encoder = text_encoder.TextEncoder(tiny_model / "text_encoder", tiny_model / "tokenizer")
    first = encoder("a red ball")
    assert torch.equal(encoder("a red ball"), first)
    assert not torch.equal(encoder("a blue ball"), first)

"""Tokens and features against transformers, as VideoX-Fun calls it."""

import pytest
import torch
import transformers
from cogvideox_fun.model_loading.files.t5 import FolderTokenizer, tokenize
from cogvideox_fun.model_loading.standalone import TextEncoder
from tiny_model import write_text_encoder

PROMPTS = ["", "a red ball moves right", "  a   dog \n and a CAT, 100%!", "sun " * 400]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("text")
    write_text_encoder(path, seed=0)
    return path


@pytest.mark.parametrize("prompt", PROMPTS)
def test_tokens_equal_transformers(folder, prompt):
    """spiece.model through sentencepiece gives the ids of transformers' T5 tokenizer, padded and truncated to 226."""
    oracle = transformers.T5Tokenizer.from_pretrained(folder / "tokenizer", extra_ids=0)
    expected = oracle(prompt, padding="max_length", max_length=226, truncation=True, return_tensors="pt").input_ids
    assert torch.equal(tokenize(FolderTokenizer(folder / "tokenizer"), prompt), expected)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_features_equal_transformers(folder, prompt):
    """No attention mask: pad positions take part, as in VideoX-Fun."""
    encoder = TextEncoder(folder / "text_encoder", folder / "tokenizer")
    oracle = transformers.T5EncoderModel.from_pretrained(folder / "text_encoder").eval()
    with torch.no_grad():
        expected = oracle(tokenize(encoder.tokenizer, prompt))[0]
    out = encoder(prompt)
    assert out.shape == (1, 226, 32)
    assert torch.equal(out, expected)


def test_loading_makes_no_random_weights(folder):
    """Those of a T5-XXL would take 19 GB and minutes, and then be replaced."""
    before = torch.get_rng_state()
    TextEncoder(folder / "text_encoder", folder / "tokenizer")
    assert torch.equal(torch.get_rng_state(), before)

"""Corrupted models: each gives an error that names the file, says what is wrong and what to do."""

import json
import re
import shutil

import pytest
import torch
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.model_loading.standalone import Pipeline
from safetensors.torch import load_file, save_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
TRANSFORMER = f"transformer/{WEIGHTS}"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def keep(count: int):
    """Keep only the first bytes of a file; a negative count cuts the end off."""
    return lambda path: path.write_bytes(path.read_bytes()[:count])


def text(content: str):
    return lambda path: path.write_text(content)


def pickle(path):
    torch.save({"a": torch.zeros(1)}, path)


def only_a_pickle(folder):
    (folder / WEIGHTS).rename(folder / "diffusion_pytorch_model.bin")


def index_of(shard: str):
    return text(json.dumps({"weight_map": {"a": shard}}))


def change(**values):
    """Change values of a configuration."""
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def state(**tensors):
    """Replace tensors of a file; None removes one, and a number takes that many rows."""

    def changed(path):
        found = load_file(path)
        for name, value in tensors.items():
            name = name.replace("__", ".")
            tensor = found.pop(name)
            if value is not None:
                found[name] = tensor[:value].contiguous()
        save_file(found, path)

    return changed


def another_family(path):
    save_file({"model.layers.0.weight": torch.zeros(2)}, path)


CORRUPTED = [  # the file or folder, what happens to it, the file that is named, what is said of it
    (TRANSFORMER, pickle, TRANSFORMER, "is a pickle with another name; pickles can run code.*take a real"),
    ("transformer", only_a_pickle, "transformer", "no .safetensors file .only diffusion_pytorch_model.bin, a pickle"),
    (TRANSFORMER, lambda path: path.write_bytes(LFS), TRANSFORMER, "is a Git LFS pointer.*git lfs pull"),
    (TRANSFORMER, keep(0), TRANSFORMER, "is truncated or broken .the file has 0 bytes.*download it again"),
    (TRANSFORMER, keep(100), TRANSFORMER, "is truncated.*download it again"),
    (TRANSFORMER, keep(-1), TRANSFORMER, "is truncated.*download it again"),
    (TRANSFORMER, another_family, "transformer", "not a CogVideoX transformer.*model.layers.0.weight.*choose"),
    (TRANSFORMER, state(transformer_blocks__1__attn1__to_k__bias=None), "transformer", "lacks .*to_k.bias: download"),
    (
        TRANSFORMER,
        state(norm_final__bias=127),
        "transformer",
        r"norm_final.bias has the shape \[127\], expected \[128",
    ),
    (f"transformer/{INDEX}", index_of("b.safetensors"), "transformer", "lacks the shard b.safetensors.*download"),
    (f"transformer/{INDEX}", index_of("../vae/x.safetensors"), f"transformer/{INDEX}", "outside its folder"),
    ("transformer/config.json", text("{"), "transformer/config.json", "can't be read as JSON.*download it again"),
    ("transformer/config.json", change(in_channels=32), "transformer", "in_channels = 32.*shapes say 33.*another"),
    ("scheduler/scheduler_config.json", change(beta_start="x"), "scheduler/scheduler_config.json", "beta_start.*'x'"),
    ("vae/config.json", change(block_out_channels=[8, 8, 8, 8]), "vae", r"has the shape \[16.*expected \[8"),
    (f"vae/{WEIGHTS}", another_family, "vae", "lacks encoder.conv_in.conv.weight.*download it again"),
    ("text_encoder/model.safetensors", another_family, "text_encoder", "is no T5 encoder, it lacks"),
    (
        "text_encoder/model.safetensors",
        state(encoder__block__1__layer__0__SelfAttention__q__weight=None),
        "text_encoder",
        "lacks encoder.block.1.layer.0.SelfAttention.q.weight: download it again",
    ),
    ("tokenizer/spiece.model", text("broken"), "tokenizer/spiece.model", "no sentencepiece model: download it again"),
    ("tokenizer", shutil.rmtree, "", "has no tokenizer: download the whole repository"),
    ("vae", shutil.rmtree, "", "has no vae: download the whole repository"),
    ("tokenizer/tokenizer_config.json", text('{"model_max_length": 0}'), "tokenizer", "model_max_length 0, expected"),
    ("tokenizer/tokenizer_config.json", text('{"model_max_length": "many"}'), "tokenizer", "model_max_length .*many"),
    (
        "text_encoder/config.json",
        change(vocab_size=50),
        "text_encoder",
        r"shared.weight is \[128, 32\], expected \[50, 32\]",
    ),
    ("text_encoder/config.json", change(num_layers=1), "text_encoder", "has 2 blocks, expected 1: download it again"),
    (
        "text_encoder/config.json",
        change(d_ff=50),
        "text_encoder",
        r"DenseReluDense.wo.weight is \[32, 64\], expected \[32, 50\]",
    ),
]


@pytest.mark.parametrize("place, corrupt, named, words", CORRUPTED)
def test_a_corrupted_folder(tiny_model, tmp_path, place, corrupt, named, words):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    corrupt(model / place)
    with pytest.raises(CheckpointError, match=re.escape(str(model / named)) + f".*{words}") as error:
        Pipeline.from_folder(model)
    assert str(error.value).count(str(model)) <= 2


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("model.pt", b"", "is no safetensors file: pickles can run code.*take a .safetensors file"),
        ("model.gguf", b"GGUF\x03", "can't be read as GGUF .*: download it again"),
        ("model.gguf", b"", "can't be read as GGUF .*: download it again"),
        ("gone.safetensors", None, "is not there: download it to this place, or choose another one"),
    ],
)
def test_a_corrupted_single_file(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path / name)) + f" {words}"):
        open_checkpoint(tmp_path / name)

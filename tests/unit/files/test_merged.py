"""Model folders that have a LoRA of another folder's model."""

import json
import shutil

import pytest
import torch
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files.checkpoint import find_models, open_checkpoint
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.training.tasks.hub import write_json
from quantised import linear_layers, scaled_fp8
from safetensors.torch import load_file, save_file
from tiny_model import tiny_transformer

LAYERS = ("transformer_blocks.1.attn1.to_q", "transformer_blocks.0.ff.net.2")
PROJ = "patch_embed.proj.weight"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
RANK, ALPHA = 4, 2.0


def write_lora(path, base: dict, channels: int = 32) -> dict:
    """A random LoRA of a tiny 2B with its patch projection, in the trainer's keys; returns its tensors."""
    generator = torch.Generator().manual_seed(1)
    lora = {"diffusion_model.patch_embed.proj.set_weight": torch.randn(128, channels, 2, 2, generator=generator)}
    for layer in LAYERS:
        out, width = base[f"{layer}.weight"].shape
        lora[f"diffusion_model.{layer}.lora_down.weight"] = torch.randn(RANK, width, generator=generator)
        lora[f"diffusion_model.{layer}.lora_up.weight"] = torch.randn(out, RANK, generator=generator)
        lora[f"diffusion_model.{layer}.alpha"] = torch.tensor(ALPHA)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(lora, path)
    return lora


@pytest.fixture
def folders(tiny_model, tmp_path):
    """An InP model, and in it the folder of a Control model with a LoRA."""
    base = shutil.copytree(tiny_model, tmp_path / "nano")
    write_lora(base / "control" / "transformer" / "any_name.safetensors", load_file(base / WEIGHTS))
    values = json.loads((base / "transformer" / "config.json").read_text())
    write_json(base / "control" / "transformer" / "config.json", {**values, "in_channels": 32, "lora_base": ".."})
    return base, base / "control"


def write_wide(source, folder):
    """A tiny 2B of three heads."""
    shutil.copytree(source, folder)
    change(folder, num_attention_heads=3)
    save_file(tiny_transformer("2b", heads=3).state_dict(), folder / WEIGHTS)
    return folder


def change(folder, **values) -> None:
    path = folder / "transformer" / "config.json"
    write_json(path, {**json.loads(path.read_text()), **values})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_are_those_of_the_base_with_the_lora_added(folders, dtype):
    base, control = folders
    plain = {key: value.to(dtype) for key, value in load_file(base / WEIGHTS).items()}
    save_file(plain, base / WEIGHTS)
    lora = load_file(control / "transformer" / "any_name.safetensors")
    weights = open_checkpoint(control).weights
    merged = weights.load()
    assert merged.keys() == plain.keys()
    assert {key: tuple(value.shape) for key, value in merged.items()} == weights.shapes
    assert torch.equal(merged.pop(PROJ), lora["diffusion_model.patch_embed.proj.set_weight"])
    for key, value in merged.items():
        layer = f"diffusion_model.{key.removesuffix('.weight')}"
        if key.removesuffix(".weight") in LAYERS:
            added = ALPHA / RANK * lora[f"{layer}.lora_up.weight"] @ lora[f"{layer}.lora_down.weight"]
            assert value.dtype == dtype and torch.allclose(value, (plain[key] + added).to(dtype), atol=1e-5)
            assert torch.equal(weights[key], value) and not torch.equal(value, plain[key])
        else:
            assert torch.equal(value, plain[key]), key


def test_it_is_a_whole_control_model_with_the_parts_of_its_base(folders):
    base, control = folders
    opened, own = open_checkpoint(control), open_checkpoint(base)
    assert opened.config.conditioning == "control" and own.config.conditioning == "inpaint"
    assert (opened.path, opened.base) == (control, base) and own.base is None
    for part in ("vae", "text_encoder", "tokenizer", "schedule", "scale_factor", "preview"):
        assert getattr(opened, part) == getattr(own, part) is not None
    pipeline = Pipeline.from_folder(control)
    text, noise = pipeline.text_encoder("a red ball"), pipeline.noise(48, 32, 5, seed=0)
    videos = [torch.full((5, 32, 48, 3), grey) for grey in (0.0, 1.0)]
    made = [pipeline.sample(noise, text, text, pipeline.encode(video), steps=2) for video in videos]
    assert made[0].isfinite().all() and (made[0] - made[1]).abs().max() > 0.01


def test_both_are_listed_also_where_the_base_is_a_link(folders, tmp_path):
    base, control = folders
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "linked").symlink_to(base)
    found = find_models([tmp_path / "models"], {})
    assert list(found) == ["linked", "linked/control"]
    assert open_checkpoint(found["linked/control"]).base == base


@pytest.mark.parametrize(
    "values, words",
    [
        (
            {"lora_base": "../gone"},
            "control has a LoRA of the model in ../gone, and .*gone is no model folder: keep both",
        ),
        ({"lora_base": "."}, "which has itself only a LoRA: set lora_base to a whole model"),
        ({"lora_base": "/models/nano"}, "has lora_base = /models/nano, expected a folder relative to it"),
        ({"lora_base": 3}, "has lora_base = 3, expected a folder relative to it"),
        ({"lora_base": "a\0b"}, "control can't be loaded"),
        (
            {"num_layers": 3},
            "LoRA of a model with num_layers = 3, but .*nano has 2: put the model that it was trained on there",
        ),
        ({"sample_width": 8}, "LoRA of a model with sample_width = 8, but .*nano has 90"),
        ({"in_channels": 33}, "says in_channels = 33, but the weights' shapes say 32"),
    ],
)
def test_a_base_that_does_not_fit_the_configuration(folders, values, words):
    change(folders[1], **values)
    with pytest.raises(CheckpointError, match=words):
        open_checkpoint(folders[1])


def test_a_base_that_does_not_fit_the_lora(folders, tiny_model, tmp_path):
    """Its configuration can be changed; the layers still have the sizes of another model."""
    control = folders[1]
    wide = write_wide(tiny_model, tmp_path / "wide")
    shutil.move(control, wide / "control")
    change(wide / "control", num_attention_heads=3)
    with pytest.raises(CheckpointError, match="num_attention_heads = 3, but the weights' shapes say 2"):
        open_checkpoint(wide / "control")
    lora = load_file(wide / "control" / "transformer" / "any_name.safetensors")
    lora["diffusion_model.patch_embed.proj.set_weight"] = torch.zeros(192, 32, 2, 2)
    save_file(lora, wide / "control" / "transformer" / "any_name.safetensors")
    with pytest.raises(CheckpointError, match=r"transformer_blocks\.\d.* is 128 x .*, but the model's is 192 x"):
        open_checkpoint(wide / "control").weights.load()


@pytest.mark.parametrize("key", ["diffusion_model.transformer_blocks.9.attn1.to_q.alpha", LAYERS[0] + ".dora_scale"])
def test_a_lora_with_other_parts(folders, key):
    path = folders[1] / "transformer" / "any_name.safetensors"
    save_file({**load_file(path), key: torch.ones(())}, path)
    with pytest.raises(CheckpointError, match=f"has {key}, expected lora_down.weight, "):
        open_checkpoint(folders[1])


def test_a_quantised_base(folders):
    state = load_file(folders[0] / WEIGHTS)
    save_file(scaled_fp8(state, linear_layers(state)), folders[0] / WEIGHTS)
    with pytest.raises(CheckpointError, match="is quantised, and no LoRA can be merged into it"):
        open_checkpoint(folders[1])

"""LoRA files in every style, brought to the model's names."""

import json

import pytest
import torch
from cogvideox_fun.model_loading.config import TransformerConfig
from cogvideox_fun.model_loading.lora import LoraError, read_lora
from cogvideox_fun.model_loading.transformer import CogVideoXTransformer
from safetensors.torch import save_file
from tiny_model import TINY

LAYERS = ("transformer_blocks.1.attn1.to_q", "transformer_blocks.0.attn1.to_out.0", "transformer_blocks.0.ff.net.2")
RANK = 4


@pytest.fixture(scope="module")
def parameters():
    model = CogVideoXTransformer(TransformerConfig(**TINY, in_channels=33))
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def dotted(prefix: str, down: str, up: str):
    return lambda layer: (f"{prefix}{layer}.{down}", f"{prefix}{layer}.{up}", f"{prefix}{layer}.alpha")


def underscored(prefix: str, down: str = "lora_down.weight", up: str = "lora_up.weight"):
    return lambda layer: tuple(f"{prefix}{layer.replace('.', '_')}.{end}" for end in (down, up, "alpha"))


def processor(layer: str):
    parent, _, name = layer.removesuffix(".0").rpartition(".")
    place = f"{parent}.processor.{name}_lora" if name.startswith("to_") else f"{layer}.lora"
    return f"{place}.down.weight", f"{place}.up.weight", f"{layer}.alpha"


STYLES = {
    "the Fun trainer": underscored("lora_unet__"),
    "kohya": underscored("lora_unet_"),
    "diffusers": dotted("transformer.", "lora_A.weight", "lora_B.weight"),
    "the Fun trainer's PEFT": dotted("transformer.", "lora_A.default.weight", "lora_B.default.weight"),
    "diffusion_model": dotted("diffusion_model.", "lora_down.weight", "lora_up.weight"),
    "diffusion_model PEFT": dotted("diffusion_model.", "lora_A.weight", "lora_B.weight"),
    "PEFT": dotted("base_model.model.", "lora_A.weight", "lora_B.weight"),
    "bare": dotted("", "lora_A.weight", "lora_B.weight"),
    "bare, down and up": dotted("", "lora_down.weight", "lora_up.weight"),
    "attention processors": processor,
    "LyCORIS": underscored("lycoris_"),
}


def pair(parameters, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
    out, *ins = parameters[f"{layer}.weight"]
    generator = torch.Generator().manual_seed(len(layer))
    return torch.randn(RANK, *ins, generator=generator), torch.randn(out, RANK, generator=generator)


@pytest.mark.parametrize("with_alpha", [True, False])
@pytest.mark.parametrize("style", STYLES)
def test_every_style_is_the_same_lora(parameters, tmp_path, style, with_alpha):
    state, expected = {}, {}
    for layer in LAYERS:
        down, up = pair(parameters, layer)
        names = STYLES[style](layer)
        values = (down, up, torch.tensor(2.0))[: 3 if with_alpha else 2]
        state.update(zip(names, values, strict=False))
        expected.update(
            zip((f"{layer}.{x}" for x in ("lora_down.weight", "lora_up.weight", "alpha")), values, strict=False)
        )
    save_file({**state, "lora_te_text_model.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", parameters)
    assert lora.layers == sorted(LAYERS)
    assert lora.unmatched == ["lora_te_text_model.lora_up.weight"]
    assert set(lora.tensors) == set(expected)
    assert all(torch.equal(lora.tensors[key], value) for key, value in expected.items())


def test_other_kinds_of_adapter_pass_through(parameters, tmp_path):
    layer = LAYERS[0]
    state = {f"diffusion_model.{layer}.{end}": torch.ones(64, 64) for end in ("lokr_w1", "diff", "hada_w1_a")}
    save_file(state, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", parameters)
    assert set(lora.tensors) == {f"{layer}.{end}" for end in ("lokr_w1", "diff", "hada_w1_a")}


def test_alpha_comes_from_peft_metadata_where_no_tensor_has_it(parameters, tmp_path):
    state = {}
    for layer in LAYERS:
        down, up = pair(parameters, layer)
        state[f"transformer.{layer}.lora_A.weight"], state[f"transformer.{layer}.lora_B.weight"] = down, up
    about = {"transformer.lora_alpha": 8, "transformer.r": RANK, "transformer.alpha_pattern": {"ff.net.2": 1}}
    save_file(state, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(about)})
    lora = read_lora(tmp_path / "lora.safetensors", parameters)
    assert [float(lora.tensors[f"{layer}.alpha"]) for layer in LAYERS] == [8, 8, 1]


def test_a_lora_of_something_else_is_an_error(parameters, tmp_path):
    save_file({"lora_unet_double_blocks_0.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(LoraError, match="none of its 1 keys .* lora_unet_double_blocks_0.lora_up.weight"):
        read_lora(tmp_path / "lora.safetensors", parameters)


@pytest.mark.parametrize("width, family", [(30 * 64, "2B"), (48 * 64, "5B"), (100, None)])
def test_a_lora_of_another_size_names_its_model(parameters, tmp_path, width, family):
    layer = LAYERS[0]
    state = {f"{layer}.lora_A.weight": torch.zeros(RANK, width), f"{layer}.lora_B.weight": torch.zeros(width, RANK)}
    save_file(state, tmp_path / "lora.safetensors")
    belongs = f"this LoRA belongs to a {family} model, " if family else ""
    with pytest.raises(
        LoraError, match=f"{layer} is {width} x {width}, but the model's is 128 x 128: {belongs}choose"
    ):
        read_lora(tmp_path / "lora.safetensors", parameters)


def test_half_a_pair_is_an_error(parameters, tmp_path):
    down, _ = pair(parameters, LAYERS[0])
    save_file({f"{LAYERS[0]}.lora_A.weight": down}, tmp_path / "lora.safetensors")
    with pytest.raises(LoraError, match="has no lora_up"):
        read_lora(tmp_path / "lora.safetensors", parameters)

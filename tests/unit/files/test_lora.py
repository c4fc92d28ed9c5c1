"""LoRA files in every style of key names, brought to the model's names."""

import json

import pytest
import torch
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files.lora_keys import read_lora
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
from lora_kinds import CONVOLUTION, LINEAR
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


def native(layer: str):
    """ComfyUI's own names."""
    short = {"attn1.to_q": "q", "attn1.to_out.0": "attn_out", "ff.net.2": "ff_out"}
    _, number, name = layer.split(".", 2)
    return tuple(
        f"diffusion_model.blocks.{number}.{short[name]}.{end}"
        for end in ("lora_down.weight", "lora_up.weight", "alpha")
    )


def without_dots(layer: str):
    """What VideoX-Fun's `merge_lora` takes, too."""
    stem = f"lora_unet__{layer.replace('.', '_')}"
    return f"{stem}_lora_A_default_weight", f"{stem}_lora_B_default_weight", f"{stem}_alpha"


STYLES = {
    "ComfyUI's own CogVideoX": native,
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
    "VideoX-Fun, without dots": without_dots,
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


KINDS = [("transformer_blocks.1.attn1.to_q", kind, parts) for kind, parts in LINEAR.items()]
KINDS += [("patch_embed.proj", kind, parts) for kind, parts in CONVOLUTION.items()]
KIND_NAMES = [f"{layer.rpartition('.')[2]}, {kind}" for layer, kind, _ in KINDS]


def read_parts(parameters, tmp_path, layer: str, parts: dict):
    state = {f"diffusion_model.{layer}.{part}": value.contiguous() for part, value in parts.items()}
    save_file(state, tmp_path / "lora.safetensors")
    return read_lora(tmp_path / "lora.safetensors", parameters)


@pytest.mark.parametrize("layer, kind, parts", KINDS, ids=KIND_NAMES)
def test_every_part_of_a_wrong_size_is_an_error(parameters, tmp_path, layer, kind, parts):
    """Each of a part's first two axes one longer: ComfyUI would only log it."""
    for part, value in parts.items():
        for axis in range(min(value.ndim, 2)):
            longer = torch.cat([value, value.narrow(axis, 0, 1)], axis)
            with pytest.raises(
                CheckpointError, match=f"lora.safetensors can't be loaded: {layer} (has|is) .*: .*(choose|down)"
            ):
                read_parts(parameters, tmp_path, layer, {**parts, part: longer})


def test_a_change_of_a_norm(parameters, tmp_path):
    read_parts(parameters, tmp_path, "norm_final", {"diff": torch.ones(128), "diff_b": torch.ones(128)})
    pair = {"lora_up.weight": torch.ones(128, RANK), "lora_down.weight": torch.ones(RANK, 1)}
    assert read_parts(parameters, tmp_path, "norm_final", pair).layers == ["norm_final"]
    with pytest.raises(CheckpointError, match="norm_final is 127, but the model's is 128: choose a LoRA"):
        read_parts(parameters, tmp_path, "norm_final", {"diff": torch.ones(127)})


def test_a_missing_part_is_an_error(parameters, tmp_path):
    for kind, part in (("lora", "lora_up.weight"), ("hada", "hada_w2_b"), ("lokr", "lokr_w2"), ("glora", "b1.weight")):
        rest = {name: value for name, value in LINEAR[kind].items() if name != part}
        with pytest.raises(
            CheckpointError, match=f"{LAYERS[0]} has no {part.removesuffix('.weight')}.*download it again"
        ):
            read_parts(parameters, tmp_path, LAYERS[0], rest)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"diff": torch.zeros(128, 128)}, "is changed in two ways, lora_up.weight and diff"),
        ({"alpha": torch.ones(2)}, "has an alpha of 2 numbers, expected one"),
    ],
)
def test_what_comfyui_would_read_in_another_way_is_an_error(parameters, tmp_path, more, message):
    with pytest.raises(CheckpointError, match=message):
        read_parts(parameters, tmp_path, LAYERS[0], {**LINEAR["lora"], **more})


def test_parts_that_change_nothing_are_unmatched(parameters, tmp_path):
    state = {f"{LAYERS[0]}.{part}": value for part, value in LINEAR["lora"].items()}
    save_file({**state, f"{LAYERS[1]}.alpha": torch.tensor(1.0)}, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors", parameters)
    assert lora.layers == [LAYERS[0]] and lora.unmatched == [f"{LAYERS[1]}.alpha"]


def test_the_magnitude_of_peft_scales_outputs(parameters, tmp_path):
    """PEFT writes one value an output; as it is, ComfyUI would scale the inputs of a square layer by it."""
    parts = {**LINEAR["lora"], "lora_magnitude_vector": torch.arange(128.0)}
    lora = read_parts(parameters, tmp_path, LAYERS[0], parts)
    assert torch.equal(lora.tensors[f"{LAYERS[0]}.dora_scale"], torch.arange(128.0)[:, None])


def test_alpha_comes_from_peft_metadata_where_no_tensor_has_it(parameters, tmp_path):
    state = {}
    for layer in LAYERS:
        down, up = pair(parameters, layer)
        state[f"transformer.{layer}.lora_A.weight"], state[f"transformer.{layer}.lora_B.weight"] = down, up
    about = {"transformer.lora_alpha": 8, "transformer.r": RANK, "transformer.alpha_pattern": {"ff.net.2": 1}}
    save_file(state, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(about)})
    lora = read_lora(tmp_path / "lora.safetensors", parameters)
    assert [float(lora.tensors[f"{layer}.alpha"]) for layer in LAYERS] == [8, 8, 1]


def test_alpha_of_an_rslora_is_scaled_as_in_peft(parameters, tmp_path):
    """By the square root of the rank, which only the metadata tell."""
    import peft

    down, up = pair(parameters, LAYERS[0])
    state = {f"transformer.{LAYERS[0]}.lora_A.weight": down, f"transformer.{LAYERS[0]}.lora_B.weight": up}
    about = {"transformer.lora_alpha": 8, "transformer.r": RANK, "transformer.use_rslora": True}
    save_file(state, tmp_path / "lora.safetensors", {"lora_adapter_metadata": json.dumps(about)})
    options = peft.LoraConfig(r=RANK, lora_alpha=8, use_rslora=True, target_modules=["0"])
    layer = peft.inject_adapter_in_model(options, torch.nn.Sequential(torch.nn.Linear(2, 2)))[0]
    lora = read_lora(tmp_path / "lora.safetensors", parameters)
    assert float(lora.tensors[f"{LAYERS[0]}.alpha"]) / RANK == pytest.approx(layer.scaling["default"])


def test_a_lora_of_something_else_is_an_error(parameters, tmp_path):
    save_file({"lora_unet_double_blocks_0.lora_up.weight": torch.zeros(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="none of its 1 keys .* lora_unet_double_blocks_0.lora_up.weight"):
        read_lora(tmp_path / "lora.safetensors", parameters)


@pytest.mark.parametrize("width, family", [(30 * 64, "2B"), (48 * 64, "5B"), (100, None)])
def test_a_lora_of_another_size_names_its_model(parameters, tmp_path, width, family):
    layer = LAYERS[0]
    state = {f"{layer}.lora_A.weight": torch.zeros(RANK, width), f"{layer}.lora_B.weight": torch.zeros(width, RANK)}
    save_file(state, tmp_path / "lora.safetensors")
    belongs = f"this LoRA belongs to a {family} model, " if family else ""
    with pytest.raises(
        CheckpointError, match=f"{layer} is {width} x {width}, but the model's is 128 x 128: {belongs}choose"
    ):
        read_lora(tmp_path / "lora.safetensors", parameters)

import json
import shutil
from pathlib import Path

import pytest
import torch
from cogvideox_fun.model_loading import standalone
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files import checkpoint
from cogvideox_fun.model_loading.files.detect import detect
from cogvideox_fun.model_loading.files.safetensors_files import open_weights, read_file
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.vae import CogVideoXVAE, VAEConfig
from cogvideox_fun.sampling.schedule import NoiseSchedule
from cogvideox_fun.training.tasks.hub import write_json
from cogvideox_fun.training.tasks.parts import export_half
from quantised import linear_layers, scaled_fp8, write_gguf
from safetensors.torch import load_file, save_file
from tiny_model import VARIANTS, random_weights, write_tiny_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


# which variant


def shapes_of(heads: int, in_channels: int, patch_t: int | None = None, **extra) -> dict:
    """What the header of a published checkpoint of that many heads says."""
    dim = heads * 64
    proj = (dim, in_channels, 2, 2) if patch_t is None else (dim, in_channels * 8)
    layers = {30: 30, 48: 42}.get(heads, 2)
    return {
        "patch_embed.proj.weight": proj,
        "patch_embed.text_proj.weight": (dim, 4096),
        "time_embedding.linear_1.weight": (512, dim),
        **{f"transformer_blocks.{i}.attn1.to_q.weight": (dim, dim) for i in range(layers)},
        **{name.replace("__", "."): shape for name, shape in extra.items()},
    }


LEARNED, OFS = "patch_embed__pos_embedding", "ofs_embedding__linear_1__weight"


@pytest.mark.parametrize(
    "family, conditioning, heads, channels, patch_t, extra",
    [
        ("2B", "inpaint", 30, 33, None, {}),
        ("2B", "control", 30, 32, None, {}),
        ("2B", "control", 30, 32, None, {LEARNED: (1, 17776, 1920)}),
        ("2B", "text", 30, 16, None, {}),
        ("5B", "inpaint", 48, 33, None, {}),
        ("5B", "control", 48, 32, None, {}),
        ("5B", "image", 48, 32, None, {LEARNED: (1, 17776, 3072)}),
        ("5B", "text", 48, 16, None, {}),
        ("5B V1.5", "inpaint", 48, 33, 2, {}),
        ("5B V1.5", "image", 48, 32, 2, {OFS: (512, 512)}),
        ("5B V1.5", "void", 48, 48, 2, {}),
    ],
)
def test_what_a_single_file_is_comes_from_its_shapes(family, conditioning, heads, channels, patch_t, extra):
    found = detect(shapes_of(heads, channels, patch_t, **extra), None)
    assert (found.family, found.conditioning, found.in_channels) == (family, conditioning, channels)
    assert found.default_scale_factor == (1.15258426 if family == "2B" else 0.7)
    assert found.default_schedule.snr_shift == (3.0 if family == "2B" else 1.0)
    assert found.max_latent_t == (None if patch_t else 13)
    assert found.fp16_is_safe == (family == "2B")
    assert found.base_grid[1:] == ((150, 150) if patch_t else (30, 45))


def test_unknown_heads_need_a_configuration():
    with pytest.raises(CheckpointError, match="2 heads.*config.json"):
        detect(shapes_of(2, 33), None)


@pytest.mark.parametrize(
    "values, words",
    [
        ({"in_channels": 40}, "in_channels is 40"),
        ({"in_channels": "33"}, "in_channels is '33'"),
        ({"norm_eps": None}, "norm_eps is None"),
        ({"use_learned_positional_embeddings": True}, "use_learned_positional_embeddings is True"),
        ({"patch_size_t": 3}, "patch_size_t is 3"),
    ],
)
def test_configurations_that_no_model_has(values, words):
    with pytest.raises(CheckpointError, match=words):
        TransformerConfig.from_dict(values)


# folders


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_opens(tmp_path, variant):
    """By its configuration, whatever its name."""
    opened = checkpoint.open_checkpoint(write_tiny_model(tmp_path / "CogVideoX-Fun-V1.5-5b-InP", variant))
    assert opened.config.in_channels == VARIANTS[variant]["in_channels"]
    assert opened.schedule == opened.config.default_schedule
    assert opened.scale_factor == pytest.approx(1.15258426 if variant.startswith("2b") else 0.7)
    assert opened.vae and opened.text_encoder and opened.tokenizer


def test_the_schedule_comes_from_the_folder(model):
    path = model / "scheduler" / "scheduler_config.json"
    write_json(path, {**json.loads(path.read_text()), "timestep_spacing": "linspace"})
    assert checkpoint.open_checkpoint(model).schedule == NoiseSchedule(snr_shift=3.0, spacing="linspace")


def test_parts_may_be_missing(model):
    for part in ("text_encoder", "vae", "scheduler"):
        shutil.rmtree(model / part)
    opened = checkpoint.open_checkpoint(model)
    assert opened.vae is None and opened.text_encoder is None
    assert opened.scale_factor == 1.15258426 and opened.schedule.snr_shift == 3.0


def test_shards(model, tmp_path):
    """They may be links to files elsewhere, as in the hub's own cache."""
    folder = model / "transformer"
    state = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in parts.items():
        save_file({k: state[k] for k in keys}, tmp_path / file)
        (folder / file).symlink_to(tmp_path / file)
    index = {"weight_map": {k: file for file, keys in parts.items() for k in keys}}
    write_json(folder / f"{WEIGHTS}.index.json", index)
    loaded = checkpoint.open_checkpoint(model).weights.load()
    assert loaded.keys() == state.keys() and all(torch.equal(loaded[k], state[k]) for k in state)


def test_the_file_with_the_hubs_name_wins_over_copies_beside_it(model):
    for part, name in (("transformer", WEIGHTS), ("vae", WEIGHTS), ("text_encoder", "model.safetensors")):
        state = load_file(model / part / name)
        old = {key: value + 1 for key, value in state.items()}
        save_file(old, model / part / name.replace(".", "_old."))
        loaded = open_weights(model / part).load()
        assert all(torch.equal(loaded[key], state[key]) for key in state)
        (model / part / name).unlink()
        assert open_weights(model / part).load().keys() == state.keys(), "the only one, whatever its name"


# single files


def save(model, path, prefix=checkpoint.SAVED_PREFIX, with_config=True, **extra):
    """Write a model as ComfyUI's ModelSave does."""
    opened = checkpoint.open_checkpoint(model)
    state = {f"{prefix}{k}": v for k, v in opened.weights.load().items()}
    if with_config:
        state[f"{prefix}{checkpoint.SAVED_CONFIG}"] = checkpoint.encode_config(opened.saved_config)
    save_file({**state, **extra}, path)
    return opened


@pytest.mark.parametrize("prefix", [checkpoint.SAVED_PREFIX, ""])
def test_what_modelsave_wrote_opens_again(model, tmp_path, prefix):
    path = tmp_path / "anything.safetensors"
    opened = save(model, path, prefix, v_pred=torch.tensor([]))
    again = checkpoint.open_checkpoint(path)
    assert again.saved_config == opened.saved_config
    state = standalone.load_transformer(again).state_dict()
    assert all(torch.equal(state[k], v) for k, v in opened.weights.load().items())


@pytest.mark.parametrize("value", [b"{", b"[]", b"{}", b'{"transformer": {}, "scheduler": 3, "scale_factor": 1}'])
def test_broken_saved_configuration(model, tmp_path, value):
    broken = {checkpoint.SAVED_CONFIG: torch.tensor(list(value), dtype=torch.uint8)}
    save(model, tmp_path / "x.safetensors", with_config=False, **broken)
    with pytest.raises(CheckpointError, match="x.safetensors .*saved configuration can't be read"):
        checkpoint.open_checkpoint(tmp_path / "x.safetensors")


def test_vae_files_without_configuration(tmp_path):
    """Widths and layers are read off the shapes."""
    path = tmp_path / "vae.safetensors"
    expected = VAEConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=2)
    save_file(random_weights(CogVideoXVAE(expected), seed=0), path)
    assert checkpoint.load_vae_config(path, open_weights(path)) == expected
    assert checkpoint.is_vae_file(path)
    save_file(load_file(path), path, {"workflow": "x" * 1_200_000})  # ModelSave writes graphs before the tensors
    assert checkpoint.is_vae_file(path)
    assert not checkpoint.is_transformer_file(path)
    standalone.load_vae(path)


# what a loader lists


def test_hub_folders_links_and_files(tiny_model, tmp_path):
    root = tmp_path / "CogVideoX_Fun"
    (root / "alibaba-pai").mkdir(parents=True)
    (root / "linked").symlink_to(tiny_model)
    (root / "loop").symlink_to(root)
    shutil.copytree(tiny_model, root / "alibaba-pai" / "nested")
    write_json(root / "flux" / "transformer" / "config.json", {"_class_name": "FluxTransformer2DModel"})
    write_json(root / "unnamed" / "transformer" / "config.json", {"in_channels": 33})
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    files = {
        "cogvideo.safetensors": tiny_model / "transformer" / WEIGHTS,
        "other.safetensors": tmp_path / "other.safetensors",
        "x.ckpt": tmp_path / "x.ckpt",
    }
    found = checkpoint.find_models([root, tmp_path / "missing"], files)
    assert list(found) == ["alibaba-pai/nested", "linked", "cogvideo.safetensors"]
    assert checkpoint.open_checkpoint(found["linked"]).config.in_channels == 33
    assert checkpoint.find_models([tiny_model], {}) == {tiny_model.name: tiny_model}
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "linked").symlink_to(tiny_model)
    first = checkpoint.find_models([root, tmp_path / "A"], {})["linked"]
    assert first == root / "linked", "of two with one name, that of the first folder"


def write_models(root: Path, count: int) -> list[str]:
    """Folders in hub layout, every second one of another family; returns the names of those to be found."""
    names = [f"owner{i % 10}/model{i:03}" for i in range(count)]
    for i, name in enumerate(names):
        folder = root / name / "transformer"
        folder.mkdir(parents=True)
        family = "CogVideoXTransformer3DModel" if i % 2 else "FluxTransformer2DModel"
        (folder / "config.json").write_text(json.dumps({"_class_name": family}))
    return sorted(names[1::2])


def test_links_in_circles_name_each_model_once(tmp_path):
    expected = write_models(tmp_path, 40)
    for i in range(10):
        (tmp_path / f"loop{i}").symlink_to(tmp_path)
        (tmp_path / f"owner{i}" / "up").symlink_to(tmp_path)
        (tmp_path / f"owner{i}" / "self").symlink_to("self")
    assert list(checkpoint.find_models([tmp_path], {})) == expected


def test_a_folder_that_cant_be_read_hides_no_other(tmp_path):
    """A link to a name that is too long raises an OSError, like a folder of another user."""
    expected = write_models(tmp_path, 2)
    (tmp_path / "long").symlink_to("x" * 300)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "transformer").symlink_to("y" * 300)
    assert list(checkpoint.find_models([tmp_path], {})) == expected


# how weights are read


def test_every_file_is_read_once_by_the_reader_that_is_given(tiny_model):
    """Only when the weights are asked for."""
    read = []

    def reader(path):
        read.append(path.name)
        return read_file(path)

    opened = checkpoint.open_checkpoint(tiny_model, reader)
    single = opened.weights["proj_out.weight"]
    assert not read
    model = standalone.load_transformer(opened)
    assert read == ["diffusion_pytorch_model.safetensors"] and torch.equal(model.proj_out.weight, single)


@pytest.mark.parametrize("ending", [".sft", ".SAFETENSORS"])
def test_other_endings_of_safetensors_files(model, tmp_path, ending):
    """ComfyUI lists them, and reads them as safetensors."""
    opened = checkpoint.open_checkpoint(model)
    state = {**opened.weights.load(), checkpoint.SAVED_CONFIG: checkpoint.encode_config(opened.saved_config)}
    path = tmp_path / f"model{ending}"
    save_file(state, path)
    assert checkpoint.is_transformer_file(path)
    assert checkpoint.open_checkpoint(path).config == opened.config


def test_gguf_opens_like_the_model_it_was_made_from(tiny_model, tmp_path):
    """Tensors as they are stored; only ComfyUI unpacks them."""
    source, file = checkpoint.open_checkpoint(tiny_model), tmp_path / "model.gguf"
    saved = {checkpoint.SAVED_CONFIG: checkpoint.encode_config(source.saved_config)}
    write_gguf({**source.weights.load(), **saved}, file)
    opened = checkpoint.open_checkpoint(file)
    assert opened.saved_config == source.saved_config and opened.weights.shapes == source.weights.shapes
    assert checkpoint.find_models([], {"a.gguf": file}) == {"a.gguf": file}
    norm, matrix = "norm_final.weight", "transformer_blocks.0.attn1.to_q.weight"
    assert torch.equal(opened.weights[norm], source.weights[norm].float())
    assert opened.weights[matrix].dtype == torch.uint8
    assert opened.weights[matrix].numel() == source.weights[matrix].numel() // 32 * 34, "Q8_0: 34 bytes for 32"
    with pytest.raises(CheckpointError, match="is quantised, which only ComfyUI unpacks"):
        standalone.load_transformer(opened)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_scaled_fp8_is_refused_without_comfyui(model, tmp_path, part):
    """Without its scales it would be another model. Nor is it exported to another type."""
    (file,) = (model / part).glob("*.safetensors")
    state = load_file(file)
    layers = [key for key in linear_layers(state) if "relative_attention_bias" not in key]
    save_file(scaled_fp8(state, layers), file)
    with pytest.raises(CheckpointError, match=f"{part}.* is quantised, which only ComfyUI unpacks"):
        standalone.Pipeline.from_folder(model)
    with pytest.raises(CheckpointError, match=f"{part}.* is quantised, which only ComfyUI unpacks"):
        export_half(model, tmp_path / "half")

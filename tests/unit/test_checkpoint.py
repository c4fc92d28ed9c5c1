import json
import shutil

import pytest
import reference
import torch
from cogvideox_fun.model_loading import standalone as pipeline
from cogvideox_fun.model_loading.files import checkpoint
from cogvideox_fun.model_loading.files.checkpoint import CheckpointError
from cogvideox_fun.model_loading.files.safetensors_files import open_weights, read_file, read_header
from cogvideox_fun.model_loading.networks import config
from cogvideox_fun.model_loading.networks.vae import CogVideoXVAE, VAEConfig
from cogvideox_fun.sampling.schedule import NoiseSchedule
from cogvideox_fun.training.tasks.hub import write_json
from quantised import linear_layers, scaled_fp8, write_gguf
from safetensors.torch import load_file, save_file
from tiny_model import VARIANTS, random_weights, write_tiny_model

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(tiny_model, tmp_path):
    return shutil.copytree(tiny_model, tmp_path / "model")


def shapes_of(heads: int, in_channels: int, patch_t: int | None = None) -> dict:
    """What the header of a published checkpoint of that many heads says."""
    dim = heads * 64
    proj = (dim, in_channels, 2, 2) if patch_t is None else (dim, in_channels * 8)
    layers = {30: 30, 48: 42}.get(heads, 2)
    return {
        "patch_embed.proj.weight": proj,
        "patch_embed.text_proj.weight": (dim, 4096),
        "time_embedding.linear_1.weight": (512, dim),
        "proj_out.weight": (64 * (patch_t or 1), dim),
        **{f"transformer_blocks.{i}.attn1.to_q.weight": (dim, dim) for i in range(layers)},
        "transformer_blocks.0.norm1.linear.weight": (6 * dim, 512),
    }


class TestDetection:
    @pytest.mark.parametrize(
        "heads, channels, patch_t, family, conditioning",
        [
            (30, 33, None, "2B", "inpaint"),
            (30, 32, None, "2B", "control"),
            (30, 16, None, "2B", "text"),
            (48, 33, None, "5B", "inpaint"),
            (48, 32, None, "5B", "control"),
            (48, 16, None, "5B", "text"),
            (48, 33, 2, "5B V1.5", "inpaint"),
        ],
    )
    def test_published_shapes(self, heads, channels, patch_t, family, conditioning):
        found = config.detect(shapes_of(heads, channels, patch_t), None)
        assert (found.family, found.conditioning, found.in_channels) == (family, conditioning, channels)
        assert found.default_scale_factor == (1.15258426 if family == "2B" else 0.7)
        assert found.default_schedule.snr_shift == (3.0 if family == "2B" else 1.0)
        assert found.max_latent_t == (None if patch_t else 13)
        assert found.fp16_is_safe == (family == "2B")
        assert found.base_grid[1:] == ((150, 150) if patch_t else (30, 45))

    def test_unknown_heads_need_a_configuration(self):
        with pytest.raises(CheckpointError, match="2 heads.*config.json"):
            config.detect(shapes_of(2, 33), None)

    def test_configuration_of_another_model(self):
        with pytest.raises(CheckpointError, match="in_channels = 33.*shapes say 32"):
            config.detect(shapes_of(30, 32), {"in_channels": 33})

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
    def test_configurations_that_no_model_has(self, values, words):
        with pytest.raises(CheckpointError, match=words):
            config.TransformerConfig.from_dict(values)

    def test_another_family(self, tmp_path):
        save_file({"model.layers.0.weight": torch.zeros(2)}, tmp_path / "llm.safetensors")
        with pytest.raises(CheckpointError, match="llm.safetensors.*not a CogVideoX transformer"):
            checkpoint.open_checkpoint(tmp_path / "llm.safetensors")


class TestFolders:
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_every_variant_opens(self, tmp_path, variant):
        opened = checkpoint.open_checkpoint(write_tiny_model(tmp_path / "m", variant))
        assert opened.config.in_channels == VARIANTS[variant]["in_channels"]
        assert opened.schedule == opened.config.default_schedule
        assert opened.scale_factor == pytest.approx(1.15258426 if variant.startswith("2b") else 0.7)
        assert opened.vae and opened.text_encoder and opened.tokenizer

    def test_the_schedule_comes_from_the_folder(self, model):
        path = model / "scheduler" / "scheduler_config.json"
        write_json(path, {**json.loads(path.read_text()), "timestep_spacing": "linspace"})
        assert checkpoint.open_checkpoint(model).schedule == NoiseSchedule(snr_shift=3.0, spacing="linspace")

    def test_parts_may_be_missing(self, model):
        for part in ("text_encoder", "vae", "scheduler"):
            shutil.rmtree(model / part)
        opened = checkpoint.open_checkpoint(model)
        assert opened.vae is None and opened.text_encoder is None
        assert opened.scale_factor == 1.15258426 and opened.schedule.snr_shift == 3.0

    def test_shards(self, model):
        folder = model / "transformer"
        state = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = sorted(state)
        parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
        for file, keys in parts.items():
            save_file({k: state[k] for k in keys}, folder / file)
        index = {"weight_map": {k: file for file, keys in parts.items() for k in keys}}
        write_json(folder / f"{WEIGHTS}.index.json", index)
        opened = checkpoint.open_checkpoint(model)
        loaded = opened.weights.load()
        assert loaded.keys() == state.keys() and all(torch.equal(loaded[k], state[k]) for k in state)

        (folder / "b.safetensors").unlink()
        with pytest.raises(CheckpointError, match="lacks the shard b.safetensors"):
            checkpoint.open_checkpoint(model)

    def test_a_shard_outside_its_folder(self, model):
        write_json(
            model / "transformer" / "x.safetensors.index.json", {"weight_map": {"a": "../../vae/x.safetensors"}}
        )
        with pytest.raises(CheckpointError, match="outside its folder"):
            checkpoint.open_checkpoint(model)

    def test_only_a_pickle(self, model):
        (model / "transformer" / WEIGHTS).rename(model / "transformer" / "diffusion_pytorch_model.bin")
        with pytest.raises(CheckpointError, match="a pickle, which is not read.*download one that does"):
            checkpoint.open_checkpoint(model)

    def test_broken_configuration(self, model):
        (model / "transformer" / "config.json").write_text("{")
        with pytest.raises(CheckpointError, match="config.json can't be read as JSON"):
            checkpoint.open_checkpoint(model)


class TestBrokenFiles:
    @pytest.mark.parametrize("keep", [0, 4, 100, 5000, -1])
    def test_truncated(self, model, keep):
        path = model / "transformer" / WEIGHTS
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match=f"{WEIGHTS}.*download it again"):
            checkpoint.open_checkpoint(model)

    def test_git_lfs_pointer(self, tmp_path):
        path = tmp_path / "x.safetensors"
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
        with pytest.raises(CheckpointError, match="Git LFS pointer"):
            read_header(path)

    def test_no_header(self, tmp_path):
        path = tmp_path / "x.safetensors"
        path.write_bytes((10).to_bytes(8, "little") + b"not json!!")
        with pytest.raises(CheckpointError, match="header is no JSON"):
            read_header(path)

    @pytest.mark.parametrize(
        "entry",
        [
            {"dtype": "F32", "shape": [1]},
            {"dtype": "X1", "shape": [1], "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": None, "data_offsets": [0, 4]},
            {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
            {"dtype": "F32", "shape": [1], "data_offsets": ["a", "b"]},
            [],
        ],
    )
    def test_broken_entries(self, tmp_path, entry):
        header = json.dumps({"w": entry}).encode()
        path = tmp_path / "x.safetensors"
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
        with pytest.raises(CheckpointError, match="entry for w is broken"):
            read_header(path)

    def test_missing_key(self, model):
        path = model / "transformer" / WEIGHTS
        state = load_file(path)
        del state["transformer_blocks.1.attn1.to_k.bias"]
        save_file(state, path)
        with pytest.raises(CheckpointError, match="lacks transformer_blocks.1.attn1.to_k.bias"):
            pipeline.load_transformer(checkpoint.open_checkpoint(model))

    def test_wrong_shape(self, model):
        path = model / "vae" / WEIGHTS
        state = load_file(path)
        state["decoder.conv_out.conv.bias"] = torch.zeros(4)
        save_file(state, path)
        with pytest.raises(CheckpointError, match=r"decoder.conv_out.conv.bias has the shape \[4\], expected \[3\]"):
            pipeline.load_vae(model / "vae")

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_nan(self, model, value):
        path = model / "transformer" / WEIGHTS
        state = load_file(path)
        state["proj_out.weight"][3, 5] = value
        save_file(state, path)
        with pytest.raises(CheckpointError, match="proj_out.weight holds NaN or infinity"):
            pipeline.load_transformer(checkpoint.open_checkpoint(model))

    def test_a_pickle_is_refused(self, tmp_path):
        (tmp_path / "model.pt").write_bytes(b"anything")
        with pytest.raises(CheckpointError, match="pickles .* can run code"):
            checkpoint.open_checkpoint(tmp_path / "model.pt")


class TestSingleFiles:
    def save(self, model, path, prefix=checkpoint.SAVED_PREFIX, with_config=True, **extra):
        """As ComfyUI's ModelSave writes it."""
        opened = checkpoint.open_checkpoint(model)
        state = {f"{prefix}{k}": v for k, v in opened.weights.load().items()}
        if with_config:
            state[f"{prefix}{checkpoint.SAVED_CONFIG}"] = checkpoint.encode_config(opened.saved_config)
        save_file({**state, **extra}, path)
        return opened

    @pytest.mark.parametrize("prefix", [checkpoint.SAVED_PREFIX, ""])
    def test_what_modelsave_wrote_opens_again(self, model, tmp_path, prefix):
        path = tmp_path / "anything.safetensors"
        opened = self.save(model, path, prefix, v_pred=torch.tensor([]))
        again = checkpoint.open_checkpoint(path)
        assert (again.config, again.schedule, again.scale_factor) == (
            opened.config,
            opened.schedule,
            opened.scale_factor,
        )
        state = pipeline.load_transformer(again).state_dict()
        assert all(torch.equal(state[k], v) for k, v in opened.weights.load().items())

    def test_without_its_configuration(self, model, tmp_path):
        self.save(model, tmp_path / "x.safetensors", with_config=False)
        with pytest.raises(CheckpointError, match="2 heads"):
            checkpoint.open_checkpoint(tmp_path / "x.safetensors")

    @pytest.mark.parametrize("value", [b"{", b"[]", b"{}", b'{"transformer": {}, "scheduler": 3, "scale_factor": 1}'])
    def test_broken_saved_configuration(self, model, tmp_path, value):
        broken = {checkpoint.SAVED_CONFIG: torch.tensor(list(value), dtype=torch.uint8)}
        self.save(model, tmp_path / "x.safetensors", with_config=False, **broken)
        with pytest.raises(CheckpointError, match="saved configuration can't be read"):
            checkpoint.open_checkpoint(tmp_path / "x.safetensors")

    def test_no_file_name_decides(self, model, tmp_path):
        """A control model called InP is a control model."""
        control = write_tiny_model(tmp_path / "CogVideoX-Fun-V1.5-5b-InP", "2b-control")
        assert checkpoint.open_checkpoint(control).config.conditioning == "control"


class TestFindModels:
    def test_hub_folders_links_and_files(self, tiny_model, tmp_path):
        root = tmp_path / "CogVideoX_Fun"
        (root / "alibaba-pai").mkdir(parents=True)
        (root / "linked").symlink_to(tiny_model)
        shutil.copytree(tiny_model, root / "alibaba-pai" / "nested")
        (root / "empty").mkdir()
        save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
        files = {
            "cogvideo.safetensors": tiny_model / "transformer" / WEIGHTS,
            "other.safetensors": tmp_path / "other.safetensors",
            "x.ckpt": tmp_path / "x.ckpt",
        }
        found = checkpoint.find_models([root, tmp_path / "missing"], files)
        assert list(found) == ["alibaba-pai/nested", "linked", "cogvideo.safetensors"]
        assert checkpoint.open_checkpoint(found["linked"]).config.in_channels == 33

    def test_the_first_root_wins(self, tiny_model, tmp_path):
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "model").symlink_to(tiny_model)
        assert checkpoint.find_models([tmp_path / "b", tmp_path / "a"], {})["model"] == tmp_path / "b" / "model"

    def test_a_root_that_is_itself_a_model(self, tiny_model):
        assert checkpoint.find_models([tiny_model], {}) == {tiny_model.name: tiny_model}

    def test_other_families_are_not_listed(self, tmp_path):
        write_json(tmp_path / "flux" / "transformer" / "config.json", {"_class_name": "FluxTransformer2DModel"})
        write_json(tmp_path / "unnamed" / "transformer" / "config.json", {"in_channels": 33})
        assert checkpoint.find_models([tmp_path], {}) == {}

    def test_a_folder_that_links_to_its_parent(self, tmp_path):
        (tmp_path / "loop").symlink_to(tmp_path)
        assert checkpoint.find_models([tmp_path], {}) == {}

    def test_message_names_every_folder_and_a_repository(self, tmp_path):
        message = checkpoint.no_model_message("", "model", [], [tmp_path / "a"], [tmp_path / "b"])
        assert str(tmp_path / "a") in message and str(tmp_path / "b") in message
        assert "alibaba-pai/CogVideoX-Fun-V1.1-2b-InP" in message


def test_weights_are_mapped_not_read(tiny_model, monkeypatch):
    """Opening reads headers only."""
    import safetensors

    def fail(*_args, **_options):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(safetensors, "safe_open", fail)
    opened = checkpoint.open_checkpoint(tiny_model)
    assert "proj_out.weight" in opened.weights and len(opened.weights) > 20


def test_every_file_is_read_once_by_the_reader_that_is_given(tiny_model):
    """And a tensor asked for on its own is a copy, which needs no reader."""
    read = []

    def reader(path):
        read.append(path.name)
        return read_file(path)

    opened = checkpoint.open_checkpoint(tiny_model, reader)
    single = opened.weights["proj_out.weight"]
    assert not read
    model = pipeline.load_transformer(opened)
    assert read == ["diffusion_pytorch_model.safetensors"] and torch.equal(model.proj_out.weight, single)


def test_vae_files_without_configuration(tmp_path):
    """Widths and layers are read off the shapes; the number of groups can't be."""
    path, narrow = tmp_path / "vae.safetensors", tmp_path / "narrow.safetensors"
    expected = VAEConfig(block_out_channels=(32, 32, 64, 64), layers_per_block=2)
    save_file(random_weights(CogVideoXVAE(expected), seed=0), path)
    assert checkpoint.load_vae_config(path, open_weights(path)) == expected
    assert checkpoint.is_vae_file(path)
    assert not checkpoint.is_transformer_file(path)
    pipeline.load_vae(path)

    save_file(reference.load("vae_weights"), narrow)
    with pytest.raises(CheckpointError, match=r"\[8, 16, 16, 16\] channels wide.*config.json"):
        pipeline.load_vae(narrow)


class TestGGUF:
    @pytest.fixture
    def file(self, tiny_model, tmp_path):
        opened = checkpoint.open_checkpoint(tiny_model)
        saved = {checkpoint.SAVED_CONFIG: checkpoint.encode_config(opened.saved_config)}
        write_gguf({**opened.weights.load(), **saved}, tmp_path / "model.gguf")
        return tmp_path / "model.gguf"

    def test_opens_like_the_model_it_was_made_from(self, tiny_model, file):
        opened, source = checkpoint.open_checkpoint(file), checkpoint.open_checkpoint(tiny_model)
        assert opened.config == source.config and opened.schedule == source.schedule
        assert opened.weights.is_gguf and not source.weights.is_gguf
        assert opened.weights.shapes == source.weights.shapes
        assert checkpoint.find_models([], {"a.gguf": file}) == {"a.gguf": file}

    def test_tensors_are_as_they_are_stored(self, tiny_model, file):
        opened, source = checkpoint.open_checkpoint(file), checkpoint.open_checkpoint(tiny_model)
        norm, matrix = "norm_final.weight", "transformer_blocks.0.attn1.to_q.weight"
        assert torch.equal(opened.weights[norm], source.weights[norm].float())
        assert opened.weights[matrix].dtype == torch.uint8
        assert opened.weights[matrix].numel() == source.weights[matrix].numel() // 32 * 34, "Q8_0: 34 bytes for 32"

    def test_needs_a_host(self, file):
        """Without one the packed bytes would be taken for weights."""
        with pytest.raises(CheckpointError, match="is quantised, which only ComfyUI unpacks"):
            pipeline.load_transformer(checkpoint.open_checkpoint(file))

    def test_a_broken_file(self, file):
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(CheckpointError, match="can't be read as GGUF .*: download it again"):
            checkpoint.open_checkpoint(file)


def test_scaled_fp8_needs_a_host(model):
    """Without its scales it would be another model."""
    file = model / "transformer" / WEIGHTS
    state = load_file(file)
    save_file(scaled_fp8(state, linear_layers(state)), file)
    with pytest.raises(CheckpointError, match="is quantised, which only ComfyUI unpacks"):
        pipeline.load_transformer(checkpoint.open_checkpoint(model))

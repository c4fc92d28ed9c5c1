"""Quantised transformers through a real ComfyUI: scaled fp8 in its own layout, GGUF through ComfyUI-GGUF."""

import json
import shutil

import pytest
import torch
from cogvideox_fun.model_loading.files.checkpoint import SAVED_CONFIG, SAVED_PREFIX, encode_config, open_checkpoint
from cogvideox_fun.model_loading.standalone import Pipeline
from graph import Failed, closest
from quantised import dequantised, linear_layers, read_gguf, scaled_fp8
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-3  # of a whole run in float32, relative to the largest value
LAYER = "transformer_blocks.0.attn1.to_q"
PROMPTS = "a red ball moves right", "blurry"


@pytest.fixture(scope="module")
def pipeline(base):
    return Pipeline.from_folder(base / "models" / "CogVideoX_Fun" / "tiny-2b")


def expected_of(pipeline, state: dict[str, torch.Tensor]) -> torch.Tensor:
    """The whole run without ComfyUI, from the unpacked weights."""
    pipeline.transformer.load_state_dict({key: state[key] for key in pipeline.transformer.state_dict()})
    texts = [pipeline.text_encoder(prompt) for prompt in PROMPTS]
    return pipeline.sample(pipeline.noise(80, 48, 9, seed=1), *texts, steps=4) / pipeline.checkpoint.scale_factor


def sampled(graph, model, clip, length: int = 9, **options):
    latent = graph.fun("EmptyLatent", width=80, height=48, length=length, batch_size=1)
    return graph.sampler(model, *graph.prompts(clip, *PROMPTS), latent, **options)


def told(value) -> torch.Tensor:
    """What a comfy_quant tensor holds: bytes of JSON."""
    return torch.tensor(list(json.dumps(value).encode()), dtype=torch.uint8)


def test_scaled_fp8(lab, pipeline):
    """The run of the unpacked weights, and not that of the weights they were made from."""
    folder = lab.base / "models" / "CogVideoX_Fun" / "scaled-fp8"
    state = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    graph = lab.graph()
    model = graph.loader("scaled-fp8")
    ours, plain = graph.get(*(sampled(graph, m, model[1]) for m in (model, graph.loader("tiny-2b"))))
    assert closest(ours, expected_of(pipeline, dequantised(state))) <= TOLERANCE < 0.01 < closest(ours, plain)


@pytest.mark.parametrize("weight_dtype", ["default", "bf16", "fp32", "fp8_e4m3fn"])
def test_the_rest_of_a_scaled_fp8_file_is_not_stored_in_fp8(lab, pipeline, weight_dtype):
    """Of a file whose blocks alone are quantised, and whose other layers are in bf16."""
    folder = lab.base / "models" / "CogVideoX_Fun" / "scaled-blocks"
    if not folder.is_dir():
        shutil.copytree(lab.base / "models" / "CogVideoX_Fun" / "tiny-2b", folder)
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    plain = load_file(lab.base / "models" / "CogVideoX_Fun" / "tiny-2b" / "transformer" / file.name)
    blocks = [key for key in linear_layers(plain) if key.startswith("transformer_blocks")]
    state = scaled_fp8({key: value.bfloat16() for key, value in plain.items()}, blocks)
    save_file(state, file)
    graph = lab.graph()
    model = graph.loader("scaled-blocks", weight_dtype)
    (ours,) = graph.get(sampled(graph, model, model[1]))
    assert closest(ours, expected_of(pipeline, dequantised(state))) <= TOLERANCE


def test_scaled_fp8_is_saved_and_loaded_again(lab):
    graph = lab.graph()
    model = graph.loader("scaled-fp8")
    graph.node("ModelSave", model=model, filename_prefix="scaled")
    (before,) = graph.get(sampled(graph, model, model[1]))
    saved = next((lab.base / "output").glob("scaled_*.safetensors"))
    target = lab.base / "models" / "diffusion_models" / "scaled-saved.safetensors"
    target.unlink(missing_ok=True)
    target.symlink_to(saved)
    assert any(tensor.dtype == torch.float8_e4m3fn for tensor in load_file(saved).values())
    graph = lab.graph()
    (after,) = graph.get(sampled(graph, graph.loader(target.name), graph.loader("tiny-2b")[1]))
    assert closest(after, before) <= TOLERANCE


def test_scaled_fp8_listed_in_the_header(lab, host):
    """The layout of newer versions of ComfyUI, with the prefix of a saved file; an older one refuses it."""
    opened = open_checkpoint(lab.base / "models" / "CogVideoX_Fun" / "scaled-fp8")
    state = {k.replace("scale_weight", "weight_scale"): v for k, v in opened.weights.load().items()}
    del state["scaled_fp8"]
    state = {SAVED_PREFIX + k: v for k, v in {**state, SAVED_CONFIG: encode_config(opened.saved_config)}.items()}
    layers = {
        k.removesuffix(".weight_scale"): {"format": "float8_e4m3fn"} for k in state if k.endswith("weight_scale")
    }
    file = lab.base / "models" / "diffusion_models" / "scaled-header.safetensors"
    save_file(state, file, {"_quantization_metadata": json.dumps({"layers": layers})})
    graph = lab.graph()
    loaded, clip = graph.loader("scaled-fp8"), graph.loader("tiny-2b")[1]
    (expected,) = graph.get(sampled(graph, loaded, clip))
    sample = sampled(graph, graph.loader(file.name), clip)
    if "_quantization_metadata" not in (host.path / "comfy" / "utils.py").read_text():
        with pytest.raises(Failed, match="this ComfyUI is too old for the file's quantisation"):
            graph.get(sample)
    else:
        (ours,) = graph.get(sample)
        assert closest(ours, expected) <= TOLERANCE
        shards = split(lab, "scaled-fp8", "scaled-shards", state, layers)
        (ours,) = graph.get(sampled(graph, graph.loader(shards), clip))
        assert closest(ours, expected) <= TOLERANCE, "each shard's header lists its own layers"


def split(lab, source: str, name: str, state: dict, layers: dict) -> str:
    """A copy of a model folder with its transformer in two shards; returns its name."""
    models = lab.base / "models" / "CogVideoX_Fun"
    shutil.copytree(models / source, models / name, dirs_exist_ok=True)
    folder = models / name / "transformer"
    for path in folder.glob("*.safetensors"):
        path.unlink()
    state = {
        key.removeprefix(SAVED_PREFIX): value for key, value in state.items() if key != SAVED_PREFIX + SAVED_CONFIG
    }
    layers = {key.removeprefix(SAVED_PREFIX): how for key, how in layers.items()}
    order, weight_map = sorted(layers), {}
    for number in range(2):
        own = {layer: layers[layer] for layer in order[number::2]}
        shard = f"diffusion_pytorch_model-{number + 1:05}-of-00002.safetensors"
        left = own if number else {key.rpartition(".")[0] for key in state} - layers.keys() | own.keys()
        chosen = {key: value for key, value in state.items() if key.rpartition(".")[0] in left}
        save_file(chosen, folder / shard, {"_quantization_metadata": json.dumps({"layers": own})})
        weight_map |= dict.fromkeys(chosen, shard)
    assert set(weight_map) == set(state)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")
    return name


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("no-marker", lambda s: s.pop("scaled_fp8"), "holds scales, but neither scaled_fp8 nor which layers"),
        ("packed", lambda s: s.update({f"{LAYER}.comfy_quant": told({"format": "nvfp4"})}), "nvfp4, expected float8"),
    ],
)
def test_what_is_quantised_in_another_way_is_refused(lab, name, change, message):
    """Never loaded without its scales, which would be a video of nothing."""
    opened = open_checkpoint(lab.base / "models" / "CogVideoX_Fun" / "scaled-fp8")
    state = {**opened.weights.load(), SAVED_CONFIG: encode_config(opened.saved_config)}
    change(state)
    save_file(state, lab.base / "models" / "diffusion_models" / f"{name}.safetensors")
    graph = lab.graph()
    with pytest.raises(Failed, match=message):
        graph.get(sampled(graph, graph.loader(f"{name}.safetensors"), graph.loader("tiny-2b")[1]))


def test_a_lora_on_scaled_fp8(lab):
    """Every layer of the LoRA finds a quantised one."""
    state = {}
    for name in ("to_q", "to_k"):
        layer = f"diffusion_model.transformer_blocks.0.attn1.{name}"
        state[f"{layer}.lora_A.weight"] = torch.randn(4, 128, generator=torch.Generator().manual_seed(1))
        state[f"{layer}.lora_B.weight"] = torch.randn(128, 4, generator=torch.Generator().manual_seed(2))
    save_file(state, lab.base / "models" / "loras" / "tiny.safetensors")
    graph = lab.graph()
    full, small = graph.loader("tiny-2b"), graph.loader("scaled-fp8")
    patched = [graph.fun("LoraLoader", model=m, lora_name="tiny.safetensors", strength=0.2) for m in (full, small)]
    size = lab.log_size
    plain, expected, ours = graph.get(*(sampled(graph, m, full[1]) for m in (small, *patched)))
    said = "tiny.safetensors: 2 of the model's layers changed, 4 keys matched, 0 unmatched"
    assert lab.log_since(size).count(said) == 2
    assert closest(plain, expected) > 2 * closest(ours, expected), "fp8 rounds less than the LoRA changes"


def fp8_names(names: list[str], variant: str) -> set[str]:
    """The parameters that fp8 storage is for: the blocks' matrices, on V1.5 but for the modulation."""
    layers = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"]
    layers += [] if variant == "v1.5" else ["norm1.linear", "norm2.linear"]
    return {name for name in names if name.endswith(tuple(f".{layer}.weight" for layer in layers))}


def saved_dtypes(lab, prefix: str) -> tuple[str, dict[str, torch.dtype]]:
    """The file that ModelSave wrote, as the loader lists it, and its parameters' dtypes."""
    (saved,) = (lab.base / "output").glob(f"{prefix}_*.safetensors")
    (lab.base / "models" / "diffusion_models" / f"{prefix}.safetensors").symlink_to(saved)
    state = {key.removeprefix(SAVED_PREFIX): value for key, value in load_file(saved).items()}
    return f"{prefix}.safetensors", {k: v.dtype for k, v in state.items() if "." in k}  # the others are markers


@pytest.mark.long
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["2b", "v1.5"])
def test_fp8_storage_is_for_the_blocks_matrices_alone(lab, variant, stored):
    """The rest stays as the file has it, also in what ModelSave writes of the model, and of it with a LoRA; what was
    saved samples the same video. The LoRA is for layers of both kinds."""
    name = f"{variant}-{str(stored)[6:]}"
    folder = shutil.copytree(
        lab.base / "models" / "CogVideoX_Fun" / f"tiny-{variant}", lab.base / "models" / "CogVideoX_Fun" / name
    )
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    save_file({key: value.to(stored) for key, value in load_file(file).items()}, file)
    lora, generator = {}, torch.Generator().manual_seed(0)
    for layer, (rows, columns) in {LAYER: (128, 128), "patch_embed.text_proj": (128, 32)}.items():
        lora[f"diffusion_model.{layer}.lora_A.weight"] = torch.randn(4, columns, generator=generator)
        lora[f"diffusion_model.{layer}.lora_B.weight"] = torch.randn(rows, 4, generator=generator)
    save_file(lora, lab.base / "models" / "loras" / f"{name}.safetensors")

    graph = lab.graph()
    model = graph.loader(name, "fp8_e4m3fn")
    patched = [
        graph.fun("LoraLoader", model=m, lora_name=f"{name}.safetensors", strength=0.2)
        for m in (model, graph.loader(name))
    ]
    graph.node("ModelSave", model=model, filename_prefix=f"{name}-fp8")
    graph.node("ModelSave", model=patched[0], filename_prefix=f"{name}-lora")
    before, small, full = graph.get(*(sampled(graph, m, model[1], 5) for m in (model, *patched)))
    assert closest(small, full) < 0.5 * closest(before, full), "the LoRA counts, and more than fp8 does"

    for prefix, expected in ((f"{name}-fp8", before), (f"{name}-lora", small)):
        listed, dtypes = saved_dtypes(lab, prefix)
        small_ones = fp8_names(dtypes, variant)
        assert {key for key, dtype in dtypes.items() if dtype == torch.float8_e4m3fn} == small_ones and small_ones
        assert {dtype for key, dtype in dtypes.items() if key not in small_ones} == {stored}
        graph = lab.graph()
        (after,) = graph.get(sampled(graph, graph.loader(listed), graph.loader(name)[1], 5))
        assert closest(after, expected) <= TOLERANCE


@pytest.fixture
def gguf_pack(host):
    if not (host.path / "custom_nodes" / "ComfyUI-GGUF").is_dir():
        pytest.skip("needs the node pack ComfyUI-GGUF in ComfyUI's custom_nodes, with its requirements")


def test_gguf(lab, pipeline, gguf_pack):
    path = lab.base / "models" / "diffusion_models" / "q8.gguf"
    graph = lab.graph()
    probe = graph.node("ProbeModel", model=graph.loader("q8.gguf"), path=lab.path())
    (ours,) = graph.get(sampled(graph, probe, graph.loader("tiny-2b")[1]))
    assert closest(ours, expected_of(pipeline, read_gguf(path))) <= TOLERANCE


def test_a_lora_on_gguf(lab, pipeline, gguf_pack):
    name = "tiny-gguf.safetensors"
    layer = "transformer_blocks.1.ff.net.0.proj"
    generator = torch.Generator().manual_seed(3)
    down, up = (torch.randn(*shape, generator=generator) for shape in ((4, 128), (512, 4)))
    save_file(
        {f"diffusion_model.{layer}.lora_A.weight": down, f"diffusion_model.{layer}.lora_B.weight": up},
        lab.base / "models" / "loras" / name,
    )
    graph = lab.graph()
    model = graph.fun("LoraLoader", model=graph.loader("q8.gguf"), lora_name=name, strength=0.1)
    (ours,) = graph.get(sampled(graph, model, graph.loader("tiny-2b")[1]))
    state = read_gguf(lab.base / "models" / "diffusion_models" / "q8.gguf")
    plain = expected_of(pipeline, state)
    state[f"{layer}.weight"] += 0.1 * up @ down
    expected = expected_of(pipeline, state)
    assert closest(ours, expected) <= TOLERANCE < 0.01 < closest(plain, expected)

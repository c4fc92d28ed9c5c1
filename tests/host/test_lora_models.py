"""A Control model that is stored as a LoRA of an InP model, and the same LoRA in ComfyUI's own loader."""

import shutil

import torch
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.model_loading.standalone import Pipeline, load_transformer
from cogvideox_fun.training.tasks.lora import add_lora, lora_file
from cogvideox_fun.training.tasks.parts import write_lora_model
from cogvideox_fun.training.tasks.start import start_model
from graph import ENCODE, closest
from safetensors.torch import save_file

TOLERANCE = 1e-3  # of a whole run in float32, relative to the largest value
PROMPTS = "a red ball moves right", "blurry"


def test_a_control_model_that_is_a_lora_of_an_inp_model(lab):
    """It is listed inside its base, takes VAE and T5 from there, and follows what it is given as without ComfyUI."""
    models = lab.base / "models" / "CogVideoX_Fun"
    base = shutil.copytree(models / "tiny-2b", models / "sibling")
    start_model(base, models / "sibling-start", "control")
    transformer = load_transformer(open_checkpoint(models / "sibling-start"))
    add_lora(transformer, rank=4, alpha=2.0, projection=True)
    state = {name: p.detach() for name, p in transformer.named_parameters() if p.requires_grad}
    lora = lora_file({name: value + 0.1 * torch.randn(value.shape) for name, value in state.items()}, alpha=2.0)
    path = lab.base / "models" / "loras" / "sibling.safetensors"
    save_file(lora, path)
    write_lora_model(path, base, base / "control")

    graph = lab.graph()
    inp, merged = graph.loader("sibling", "fp32"), graph.loader("sibling/control", "fp32")
    start = graph.loader("sibling-start", "fp32")
    stock = graph.node("LoraLoaderModelOnly", model=start, lora_name=path.name, strength_model=1.0)
    ours = graph.fun("LoraLoader", model=start, lora_name=path.name, strength=1.0)
    clip = torch.rand(9, 48, 80, 3, generator=torch.Generator().manual_seed(1))
    control = graph.fun("VAEEncode", vae=merged[2], video=graph.tensor("Image", clip), **ENCODE)
    options = {"control_latent": control, "strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    pair = dict(zip(("positive", "negative"), graph.prompts(merged[1], *PROMPTS), strict=True))
    given = graph.fun("ControlConditioning", **pair, **options)
    sampled = [graph.sampler(model, given[0], given[1], given[2], seed=3) for model in (merged, stock, ours, start)]
    sampled.append(graph.sampler(inp, *graph.prompts(inp[1], *PROMPTS), given[2], seed=3))
    found, *loaded, before, _ = graph.get(*sampled)

    pipeline = Pipeline.from_folder(base / "control")
    texts = [pipeline.text_encoder(prompt) for prompt in PROMPTS]
    made = pipeline.sample(pipeline.noise(80, 48, 9, seed=3), *texts, pipeline.encode(clip), steps=4)
    made = made / pipeline.checkpoint.scale_factor
    for latent in (found, *loaded):
        assert closest(latent, made) <= TOLERANCE < 0.01 < closest(before, made)

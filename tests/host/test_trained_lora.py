"""From raw clips to a LoRA in ComfyUI: the run is killed twice on its way, once while it saves."""

import shutil

import pytest
import torch
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.training.tasks.lora import apply_lora
from graph import closest
from killed import train, write_raw_clips
from safetensors.torch import load_file

PROMPTS = "street with fast city", "blurry"


@pytest.mark.long
def test_a_lora_trained_from_raw_clips_through_two_kills(lab, tmp_path):
    """Bit-equal to one of an unbroken run, and in ComfyUI the same as in the trainer's own pipeline."""
    model = lab.base / "models" / "CogVideoX_Fun" / "tiny-2b"
    write_raw_clips(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    whole = train(tmp_path / "whole", model)
    killed = train(tmp_path / "killed", model, kills=("step", "save"))
    expected, found = load_file(whole), load_file(killed)
    assert expected.keys() == found.keys() and all(torch.equal(found[key], expected[key]) for key in expected)

    shutil.copy(killed, lab.base / "models" / "loras" / "trained.safetensors")
    graph = lab.graph()
    loaded = graph.loader("tiny-2b", "fp32")
    latent = graph.fun("EmptyLatent", width=64, height=48, length=13, batch_size=1)
    patched = graph.node("LoraLoaderModelOnly", model=loaded, lora_name="trained.safetensors", strength_model=1.0)
    texts = graph.prompts(loaded[1], *PROMPTS)
    plain, ours = graph.get(*(graph.sampler(m, *texts, latent, seed=3, steps=2) for m in (loaded, patched)))
    pipeline = Pipeline.from_folder(model)
    apply_lora(pipeline.transformer, killed)
    noise = pipeline.noise(64, 48, 13, seed=3)
    made = pipeline.sample(noise, *(pipeline.text_encoder(prompt) for prompt in PROMPTS), steps=2)
    made = made / pipeline.checkpoint.scale_factor
    assert closest(ours, made) <= 1e-3 < 0.01 < closest(plain, made)

"""ComfyUI's own features with our MODEL: guidance, merging, hooks, copies. Caches are in test_matrix."""

from pathlib import Path

import pytest
import torch
from cogvideox_fun.model_loading.standalone import Pipeline
from graph import Failed, relative


def needs(lab, node: str) -> None:
    if not lab.has(node):
        pytest.skip(f"this ComfyUI has no {node}")


@pytest.mark.parametrize("cfg, batch", [(1.0, 1), (6.0, 2)])
def test_one_call_a_step_of_one_or_two_latents(lab, cfg, batch):
    graph, model, positive, negative, latent = lab.setting("tiny-5b")
    path = lab.path(".txt")
    counted = graph.node("ProbeCalls", model=model, path=path)
    graph.get(graph.sampler(counted, positive, negative, latent, cfg=cfg, steps=3))
    assert Path(path).read_text().splitlines() == [f"[{batch}, 16, 3, 6, 10]"] * 3


def test_a_batch_of_two_is_two_videos(lab):
    graph = lab.graph()
    model = graph.loader("tiny-5b")
    prompts = graph.prompts(model[1])
    two = graph.fun("EmptyLatent", width=80, height=48, length=9, batch_size=2)
    one = graph.fun("EmptyLatent", width=80, height=48, length=9, batch_size=1)
    both, alone = graph.get(*(graph.sampler(model, *prompts, latent) for latent in (two, one)))
    assert both.shape == (2, 16, 3, 6, 10)
    assert relative(both[:1], alone) <= 1e-4 and relative(both[1:], alone) > 0.1


def test_a_longer_positive_prompt_leaves_the_negative_as_it_is(lab):
    """At cfg 0 only the negative prompt counts. ComfyUI samples prompts of the same shape in one call."""
    graph, model, positive, negative, latent = lab.setting("tiny-5b")
    both = graph.node("ConditioningConcat", conditioning_to=positive, conditioning_from=negative)
    runs = graph.sampler(model, both, negative, latent, cfg=0.0), graph.sampler(model, negative, both, latent, cfg=1.0)
    ours, expected = graph.get(*runs)
    assert relative(ours, expected) <= 1e-4


def test_modelmergesimple(lab):
    """Half of a model and half of it with a LoRA: the LoRA at half strength."""
    graph = lab.graph()
    model = graph.loader("nano", "fp32")
    whole, half = (
        graph.fun("LoraLoader", model=model, lora_name="ring.safetensors", strength=strength)
        for strength in (1.0, 0.5)
    )
    merged = graph.node("ModelMergeSimple", model1=model, model2=whole, ratio=0.5)
    latent = graph.fun("EmptyLatent", width=64, height=64, length=5, batch_size=1)
    prompts = graph.prompts(model[1], "a red ring moves right over the night")
    ours, expected, plain = graph.get(*(graph.sampler(m, *prompts, latent, steps=2) for m in (merged, half, model)))
    assert relative(ours, expected) <= 1e-3 and relative(ours, plain) > 0.01


def test_nag_changes_the_video_at_cfg_1(lab):
    """It reads the attention's output by our attn1_output_patch, text first, with img_slice."""
    needs(lab, "NAGuidance")
    graph, model, *rest = lab.setting("tiny-5b")
    guided = graph.node("NAGuidance", model=model, nag_scale=5.0, nag_alpha=0.5, nag_tau=1.5)
    plain, ours = graph.get(*(graph.sampler(m, *rest, cfg=1.0) for m in (model, guided)))
    assert torch.isfinite(ours).all() and relative(ours, plain) > 0.001


def test_a_lora_hook_on_both_conditionings_is_the_lora(lab):
    graph = lab.graph()
    model = graph.loader("nano", "fp32")
    latent = graph.fun("EmptyLatent", width=64, height=64, length=5, batch_size=1)
    prompts = graph.prompts(model[1], "a red ring moves right over the night")
    hook = graph.node("CreateHookLora", lora_name="ring.safetensors", strength_model=1.0, strength_clip=0.0)
    hooked = [
        graph.node("ConditioningSetProperties", cond_NEW=p, strength=1.0, set_cond_area="default", hooks=hook)
        for p in prompts
    ]
    lora = graph.node("LoraLoaderModelOnly", model=model, lora_name="ring.safetensors", strength_model=1.0)
    ours, expected, plain = graph.get(
        graph.sampler(model, *hooked, latent, steps=2),
        graph.sampler(lora, *prompts, latent, steps=2),
        graph.sampler(model, *prompts, latent, steps=2),
    )
    assert relative(ours, expected) <= 1e-3 and relative(ours, plain) > 0.01


def test_another_nodes_attention_is_used(lab, base):
    """The override doubles every attention's output: as a model whose output projections are doubled."""
    pipeline = Pipeline.from_folder(base / "models" / "CogVideoX_Fun" / "tiny-5b")
    for block in pipeline.transformer.transformer_blocks:
        block.attn1.to_out[0].weight *= 2.0
    graph, model, positive, negative, latent = lab.setting("tiny-5b")
    changed = graph.node("ProbeAttention", model=model, factor=2.0)
    (ours,) = graph.get(graph.sampler(changed, positive, negative, latent, seed=3, steps=2))
    texts = [pipeline.text_encoder(prompt) for prompt in ("a red ball moves right", "blurry")]
    expected = pipeline.sample(pipeline.noise(80, 48, 9, seed=3), *texts, steps=2)
    assert relative(ours * pipeline.checkpoint.scale_factor, expected) <= 1e-3


def test_the_hosts_deep_copy_makes_the_same_video(lab):
    """What its multi-GPU units make for a second device; only one device is here."""
    needs(lab, "MultiGPU_WorkUnits")
    graph, model, *rest = lab.setting("tiny-5b")
    patched = graph.fun("PositionInterpolation", model=model, mode="generated")
    copied = graph.node("ProbeDeepClone", model=patched)
    ours, expected, plain = graph.get(*(graph.sampler(m, *rest) for m in (copied, patched, model)))
    assert torch.equal(ours, expected) and relative(ours, plain) > 0.001


def test_the_preview_shows_the_clip(lab):
    """A red square on the night, encoded by the nano VAE, in ComfyUI's latent previewer."""
    square = torch.zeros(1, 128, 128, 3)
    square[..., 2] = 0.25
    square[:, 64:112, 16:64] = torch.tensor([0.9, 0.1, 0.1])
    graph = lab.graph()
    model = graph.loader("nano")
    encoded = graph.node("VAEEncode", vae=model[2], pixels=graph.tensor("Image", square))
    (shown,) = graph.get(graph.node("ProbePreview", model=model, latent=encoded))
    assert shown.shape == (1, 16, 16, 3)
    red = shown[0, ..., 0] - shown[0, ..., 2]
    inside = torch.zeros(16, 16, dtype=torch.bool)
    inside[8:14, 2:8] = True
    assert red[inside].mean() > red[~inside].mean() + 0.4


def test_renormcfg(lab):
    """It asks the model for the channels of a latent; at renorm_cfg 0 and sigmas below 100 it is plain guidance."""
    graph, model, *rest = lab.setting("tiny-5b")
    models = [graph.node("RenormCFG", model=model, cfg_trunc=100.0, renorm_cfg=value) for value in (0.0, 1.0)]
    same, other, expected = graph.get(*(graph.sampler(m, *rest, steps=2, denoise=0.5) for m in (*models, model)))
    assert relative(same, expected) <= 1e-4 and relative(other, expected) > 1e-2


def test_a_patch_for_unets_is_named(lab):
    graph, model, *rest = lab.setting("tiny-5b")
    merged = graph.node("TomePatchModel", model=model, ratio=0.3)
    with pytest.raises(Failed, match="(?s)U-Nets .*nodes_tomesd.*remove the node"):
        graph.get(graph.sampler(merged, *rest, steps=1))

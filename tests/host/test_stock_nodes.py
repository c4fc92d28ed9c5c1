"""The host's own nodes take our MODEL, CLIP, VAE, LATENT and MASK as they take any other."""

import shutil
import time

import pytest
import torch
from cogvideox_fun.model_loading.files import checkpoint
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.tools import comfyui_server as comfy
from cogvideox_fun.training.tasks.lora import apply_lora
from graph import ENCODE
from safetensors.torch import load_file, save_file


@pytest.fixture
def setting(lab):
    return lab.setting("tiny-5b")


def test_decode_tiled_keeps_the_frames_of_22_latents(lab):
    """A temporal tile is ignored; up to the spatial seams the video is that of the plain decode."""
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    z = torch.randn(1, 16, 22, 16, 24, generator=torch.Generator().manual_seed(0))
    latent = graph.tensor("Latent", z)
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 8, "temporal_overlap": 4}
    plain = graph.node("VAEDecode", samples=latent, vae=vae)
    tiled = graph.node("VAEDecodeTiled", samples=latent, vae=vae, **tiles)
    one_tile = graph.node("VAEDecodeTiled", samples=latent, vae=vae, **{**tiles, "tile_size": 512})
    ours = graph.fun("VAEDecode", vae=vae, latent=latent, tile_size=64, overlap=16)
    plain, tiled, one_tile, ours = graph.get(plain, tiled, one_tile, ours)
    assert plain.shape == tiled.shape == (85, 128, 192, 3)
    assert torch.equal(one_tile, plain)
    assert torch.equal(tiled, ours)
    assert torch.corrcoef(torch.stack([tiled.flatten(), plain.flatten()]))[0, 1] > 0.95
    assert not torch.equal(tiled, plain)


def test_encode_tiled(lab):
    """Noise, since each tile's GroupNorm sees its own statistics: those of noise are alike everywhere (0.945 seen)."""
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    pixels = graph.tensor("Image", torch.rand(9, 128, 192, 3, generator=torch.Generator().manual_seed(0)))
    tiles = {"tile_size": 64, "overlap": 16, "temporal_size": 8, "temporal_overlap": 4}
    tiled = graph.node("VAEEncodeTiled", pixels=pixels, vae=vae, **tiles)
    ours = graph.fun("VAEEncode", vae=vae, video=pixels, **{**ENCODE, "tile_size": 64, "overlap": 16})
    plain, tiled, ours = graph.get(graph.node("VAEEncode", pixels=pixels, vae=vae), tiled, ours)
    assert plain.shape == tiled.shape == (1, 16, 3, 16, 24)
    assert torch.equal(tiled, ours)
    assert torch.corrcoef(torch.stack([tiled.flatten(), plain.flatten()]))[0, 1] > 0.9


@pytest.mark.parametrize("tile_size, overlap", [(512, 64), (512, 256), (2048, 1024)])
def test_tiles_larger_than_the_frame_are_the_whole_frame(lab, tile_size, overlap):
    """The stock nodes' defaults on a small video."""
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    latent = graph.tensor("Latent", torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    pixels = graph.tensor("Image", torch.rand(5, 64, 64, 3, generator=torch.Generator().manual_seed(0)))
    tiles = {"tile_size": tile_size, "overlap": overlap}
    time_tiles = {"temporal_size": 64, "temporal_overlap": 8}
    plain, stock, ours, plain_latent, stock_latent, our_latent = graph.get(
        graph.node("VAEDecode", samples=latent, vae=vae),
        graph.node("VAEDecodeTiled", samples=latent, vae=vae, **tiles, **time_tiles),
        graph.fun("VAEDecode", vae=vae, latent=latent, **tiles),
        graph.node("VAEEncode", pixels=pixels, vae=vae),
        graph.node("VAEEncodeTiled", pixels=pixels, vae=vae, **tiles, **time_tiles),
        graph.fun("VAEEncode", vae=vae, video=pixels, **{**ENCODE, **tiles}),
    )
    assert torch.equal(plain, stock) and torch.equal(plain, ours)
    assert torch.equal(plain_latent, stock_latent) and torch.equal(plain_latent, our_latent)


def test_twelve_latents_give_45_frames(lab):
    graph = lab.graph()
    latent = graph.tensor("Latent", torch.randn(1, 16, 12, 2, 2))
    vae = graph.fun("VAELoader", vae_name="tiny-v1.5/vae")
    (video,) = graph.get(graph.node("VAEDecode", samples=latent, vae=vae))
    assert video.shape == (45, 16, 16, 3)


@pytest.mark.parametrize(
    "style", ["lora_unet_transformer_blocks_0_attn1_to_q", "diffusion_model.transformer_blocks.0.attn1.to_q"]
)
def test_stock_lora_loader(lab, style):
    """The LoRA's product is added to the weight it names: equal to a model whose weight has it added."""
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(128, 4, generator=generator), torch.randn(4, 128, generator=generator) / 8
    names = ("lora_up", "lora_down") if style.startswith("lora_unet") else ("lora_B", "lora_A")
    folder = lab.base / "models" / "loras"
    folder.mkdir(exist_ok=True)
    name = f"{style.split('_')[0]}.safetensors"
    save_file({f"{style}.{names[0]}.weight": up, f"{style}.{names[1]}.weight": down}, folder / name)

    models = lab.base / "models" / "CogVideoX_Fun"
    merged = models / "merged-5b"
    if not merged.exists():
        shutil.copytree(models / "tiny-5b", merged)
        path = merged / "transformer" / "diffusion_pytorch_model.safetensors"
        state = load_file(path)
        state["transformer_blocks.0.attn1.to_q.weight"] += 0.5 * up @ down
        save_file(state, path)

    graph = lab.graph()
    model = graph.loader("tiny-5b")
    positive, negative = graph.prompts(model[1])
    latent = graph.fun("EmptyLatent", width=80, height=48, length=9, batch_size=1)
    lora = graph.node("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=0.5)
    plain, patched, expected = graph.get(
        graph.sampler(model, positive, negative, latent),
        graph.sampler(lora, positive, negative, latent),
        graph.sampler(graph.loader("merged-5b"), positive, negative, latent),
    )
    assert (patched - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert (patched - plain).norm() > 0.02 * plain.norm()


@pytest.mark.parametrize("variant", ["2b", "5b", "v1.5", "2b-control"])
def test_modelsave_and_back(lab, variant):
    """What ModelSave writes is listed, opens as the same variant, and samples the same video."""
    length = 13 if variant == "v1.5" else 9
    graph = lab.graph()
    model = graph.loader(f"tiny-{variant}")
    graph.node("ModelSave", model=model, filename_prefix=f"saved-{variant}")
    positive, negative = graph.prompts(model[1])
    latent = graph.fun("EmptyLatent", width=80, height=48, length=length, batch_size=1)
    (before,) = graph.get(graph.sampler(model, positive, negative, latent))

    (written,) = (lab.base / "output").glob(f"saved-{variant}_*.safetensors")
    original = checkpoint.open_checkpoint(lab.base / "models" / "CogVideoX_Fun" / f"tiny-{variant}")
    opened = checkpoint.open_checkpoint(written)
    assert (opened.config, opened.schedule, opened.scale_factor) == (
        original.config,
        original.schedule,
        original.scale_factor,
    )
    name = f"a file called {variant}.safetensors"
    shutil.copy(written, lab.base / "models" / "diffusion_models" / name)
    graph = lab.graph()
    clip = graph.fun("TextEncoderLoader", text_encoder=f"tiny-{variant}/text_encoder")
    positive, negative = graph.prompts(clip)
    latent = graph.fun("EmptyLatent", width=80, height=48, length=length, batch_size=1)
    (after,) = graph.get(graph.sampler(graph.loader(name), positive, negative, latent))
    assert torch.equal(before, after)


def test_out_of_memory_falls_back_to_tiles_and_says_so(lab):
    """The result is that of tiles of 256 pixels, for stock nodes too."""
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    small = graph.node("ProbeSmallCard", vae=vae)
    latent = graph.tensor("Latent", torch.randn(1, 16, 3, 48, 40, generator=torch.Generator().manual_seed(0)))
    pixels = graph.tensor("Image", torch.rand(5, 320, 384, 3, generator=torch.Generator().manual_seed(0)))
    size = lab.log_size
    decoded, expected, encoded, expected_latent = graph.get(
        graph.node("VAEDecode", samples=latent, vae=small),
        graph.fun("VAEDecode", vae=vae, latent=latent, tile_size=256, overlap=64),
        graph.node("VAEEncode", pixels=pixels, vae=small),
        graph.fun("VAEEncode", vae=vae, video=pixels, **{**ENCODE, "tile_size": 256, "overlap": 64}),
    )
    assert torch.equal(decoded, expected) and torch.equal(encoded, expected_latent)
    log = lab.log_since(size)
    for what in ("decoding", "encoding"):
        assert log.count(f"out of memory while {what}: trying again in tiles of 256 pixels") == 1


def test_interrupting_stops_the_run_and_the_next_one_works(setting, lab):
    graph, model, positive, negative, latent = setting
    graph.node("ProbeSave", value=graph.sampler(model, positive, negative, latent, steps=1000), path=lab.path())
    prompt = lab.server.queue(graph.workflow)
    time.sleep(2)
    lab.server.post("/interrupt", {})
    history = lab.server.wait(prompt, 60)
    assert "execution_interrupted" in [kind for kind, _ in history["status"]["messages"]]
    graph = lab.graph()
    model = graph.loader("tiny-5b")
    latent = graph.fun("EmptyLatent", width=80, height=48, length=5, batch_size=1)
    (sampled,) = graph.get(graph.sampler(model, *graph.prompts(model[1]), latent, steps=1))
    assert torch.isfinite(sampled).all()


def test_the_hosts_inpaint_conditioning_runs_with_a_warning(setting, lab):
    graph, model, positive, negative, _ = setting
    pixels, mask = torch.rand(9, 48, 80, 3), torch.ones(9, 48, 80)
    mask[0] = 0
    size = lab.log_size
    built = graph.node(
        "InpaintModelConditioning",
        positive=positive,
        negative=negative,
        vae=model[2],
        pixels=graph.tensor("Image", pixels),
        mask=graph.tensor("Mask", mask),
        noise_mask=False,
    )
    (out,) = graph.get(graph.sampler(model, built[0], built[1], built[2]))
    assert out.shape == (1, 16, 3, 6, 10) and torch.isfinite(out).all()
    assert "InpaintModelConditioning" in lab.log_since(size)


def test_fp8_storage_with_a_compute_dtype(lab):
    """Weights in fp8, computing in another dtype: close to full precision, and it says so."""
    graph = lab.graph()
    model, small = graph.loader("tiny-5b"), graph.loader("tiny-5b", "fp8_e4m3fn")
    positive, negative = graph.prompts(model[1])
    latent = graph.fun("EmptyLatent", width=80, height=48, length=9, batch_size=1)
    probe = graph.node("ProbeModel", model=small, path=lab.path())
    sampled = graph.sampler(probe, positive, negative, latent, cfg=1.0)
    full = graph.sampler(model, positive, negative, latent, cfg=1.0)
    path = lab.path()
    graph.node("ProbeSave", value=full, path=path)
    other = lab.path()
    graph.node("ProbeSave", value=sampled, path=other)
    history = lab.run(graph.workflow)
    described = next(output for output in history["outputs"].values() if "dtypes" in output)
    assert "torch.float8_e4m3fn" in described["dtypes"] and described["compute"] == ["torch.float32"]
    full, sampled = load_file(path)["value"], load_file(other)["value"]
    assert 1e-4 < (full - sampled).norm() / full.norm() < 0.3


def test_fp16_is_never_computed_in_on_5b(lab):
    graph = lab.graph()
    graph.node("ProbeModel", model=graph.loader("tiny-5b", "fp16"), path=lab.path())
    described = next(o for o in lab.run(graph.workflow)["outputs"].values() if "dtypes" in o)
    assert described["dtypes"] == ["torch.float16"] and described["compute"] in (["torch.bfloat16"], ["torch.float32"])


def test_the_nano_models_lora_through_the_stock_loader(lab):
    """LoraLoaderModelOnly takes the file as training wrote it: the latent is that of the merged weights."""
    prompt, folder = "a red ring moves right over the night", comfy.ROOT / "models" / "nano"
    pipeline = Pipeline.from_folder(folder)
    apply_lora(pipeline.transformer, folder / "lora" / "ring.safetensors")
    texts = pipeline.text_encoder(prompt), pipeline.text_encoder("")
    expected = (
        pipeline.sample(pipeline.noise(64, 64, 9, 3), *texts, steps=4, cfg=4.0) / pipeline.checkpoint.scale_factor
    )

    graph = lab.graph()
    loaded = graph.loader("nano")
    positive, negative = graph.prompts(loaded[1], prompt, "")
    latent = graph.fun("EmptyLatent", width=64, height=64, length=9, batch_size=1)
    patched = graph.node("LoraLoaderModelOnly", model=loaded[0], lora_name="ring.safetensors", strength_model=1.0)
    options = {"seed": 3, "steps": 4, "cfg": 4.0}
    sampled = [graph.sampler(model, positive, negative, latent, **options) for model in (loaded[0], patched)]
    without, with_lora = graph.get(*sampled)
    error = (with_lora - expected).abs().mean() / expected.abs().mean()
    change = (without - expected).abs().mean() / expected.abs().mean()
    assert error < 0.01 and change > 0.05, "fp16 weights are patched in fp16 by the host"

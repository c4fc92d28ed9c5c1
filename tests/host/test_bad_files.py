"""Files that change while they are in use, LoRAs of every kind, and tokenizers that do not fit."""

import shutil

import pytest
import torch
from cogvideox_fun.tools import comfyui_server as comfy
from graph import Failed, Lab
from lora_kinds import CONVOLUTION, LINEAR
from safetensors.torch import save_file
from test_stress import sampled
from tiny_model import write_tiny_model

LINEAR_LAYER, CONVOLUTION_LAYER = "transformer_blocks.0.attn1.to_q", "patch_embed.proj"
KINDS = [(LINEAR_LAYER, kind) for kind in LINEAR] + [(CONVOLUTION_LAYER, kind) for kind in CONVOLUTION]


# shortened while they are in use


@pytest.fixture(scope="module")
def unmapped(host, lab, tmp_path_factory):
    """A ComfyUI that reads files instead of mapping them."""
    base = tmp_path_factory.mktemp("unmapped")
    (base / "custom_nodes").mkdir()
    for entry in (lab.base / "custom_nodes").iterdir():
        if entry.name != "cogvideox-fun":
            (base / "custom_nodes" / entry.name).symlink_to(entry.resolve())
    with comfy.serve(host, base, "--disable-mmap") as server:
        yield Lab(server, base)


@pytest.fixture
def ours(unmapped, lab):
    """A model, a LoRA for it and a GGUF file, to spoil: the folders that they lie in."""
    models = unmapped.base / "models"
    model = write_tiny_model(models / "CogVideoX_Fun" / "spoiled", "5b")
    folders = {part: model / part for part in ("transformer", "vae", "text_encoder")}
    folders |= {"lora": models / "loras", "gguf": models / "diffusion_models"}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    pair = {f"{LINEAR_LAYER}.{part}": value for part, value in LINEAR["lora"].items()}
    save_file(pair, folders["lora"] / "spoiled.safetensors")
    shutil.copy(lab.base / "models" / "diffusion_models" / "q8.gguf", folders["gguf"] / "spoiled.gguf")
    yield folders
    shutil.rmtree(model)


@pytest.mark.long
@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "lora", "gguf"])
def test_a_file_shortened_in_place_spoils_nothing_without_mmap(host, unmapped, ours, part):
    """Between loading and running: what was read is used, the video is the same, and the next load names the file."""
    if part == "gguf" and not (host.path / "custom_nodes" / "ComfyUI-GGUF").is_dir():
        pytest.skip("ComfyUI-GGUF is not installed in ComfyUI")

    def video(spoil: bool) -> torch.Tensor:
        unmapped.server.post("/free", {"unload_models": True, "free_memory": True})
        graph = unmapped.graph()
        loaded = graph.loader("spoiled")
        parts = {"model": loaded[0], "text_encoder": loaded[1], "vae": loaded[2]}
        if part == "gguf":
            parts["model"] = graph.loader("spoiled.gguf")[0]
        if part == "lora":
            parts["model"] = graph.fun("LoraLoader", model=loaded[0], lora_name="spoiled.safetensors", strength=1.0)
        if spoil:
            place = part if part in parts else "model"
            parts[place] = graph.node("ProbeShorten", value=parts[place], folder=str(ours[part]))
        latent = graph.fun("EmptyLatent", width=48, height=48, length=5, batch_size=1)
        value = graph.sampler(parts["model"], *graph.prompts(parts["text_encoder"]), latent, steps=2)
        return graph.get(graph.fun("VAEDecode", vae=parts["vae"], latent=value, tile_size=0, overlap=64))[0]

    expected = video(spoil=False)
    assert torch.equal(video(spoil=True), expected)
    with pytest.raises(
        Failed, match="spoiled.*(safetensors is truncated.*download it again|gguf is not among those found)"
    ):
        video(spoil=False)


# LoRAs


def with_lora(lab, parts: dict[str, torch.Tensor], layer: str) -> torch.Tensor:
    path = lab.base / "models" / "loras" / f"kind-{next(lab.numbers)}.safetensors"
    save_file({f"diffusion_model.{layer}.{part}": value.contiguous() for part, value in parts.items()}, path)
    graph, model, *rest = lab.setting("tiny-5b")
    patched = graph.fun("LoraLoader", model=model, lora_name=path.name, strength=1.0)
    return graph.get(graph.sampler(patched, *rest, steps=2))[0]


@pytest.mark.long
@pytest.mark.parametrize("layer, kind", KINDS)
def test_every_kind_of_lora_changes_its_layer(lab, layer, kind):
    """ComfyUI leaves out no part of it, which it would write to its log."""
    parts = (LINEAR if layer == LINEAR_LAYER else CONVOLUTION)[kind]
    without, size = sampled(lab, "tiny-5b"), lab.log_size
    assert (with_lora(lab, parts, layer) - without).abs().max() > 1e-3
    log = lab.log_since(size)
    assert f"1 of the model's layers changed, {len(parts)} keys matched, 0 unmatched" in log
    assert "ERROR" not in log and "not loaded" not in log and "MISMATCH" not in log


# tokenizers


@pytest.fixture
def text_model(lab):
    """A model whose text encoder may be spoiled."""
    folder = write_tiny_model(lab.base / "models" / "CogVideoX_Fun" / "other-text", "5b")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("loader", ["ModelLoader", "TextEncoderLoader"])
def test_a_tokenizer_with_more_words_than_the_text_encoder(lab, text_model, loader):
    """ComfyUI's own, where the folder has none: an error from the loader, not an IndexError of some prompts."""
    words = "ComfyUI's T5 tokenizer gives ids up to 32099, .* has embeddings for 128"
    shutil.rmtree(text_model / "tokenizer")
    graph = lab.graph()
    if loader == "ModelLoader":
        clip = graph.loader("other-text")[1]
    else:
        clip = graph.fun("TextEncoderLoader", text_encoder="other-text/text_encoder")
    with pytest.raises(Failed, match=f"CogVideoXFun{loader}: {words}: put the model's own tokenizer"):
        graph.get(graph.prompts(clip)[0])

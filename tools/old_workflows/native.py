"""ComfyUI's own nodes in graphs with its CogVideoX. Its samplers and VOID nodes stay: they take this pack's MODEL."""

from . import facts
from .conversion import Conversion
from .graph import Node

CLIP_TYPE = "cogvideox"  # of CLIPLoader


def clip_type(node: Node) -> object:
    if "type" in node.values:
        return node.values["type"]
    saved = node.data.get("widgets_values")
    return saved[1] if isinstance(saved, list) and len(saved) > 1 else None


def convert(conversion: Conversion) -> None:
    """Rewrite loaders, empty latents and VAE nodes, if the only text encoder of the graph is that of CogVideoX."""
    types = {clip_type(node) for node in conversion.graph.of_kind("CLIPLoader")}
    if types != {CLIP_TYPE}:
        return
    handlers = {
        "UNETLoader": model,
        "CLIPLoader": text_encoder,
        "VAELoader": vae,
        "VAEEncode": encode,
        "VAEDecode": decode,
        "VAEDecodeTiled": decode,
        "EmptyHunyuanLatentVideo": latent,
    }
    for kind, handler in handlers.items():
        for node in conversion.graph.of_kind(kind):
            if conversion.read(node, facts.NATIVE[kind]):
                handler(conversion, node)


def model(conversion: Conversion, node: Node) -> None:
    given = node.values.get("weight_dtype", "default")
    weight_dtype = "fp8_e4m3fn" if given.startswith("fp8_e4m3fn") else "default"
    if given == "fp8_e5m2":
        conversion.problem(node, "there is no fp8_e5m2: the default is used")
    name = conversion.given(node, "unet_name")
    conversion.replace(node, "CogVideoXFunModelLoader", model=name, weight_dtype=weight_dtype)


def text_encoder(conversion: Conversion, node: Node) -> None:
    conversion.replace(node, "CogVideoXFunTextEncoderLoader", text_encoder=conversion.given(node, "clip_name"))


def vae(conversion: Conversion, node: Node) -> None:
    conversion.replace(node, "CogVideoXFunVAELoader", vae_name=conversion.given(node, "vae_name"))


def encode(conversion: Conversion, node: Node) -> None:
    """Without noise augmentation, which ComfyUI's node does not have."""
    inputs = {"vae": node.links.get("vae"), "video": node.links.get("pixels")}
    conversion.replace(node, "CogVideoXFunVAEEncode", **inputs, noise_augmentation=0.0)


def decode(conversion: Conversion, node: Node) -> None:
    tiles = {name: conversion.given(node, name) for name in ("tile_size", "overlap")}
    inputs = {"vae": node.links.get("vae"), "latent": node.links.get("samples")}
    conversion.replace(node, "CogVideoXFunVAEDecode", **inputs, **tiles)
    if "temporal_size" in node.values:
        conversion.remark(node, "there are no temporal tiles: the VAE works on a few frames at a time")


def latent(conversion: Conversion, node: Node) -> None:
    size = {name: conversion.given(node, name) for name in ("width", "height", "length", "batch_size")}
    conversion.replace(node, "CogVideoXFunEmptyLatent", **size)

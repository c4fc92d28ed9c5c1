"""The VAE at its real size: seconds and peak bytes of decoding and encoding, whole and in tiles, beside the peers."""

from pathlib import Path

import torch

from ...model_loading.comfyui.vae import load_vae
from .. import peers, traced
from . import models
from .measure import Scale, random_state, timed


def measure(scale: Scale, folder: Path, write) -> dict:
    """Seconds include the way of the pixels to the host's memory; `declared` is what ComfyUI is told that it takes."""
    found: dict = {}
    vae = load_vae(models.write_vae(scale, folder))
    t, h, w = scale.first
    frames = 4 * t - 3
    latent = torch.randn(1, 16, t, h, w)
    pixels = torch.rand(frames, 8 * h, 8 * w, 3)
    tile = traced.TILE if h > traced.TILE else h // 2
    runs = {
        "decode": lambda: vae.decode(latent),
        "decode in tiles": lambda: vae.decode_tiled(latent, tile_x=tile, tile_y=tile, overlap=tile // 4),
        "encode": lambda: vae.encode(pixels),
        "encode in tiles": lambda: vae.encode_tiled(pixels, tile_x=8 * tile, tile_y=8 * tile, overlap=2 * tile),
    }
    for name, run in runs.items():
        with torch.inference_mode():
            found[name] = timed(run, scale.device)
        write(found)
    dtype = vae.vae_dtype
    found["dtype"] = str(dtype)
    found["decode"]["declared"] = vae.memory_used_decode(latent.shape, dtype)
    found["encode"]["declared"] = vae.memory_used_encode((1, 3, frames, 8 * h, 8 * w), dtype)
    found["decode in tiles"]["declared"] = vae.memory_used_decode((1, 16, t, tile, tile), dtype)
    z = latent.to(scale.device, torch.bfloat16)
    for name, make in {"diffusers": diffusers_decoder, "ComfyUI's own class": native_decoder}.items():
        decode = make(scale)
        with torch.inference_mode():
            found[f"decode, {name}"] = timed(lambda decode=decode: decode(z).cpu(), scale.device, repeats=1)
        del decode
        write(found)
    return found


def diffusers_decoder(scale: Scale):
    with torch.device("meta"):
        vae = peers.diffusers_vae(scale.vae)
    vae.load_state_dict(random_state(vae, scale.device), assign=True)
    return lambda z: vae.decode(z).sample


def native_decoder(scale: Scale):
    from comfy.ldm.cogvideo.vae import AutoencoderKLCogVideoX

    widths = {"block_out_channels": scale.vae.block_out_channels, "layers_per_block": scale.vae.layers_per_block}
    vae = AutoencoderKLCogVideoX(**widths)
    vae = vae.to(scale.device, torch.bfloat16).requires_grad_(False)
    return vae.decode

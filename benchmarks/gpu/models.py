"""Models of the real size with random weights: ours as files that the pack loads, the peers' in place."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...model_loading.comfyui.load import load_model
from ...model_loading.files.checkpoint import SAVED_CONFIG, encode_config, open_checkpoint
from ...model_loading.networks.config import TEXT_TOKENS
from ...model_loading.networks.transformer import CogVideoXTransformer
from ...model_loading.networks.vae import CogVideoXVAE
from ...tools.pack import ROOT
from .. import peers
from .measure import Scale, random_state

NANO = ROOT / "models" / "nano"


def write_transformer(scale: Scale, name: str, folder: Path) -> Path:
    """Write a transformer's file, bf16, with its configuration in it."""
    with torch.device("meta"):
        model = CogVideoXTransformer(scale.configs[name])
    state = {key: value.cpu() for key, value in random_state(model, scale.device).items()}
    saved = {**open_checkpoint(NANO).saved_config, "transformer": vars(scale.configs[name])}
    path = folder / f"{name}.safetensors"
    save_file({**state, SAVED_CONFIG: encode_config(saved)}, path)
    return path


def write_vae(scale: Scale, folder: Path) -> Path:
    """Write a VAE's folder, bf16."""
    with torch.device("meta"):
        vae = CogVideoXVAE(scale.vae)
    path = folder / "vae"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(dataclasses.asdict(scale.vae)))
    state = {key: value.cpu() for key, value in random_state(vae, scale.device).items()}
    save_file(state, path / "diffusion_pytorch_model.safetensors")
    return path


class Call:
    """A MODEL that is called as ComfyUI's samplers call it.

    Args:
        path: of its file.
        options: of `load_model`.
    """

    def __init__(self, scale: Scale, path: Path, **options):
        self.scale = scale
        self.patcher = load_model(path, **options)

    def load(self, latent: tuple[int, int, int], batch: int) -> None:
        """Let ComfyUI place the weights for calls of a latent T h w."""
        import comfy.model_management

        needed = self.patcher.model.memory_required([batch, 16, *latent])
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)

    def inputs(self, latent: tuple[int, int, int], batch: int) -> tuple[torch.Tensor, torch.Tensor, dict]:
        """(noise, sigma, conditioning) as the samplers give them, float32."""
        model = self.patcher.model
        generator = torch.Generator(self.scale.device).manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self.scale.device)

        sigma = model.model_sampling.sigmas[500].to(self.scale.device).expand(batch)
        extra = random(batch, model.config.in_channels - 16, *latent)
        return random(batch, 16, *latent), sigma, {
            "c_crossattn": random(batch, TEXT_TOKENS, model.config.text_embed_dim),
            "concat_latents": extra,
        }  # fmt: skip

    def runner(self, latent: tuple[int, int, int], batch: int):
        """A function that makes one call."""
        self.load(latent, batch)
        x, sigma, conds = self.inputs(latent, batch)
        options = self.patcher.model_options["transformer_options"]
        return lambda: self.patcher.model.apply_model(x, sigma, transformer_options={**options}, **conds)


def diffusers_runner(scale: Scale, name: str, state: dict, latent: tuple[int, int, int], batch: int):
    """A call of diffusers' class with the same weights, and positions of its own making."""
    config, device = scale.configs[name], scale.device
    t, h, w = latent
    with torch.device("meta"):
        model = peers.diffusers_transformer(config, h, w)
    model.load_state_dict(state, assign=True, strict=False)  # the 2B's table is a buffer of its own
    model = to_device(model, device)
    rope = None
    if config.use_rotary_positional_embeddings:
        tokens = t * h * w // 4
        angles = torch.rand(tokens, config.attention_head_dim, device=device)
        rope = angles.cos(), angles.sin()
    x = torch.randn(batch, t, config.in_channels, h, w, device=device, dtype=torch.bfloat16)
    text = torch.randn(batch, TEXT_TOKENS, config.text_embed_dim, device=device, dtype=torch.bfloat16)
    timestep = torch.full((batch,), 500, device=device)
    return lambda: model(x, text, timestep, image_rotary_emb=rope, return_dict=False)


def native_runner(scale: Scale, name: str, latent: tuple[int, int, int], batch: int):
    """A call of ComfyUI's own class, with random weights."""
    from ..native import native_transformer

    config, device = scale.configs[name], scale.device
    with torch.device("meta"):
        model = native_transformer(config, dtype=torch.bfloat16)
    model.load_state_dict(random_state(model, device), assign=True)
    model = to_device(model, device)
    x = torch.randn(batch, config.in_channels, *latent, device=device, dtype=torch.bfloat16)
    text = torch.randn(batch, TEXT_TOKENS, config.text_embed_dim, device=device, dtype=torch.bfloat16)
    timestep = torch.full((batch,), 500.0, device=device)
    return lambda: model(x, timestep, text)


def to_device(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Move a model there whose buffers may still be on the meta device; those are filled with zeros."""
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module.register_buffer(name, torch.zeros_like(buffer, device=device), persistent=False)
    return model.to(device=device, dtype=torch.bfloat16).requires_grad_(False)


def compiled(patcher):
    """A MODEL with each of its blocks compiled by inductor, with ComfyUI's helper: one compilation serves all."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    patched = patcher.clone(disable_dynamic=True)
    blocks = len(patched.model.diffusion_model.transformer_blocks)
    keys = [f"diffusion_model.transformer_blocks.{index}" for index in range(blocks)]
    guards = {"guard_filter_fn": lambda guards: ["transformer_options" not in g.name for g in guards]}
    set_torch_compile_wrapper(patched, backend="inductor", keys=keys, options=guards)
    return patched

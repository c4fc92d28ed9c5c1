"""Write model folders in hub layout."""

import dataclasses
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...model_loading.networks.config import TransformerConfig
from ...model_loading.networks.vae import VAEConfig
from ...sampling.schedule import NoiseSchedule

PARTS = ("transformer", "vae", "tiny_decoder", "text_encoder", "tokenizer", "scheduler")
FILES = {
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "tiny_decoder": "tiny_decoder/model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
}


def write_json(path: Path, value: dict) -> None:
    """Write a JSON file. An older file of the name is replaced, not written into: it may be a hard link."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def save_weights(
    path: Path,
    state: dict[str, torch.Tensor],
    dtype: torch.dtype | None = None,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a safetensors file, in ``dtype`` or that of its tensors. An older file stays until it is complete.

    Args:
        metadata: texts for the file's header. ``format``, without which transformers before 4.48.2 reads no file, is
            always there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    tensors = {key: value.to(dtype or value.dtype).cpu().contiguous() for key, value in state.items()}
    temporary.unlink(missing_ok=True)
    temporary.touch()
    mode = temporary.stat().st_mode  # that of any new file; safetensors 0.8 writes some that only their owner can read
    save_file(tensors, temporary, {"format": "pt", **(metadata or {})})
    temporary.chmod(mode)
    temporary.replace(path)


def write_transformer_config(folder: Path, config: TransformerConfig) -> None:
    values = {"_class_name": "CogVideoXTransformer3DModel", **dataclasses.asdict(config)}
    write_json(folder / "transformer" / "config.json", values)


def write_configs(folder: Path, transformer: TransformerConfig, vae: VAEConfig, schedule: NoiseSchedule) -> None:
    """Write the configurations of the transformer, the VAE and the scheduler, with diffusers' class names."""
    write_transformer_config(folder, transformer)
    write_json(folder / "vae" / "config.json", {"_class_name": "AutoencoderKLCogVideoX", **dataclasses.asdict(vae)})
    values = {"_class_name": "CogVideoXDDIMScheduler", **schedule.to_config()}
    write_json(folder / "scheduler" / "scheduler_config.json", values)


def write_text_encoder(folder: Path, model) -> None:
    """Write the configuration and the weights of transformers' T5 encoder."""
    state = {key: value for key, value in model.state_dict().items() if key != "encoder.embed_tokens.weight"}  # tied
    write_json(folder / "text_encoder" / "config.json", model.config.to_dict())
    save_weights(folder / FILES["text_encoder"], state)

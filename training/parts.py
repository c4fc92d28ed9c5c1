"""From model folders to tasks, and what was trained back into a model folder."""

import shutil
from pathlib import Path

import torch

from ..model_loading.pipeline import load_transformer, load_vae, open_whole
from ..model_loading.text_encoder import TextEncoder
from ..model_loading.weights import open_weights, read_json
from .config import Phase
from .hub import FILES, PARTS, save_weights, write_json, write_text_encoder
from .lora import add_lora, lora_state
from .transformer_task import TransformerTask
from .vae_task import VAETask

LORA_FILE = "lora.safetensors"


class Parts:
    """A phase's task, and where what it trains goes.

    Args:
        dtype: of the parts that are not trained; those that are, are float32.
    """

    def __init__(self, phase: Phase, dtype: torch.dtype = torch.float32):
        self.phase = phase
        self.checkpoint = checkpoint = open_whole(phase.model)
        if phase.task == "vae":
            self.task = VAETask(
                load_vae(checkpoint.vae), phase.kl_weight, phase.masked, phase.train_encoder, phase.agreement_weight
            )
            return
        lora = phase.task == "lora"
        transformer = load_transformer(
            checkpoint, dtype if lora else torch.float32, position_mode=phase.positions
        ).train()
        self.layers = add_lora(transformer, phase.lora_rank, phase.lora_alpha) if lora else None
        if not lora:
            transformer.requires_grad_(True)
        text_dtype = torch.float32 if phase.train_text_encoder else dtype
        self.task = TransformerTask(
            transformer,
            load_vae(checkpoint.vae, dtype),
            TextEncoder(checkpoint.text_encoder, checkpoint.tokenizer, text_dtype),
            checkpoint.schedule.alphas_cumprod(),
            checkpoint.scale_factor,
            phase.caption_dropout,
            phase.train_text_encoder,
        )

    def write(self, output: str | Path, scale_factor: float) -> None:
        """Write the model folder with what was trained, or the LoRA's file.

        Args:
            scale_factor: of the latent space, see `measure_scale`.
        """
        output = Path(output)
        if self.phase.task == "lora":
            save_weights(output / LORA_FILE, lora_state(self.layers))
            return
        shutil.copytree(self.phase.model, output, dirs_exist_ok=True)
        if self.phase.task == "vae":
            save_weights(output / FILES["vae"], self.task.vae.state_dict())
            config = read_json(output / "vae" / "config.json")
            write_json(output / "vae" / "config.json", {**config, "scaling_factor": scale_factor})
            return
        save_weights(output / FILES["transformer"], self.task.transformer.state_dict())
        if self.phase.train_text_encoder:
            write_text_encoder(output, self.task.t5)


@torch.no_grad()
def measure_scale(vae, videos) -> float:
    """What brings latents to unit deviation: 1 / standard deviation over videos B F H W 3 of 0..1."""
    latents = [vae.encode((video * 2 - 1).movedim(-1, 1)).flatten() for video in videos]
    return round(float(1 / torch.cat(latents).std()), 6)


def export_half(folder: str | Path, output: str | Path) -> None:
    """Copy the parts of a model folder with their weights in float16; what is no part of a model stays behind."""
    folder, output = Path(folder), Path(output)
    open_whole(folder)
    for path in sorted(p for part in PARTS for p in (folder / part).glob("*") if p.is_file()):
        target = output / path.relative_to(folder)
        if path.suffix == ".safetensors":
            save_weights(target, open_weights(path).load(), torch.float16)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

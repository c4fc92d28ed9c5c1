"""A model without ComfyUI: text, images and noise to a video, for the demo, the tests and training.

The MODEL and VAE of ComfyUI are made of the same parts. Only T5 is another one: transformers', not ComfyUI's.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from ..sampling.diffusers_samplers import generator_after, run_sampler
from ..sampling.geometry import SPATIAL_COMPRESSION, check_size, frames_to_latent_t
from ..sampling.inpaint import inpaint_latents, reference_pixels
from ..sampling.masks import fit_mask, mask_to_latent
from ..sampling.schedule import run_ddim
from .errors import CheckpointError, naming
from .files.checkpoint import Checkpoint, load_vae_config, open_checkpoint
from .files.safetensors_files import open_weights, read_json
from .files.t5 import FolderTokenizer, check_t5, check_vocabulary, comfy_t5_config, t5_weights, tokenize
from .networks.transformer import CogVideoXTransformer
from .networks.vae import CogVideoXVAE, draw


def open_whole(folder: str | Path) -> Checkpoint:
    """A folder with all its parts.

    Raises:
        CheckpointError: a part is missing or broken.
    """
    checkpoint = open_checkpoint(folder)
    for part in ("vae", "text_encoder", "tokenizer"):
        if getattr(checkpoint, part) is None:
            raise CheckpointError(f"has no {part}: download the whole repository", folder)
    return checkpoint


def load_transformer(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, **options) -> CogVideoXTransformer:
    """The transformer of a checkpoint; options as for `CogVideoXTransformer`."""
    model = CogVideoXTransformer(checkpoint.config, dtype=dtype, device="meta", **options)
    model.eval().requires_grad_(False)
    checkpoint.weights.assign_to(model, dtype)
    return model


def load_vae(path: Path, dtype: torch.dtype = torch.float32) -> CogVideoXVAE:
    """A VAE folder or file."""
    weights = open_weights(path)
    with naming(path):
        model = CogVideoXVAE(load_vae_config(path, weights), dtype=dtype, device="meta").eval().requires_grad_(False)
    weights.assign_to(model, dtype)
    return model


class TextEncoder:
    """transformers' T5 with a folder's weights and tokenizer; ComfyUI has its own T5."""

    def __init__(self, folder: Path, tokenizer: Path, dtype: torch.dtype = torch.float32):
        import transformers

        folder = Path(folder)
        values, weights = read_json(folder / "config.json"), t5_weights(open_weights(folder))
        weights.check_plain()
        self.tokenizer = FolderTokenizer(tokenizer)
        with naming(folder):
            check_t5(comfy_t5_config(values), weights)
        config = transformers.T5Config.from_dict(values)
        check_vocabulary(tokenizer, self.tokenizer.get_vocab().values(), config.vocab_size, folder)
        with torch.device("meta"):  # random values for a T5-XXL would take 19 GB and minutes
            self.model = transformers.T5EncoderModel(config).eval()
        self.model.encoder.embed_tokens = None  # it is shared's, which has its weights in the file
        weights.assign_to(self.model, dtype)
        self.model.encoder.embed_tokens = self.model.shared

    @torch.no_grad()
    def __call__(self, prompt: str) -> torch.Tensor:
        """Features of a prompt, [1, L, d_model]."""
        return self.model(input_ids=tokenize(self.tokenizer, prompt).to(self.model.device)).last_hidden_state


@dataclasses.dataclass
class Pipeline:
    """The parts of a model folder, loaded."""

    checkpoint: Checkpoint
    transformer: CogVideoXTransformer
    vae: CogVideoXVAE
    text_encoder: TextEncoder

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Pipeline":
        """Load a folder in hub layout, float32, on the CPU.

        Raises:
            CheckpointError: a part is missing or broken.
        """
        checkpoint = open_whole(folder)
        return cls(
            checkpoint,
            load_transformer(checkpoint),
            load_vae(checkpoint.vae),
            TextEncoder(checkpoint.text_encoder, checkpoint.tokenizer),
        )

    def to(self, device: torch.device | str) -> "Pipeline":
        """Move all parts to a device."""
        for part in (self.transformer, self.vae, self.text_encoder.model):
            part.to(device)
        return self

    @torch.no_grad()
    def condition(
        self, video: torch.Tensor, mask: torch.Tensor, noise_augmentation: float = 0.0, seed: int = 0
    ) -> torch.Tensor | None:
        """What an InP model takes beside the noise, B 17 T h w, scaled; None (zeros) where the mask keeps nothing.

        Args:
            video: F H W 3, 0..1, 4n + 1 frames, sizes multiples of 16.
            mask: F H W, 1 = generate.
        """
        length, height, width, _ = video.shape
        check_size(width, height)
        mask = fit_mask(mask, length, height, width)
        if mask.all():
            return None
        pixels = reference_pixels(video, mask, noise_augmentation, seed)
        latent = self.vae.encode(pixels.movedim(-1, 0)[None])  # THWC -> 1CTHW
        scale = self.checkpoint.scale_factor
        return inpaint_latents(mask_to_latent(mask, *latent.shape[2:])[None, None], latent * scale, scale)

    @torch.no_grad()
    def encode(self, video: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        """A video, F H W 3 of 0..1, as a scaled latent: the distribution's mode, or a draw from a seed.

        VideoX-Fun encodes reference and control videos by the mode, and draws the start of video to video.
        """
        pixels = reference_pixels(video).movedim(-1, 0)[None]  # THWC -> 1CTHW
        latent = self.vae.encode(pixels) if seed is None else draw(self.vae.encode_moments(pixels), seed)
        return latent * self.checkpoint.scale_factor

    def noise(self, width: int, height: int, length: int, seed: int) -> torch.Tensor:
        """Unit noise B C T h w from a seed, the same as ComfyUI's samplers draw."""
        generator = torch.Generator("cpu").manual_seed(seed)
        grid = height // SPATIAL_COMPRESSION, width // SPATIAL_COMPRESSION
        return torch.randn(
            1, self.checkpoint.config.out_channels, frames_to_latent_t(length), *grid, generator=generator
        )

    @torch.no_grad()
    def sample(
        self,
        # what to sample
        noise: torch.Tensor,
        positive: torch.Tensor,
        negative: torch.Tensor,
        concat_latents: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
        # how to sample
        steps: int = 50,
        cfg: float = 6.0,
        spacing: str = "auto",
        denoise: float = 1.0,
        sampler: str | None = None,
        seed: int = 0,
        callback: Callable[[int, int, torch.Tensor, torch.Tensor], None] | None = None,
    ) -> torch.Tensor:
        """Run VideoX-Fun's DDIM, or one of diffusers' schedulers, with classifier-free guidance.

        Args:
            noise: B 16 T h w.
            positive, negative: text features, [B, L, C] or, for all of a batch, [1, L, C].
            concat_latents: from `condition`, or scaled control latents; B or 1 of them.
            start: the scaled latent of a video, at denoise below 1.
            sampler: see `run_sampler`; None is VideoX-Fun's DDIM.
            seed: what ``noise`` was drawn from; Euler A continues its generator.
            callback: called after each step with (step, total, denoised, x).

        Returns:
            The scaled latent, B 16 T h w.
        """
        schedule = self.checkpoint.schedule
        predict = self.guided(len(noise), positive, negative, concat_latents, cfg)
        if sampler is not None:
            generator = generator_after(seed, noise.shape)
            return run_sampler(sampler, schedule, predict, noise, start, generator, steps, spacing, denoise, callback)
        return run_ddim(schedule, predict, noise, start, steps, spacing, denoise, callback)

    def guided(
        self,
        batch_size: int,
        positive: torch.Tensor,
        negative: torch.Tensor,
        concat_latents: torch.Tensor | None,
        cfg: float,
    ) -> Callable[[torch.Tensor, float], torch.Tensor]:
        """(x, timestep) -> v with classifier-free guidance; the arguments are those of `sample`."""
        repeats = 2 if cfg > 1 else 1
        text = torch.cat([text.expand(batch_size, -1, -1) for text in (negative, positive)[-repeats:]])
        if concat_latents is not None:
            concat_latents = concat_latents.expand(batch_size, -1, -1, -1, -1).repeat(repeats, 1, 1, 1, 1)

        def predict(x: torch.Tensor, timestep: float) -> torch.Tensor:
            batch = x.repeat(repeats, 1, 1, 1, 1)
            v = self.transformer(
                batch, torch.full((len(batch),), timestep, device=x.device), text, concat_latents=concat_latents
            )
            uncond, *cond = v.chunk(repeats)
            return uncond + cfg * (cond[0] - uncond) if cond else uncond

        return predict

    @torch.no_grad()
    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """A scaled latent, 1 16 T h w, as a video F H W 3 of 0..1."""
        pixels = self.vae.decode(latent / self.checkpoint.scale_factor)[0].movedim(0, -1)  # CTHW -> THWC
        return (pixels / 2 + 0.5).clamp(0, 1)

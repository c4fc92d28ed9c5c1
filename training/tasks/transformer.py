"""Training of the transformer or of a LoRA: v-prediction on the model's own schedule."""

import torch
from torch import nn

from ...model_loading.files.t5 import tokenize
from ...model_loading.networks.transformer import CogVideoXTransformer
from ...model_loading.networks.vae import CogVideoXVAE
from ...model_loading.standalone import TextEncoder
from ...sampling.inpaint import add_reference_noise, inpaint_latents, mask_video
from ...sampling.masks import resize_mask_3d
from ..data.samples import Batch


def v_target(clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """``sqrt(a) noise - sqrt(1 - a) clean`` (Salimans and Ho 2022); alpha: signal power, shaped to broadcast."""
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def noised(clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """``sqrt(a) clean + sqrt(1 - a) noise``."""
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


class TransformerTask(nn.Module):
    """The mean squared error of v over a batch.

    Args:
        transformer: an InP (33 channels) or text (16 channels) model; parameters that require a gradient are trained.
        vae: frozen.
        text_encoder: frozen, unless ``train_text_encoder``.
        alphas: signal power per timestep, see `NoiseSchedule.alphas_cumprod`.
        caption_dropout: how often a caption is replaced by an empty one, for guidance.

    Raises:
        ValueError: it is a Control model, and no source has control videos.
    """

    def __init__(
        self,
        # what
        transformer: CogVideoXTransformer,
        vae: CogVideoXVAE,
        text_encoder: TextEncoder,
        # how
        alphas: torch.Tensor,
        scale_factor: float,
        caption_dropout: float,
        train_text_encoder: bool = False,
    ):
        super().__init__()
        kind = transformer.config.conditioning
        if kind not in ("text", "inpaint"):
            raise ValueError(f"the model takes {kind} latents, and no source has them: train an InP or text model")
        self.transformer = transformer
        # With autocast the sum over all blocks would have half precision, which is too coarse to copy known pixels.
        transformer.patch_embed.register_forward_hook(lambda module, args, out: tuple(x.float() for x in out))
        self.vae = vae.requires_grad_(False).eval()
        self.t5 = text_encoder.model.requires_grad_(train_text_encoder)
        self.tokenizer = text_encoder.tokenizer
        self.register_buffer("alphas", alphas, persistent=False)
        self.scale_factor, self.caption_dropout = scale_factor, caption_dropout
        self.train_text_encoder = train_text_encoder

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """B F H W 3 of -1..1 -> the scaled latent B 16 t h w, float32."""
        moments = torch.cat(list(self.vae.encode_stream(video.movedim(-1, 1))), dim=2)
        return moments[:, : self.vae.config.latent_channels].float() * self.scale_factor

    def conditioning(self, batch: Batch, video: torch.Tensor, latent: torch.Tensor) -> torch.Tensor | None:
        """The 17 channels of an InP model, as in sampling: zeros for a clip of which nothing is known.

        Args:
            video: the batch's, -1..1.
            latent: of the whole video.
        """
        if self.transformer.config.conditioning == "text":
            return None
        mask = batch["mask"]
        extra = latent.new_zeros(len(latent), 17, *latent.shape[2:])
        some = ~mask.flatten(1).bool().all(dim=1)  # at least one pixel is known
        if some.any():
            masked = self.reference(batch, mask_video(video, mask))
            small = resize_mask_3d(mask[some][:, None], *latent.shape[2:])
            extra[some] = inpaint_latents(small, self.encode(masked[some]), self.scale_factor)
        return extra

    def reference(self, batch: Batch, masked: torch.Tensor) -> torch.Tensor:
        """The masked video B F H W 3, with noise if the configuration asks for it. Black stays black."""
        if not self.transformer.config.reference_noise:
            return masked
        draws = zip(masked, batch["reference_noise"].tolist(), batch["reference_seed"].tolist(), strict=True)
        return torch.stack([add_reference_noise(clip, noise, seed) for clip, noise, seed in draws])

    def text(self, captions: list[str], chance: torch.Tensor) -> torch.Tensor:
        """Features B L C; a caption whose chance is below the dropout is empty."""
        kept = ["" if c < self.caption_dropout else text for text, c in zip(captions, chance.tolist(), strict=True)]
        ids = torch.cat([tokenize(self.tokenizer, text) for text in kept]).to(self.alphas.device)
        with torch.set_grad_enabled(self.train_text_encoder and torch.is_grad_enabled()):
            return self.t5(input_ids=ids).last_hidden_state

    def forward(self, batch: Batch) -> torch.Tensor:
        video = batch["video"] * 2 - 1
        latent = self.encode(video)
        extra = self.conditioning(batch, video, latent)
        context = self.text(batch["captions"], batch["chance"])

        noise, time = batch["noise"].flatten(0, 1), batch["time"].flatten()  # B R ... -> (B R) ...
        repeats = batch["time"].shape[1]
        latent, context = latent.repeat_interleave(repeats, 0), context.repeat_interleave(repeats, 0)
        extra = None if extra is None else extra.repeat_interleave(repeats, 0)
        timestep = (time * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        alpha = self.alphas[timestep].float()[:, None, None, None, None]
        v = self.transformer(noised(latent, noise, alpha), timestep, context, concat_latents=extra)
        return (v.float() - v_target(latent, noise, alpha)).square().mean()

"""From clips to what a transformer is trained on: latents, conditioning and text features, of frozen models."""

import logging
from typing import TypedDict

import torch

from ...model_loading.files.t5 import fit_tokens
from ...model_loading.networks.config import TransformerConfig
from ...model_loading.networks.vae import CogVideoXVAE
from ...model_loading.standalone import TextEncoder
from ...sampling.inpaint import add_reference_noise, inpaint_latents, mask_video
from ...sampling.masks import resize_mask_3d
from ..data.samples import Batch

log = logging.getLogger(__name__)


class Encoded(TypedDict, total=False):
    """The input of a `TransformerTask`: B clips with R noises each. It has either text features or their tokens."""

    latent: torch.Tensor  # B 16 t h w, scaled, float32
    extra: torch.Tensor | None  # B C t h w, the channels beyond the noise, scaled; None for text models
    context: torch.Tensor  # B L C, text features
    ids: torch.Tensor  # B L, where T5 is trained
    noise: torch.Tensor  # B R 16 t h w
    time: torch.Tensor  # B R, uniform in 0..1: how far along the schedule


def drop_control(latent: torch.Tensor, seeds: torch.Tensor, share: float) -> torch.Tensor:
    """Control latents B C t h w with zeros for a share of the clips.

    Args:
        seeds: [B], uniform in 0..2^62: a batch's ``reference_seed``, which a Control model needs for nothing else.
    """
    dropped = seeds.float() / 2**62 < share
    return latent.masked_fill(dropped[:, None, None, None, None], 0.0)


class Encoders:
    """A frozen VAE and T5. The VAE of a model is used as in sampling.

    Args:
        config: of the transformer that is trained: it decides what conditioning is made.
        caption_dropout: how often a caption is replaced by an empty one, for guidance.
        train_text_encoder: T5 is trained: leave it out, and give it tokens.
        control_dropout: how often a Control model gets zeros in place of the control video. VideoX-Fun's trainer of
            CogVideoX never does this (0). Its trainers of Wan do it for 10 % of the clips.

    Raises:
        ValueError: the transformer is of a kind that can't be trained.
    """

    def __init__(
        self,
        # what
        config: TransformerConfig,
        vae: CogVideoXVAE,
        text_encoder: TextEncoder,
        # how
        scale_factor: float,
        caption_dropout: float,
        train_text_encoder: bool = False,
        control_dropout: float = 0.0,
    ):
        if config.conditioning not in ("text", "inpaint", "control"):
            raise ValueError(
                f"the model takes {config.conditioning} latents, and no source has them: train an InP, Control or "
                "text model"
            )
        self.config = config
        self.vae = vae.requires_grad_(False).eval()
        self.text_encoder = text_encoder
        self.scale_factor, self.caption_dropout = scale_factor, caption_dropout
        self.cut = False  # a caption was too long
        self.train_text_encoder, self.control_dropout = train_text_encoder, control_dropout
        if not train_text_encoder:
            text_encoder.model.requires_grad_(False).eval()

    def to(self, device: torch.device) -> "Encoders":
        self.vae.to(device)
        self.text_encoder.model.to(device)
        return self

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Encoded:
        text = self.text(batch["captions"], batch["chance"])
        return {
            **self.latents(batch),
            ("ids" if self.train_text_encoder else "context"): text,
            "noise": batch["noise"],
            "time": batch["time"],
        }

    @torch.no_grad()
    def latents(self, batch: Batch) -> Encoded:
        """What the VAE makes of a batch: ``latent`` and ``extra``."""
        video = batch["video"] * 2 - 1
        latent = self.encode(video)
        return {"latent": latent, "extra": self.conditioning(batch, video, latent)}

    @torch.no_grad()
    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """B F H W 3 of -1..1 -> the scaled latent B 16 t h w, float32."""
        moments = torch.cat(list(self.vae.encode_stream(video.movedim(-1, 1))), dim=2)
        return moments[:, : self.vae.config.latent_channels].float() * self.scale_factor

    def conditioning(self, batch: Batch, video: torch.Tensor, latent: torch.Tensor) -> torch.Tensor | None:
        """The channels beyond the noise, as in sampling: 17 of an InP model, 16 of a Control model (see `control`).

        An InP model gets zeros for a clip of which nothing is known.

        Args:
            video: the batch's, -1..1.
            latent: of the whole video.

        Raises:
            ValueError: the model takes a control video, and the batch has none.
        """
        if self.config.conditioning == "text":
            return None
        if self.config.conditioning == "control":
            return self.control(batch)
        mask = batch["mask"]
        extra = latent.new_zeros(len(latent), 17, *latent.shape[2:])
        some = ~mask.flatten(1).bool().all(dim=1)  # at least one pixel is known
        if some.any():
            masked = self.reference(batch, mask_video(video, mask))
            small = resize_mask_3d(mask[some][:, None], *latent.shape[2:])
            extra[some] = inpaint_latents(small, self.encode(masked[some]), self.scale_factor)
        return extra

    def control(self, batch: Batch) -> torch.Tensor:
        """The scaled latent of the control video, B 16 T h w: the distribution's mode, as in sampling.

        Control videos get no reference noise, on V1.1 neither: VideoX-Fun adds it to InP models alone.
        """
        if "control" not in batch:
            raise ValueError(
                "the model takes a control video, and the batch has none: set control in [data] to 'edges', or to "
                "the suffix of the control videos beside the clips, such as '_depth'"
            )
        return drop_control(self.encode(batch["control"] * 2 - 1), batch["reference_seed"], self.control_dropout)

    def reference(self, batch: Batch, masked: torch.Tensor) -> torch.Tensor:
        """The masked video B F H W 3, with noise if the configuration asks for it. Black stays black."""
        if not self.config.reference_noise:
            return masked
        draws = zip(masked, batch["reference_noise"].tolist(), batch["reference_seed"].tolist(), strict=True)
        return torch.stack([add_reference_noise(clip, noise, seed) for clip, noise, seed in draws])

    @torch.no_grad()
    def text(self, captions: list[str], chance: torch.Tensor) -> torch.Tensor:
        """Features B L C, or tokens B L where T5 is trained. Captions whose chance is below the dropout are empty."""
        kept = ["" if c < self.caption_dropout else text for text, c in zip(captions, chance.tolist(), strict=True)]
        ids = torch.cat([self.tokens(text) for text in kept]).to(chance.device)
        return ids if self.train_text_encoder else self.text_encoder.model(input_ids=ids).last_hidden_state

    def tokens(self, caption: str) -> torch.Tensor:
        """A caption as [1, L] ids. The first caption that is too long is named in the log, in one line."""
        tokenizer = self.text_encoder.tokenizer
        ids = tokenizer(caption)["input_ids"]
        if len(ids) > tokenizer.length:
            if not self.cut:
                log.warning("a caption has %d tokens: T5 reads the first %d of each", len(ids), tokenizer.length)
            self.cut = True
            ids = [*ids[: tokenizer.length - 1], ids[-1]]
        return torch.tensor([fit_tokens(ids, length=tokenizer.length)])

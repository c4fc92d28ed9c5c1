"""Training of a small decoder for a VAE's latent space, see `networks.tiny_decoder`."""

import torch
from torch import nn

from ...model_loading.networks.tiny_decoder import DROPPED, TinyDecoder
from ...model_loading.networks.vae import CogVideoXVAE
from ..data.samples import Batch
from .vae import log_error


class TinyDecoderTask(nn.Module):
    """The loss of a batch: the logarithm of the root mean square error of each clip's -1..1 pixels, as of `VAETask`.

    The frozen VAE encodes the clips, and the decoder restores the clips themselves. It could also be trained on what
    the VAE decodes. That would need the VAE's decoder in every step, and keep its errors.
    """

    def __init__(self, vae: CogVideoXVAE, decoder: TinyDecoder):
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self.decoder = decoder.requires_grad_(True).train()

    def restore(self, pixels: torch.Tensor) -> torch.Tensor:
        """A clip B 3 F H W of -1..1 after the VAE's encoder and the small decoder."""
        with torch.no_grad():
            latents = self.vae.encode(pixels)
        return self.decoder(latents, {})[:, :, DROPPED:].float() * 2 - 1

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch, [1]."""
        pixels = batch["video"].movedim(-1, 1) * 2 - 1  # BFHWC -> BCFHW
        return log_error(self.restore(pixels), pixels)[None]

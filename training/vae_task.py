"""Training of the VAE: reconstruction through the chunks that it runs in, and a little KL divergence."""

import torch
from torch import nn

from ..model_loading.vae import CogVideoXVAE
from ..sampling.inpaint import mask_video
from .samples import Batch


class VAETask(nn.Module):
    """The loss of a batch: mean squared error of -1..1 pixels, plus ``kl_weight`` times the KL divergence.

    Args:
        masked: how often a clip is shown with its unknown part black, as an InP model's reference video is.
        train_encoder: without it the latent space stays what it is, so transformers of it still fit.
    """

    def __init__(self, vae: CogVideoXVAE, kl_weight: float, masked: float, train_encoder: bool = True):
        super().__init__()
        self.vae = vae.requires_grad_(True).train()
        self.vae.encoder.requires_grad_(train_encoder)
        self.kl_weight, self.masked = kl_weight, masked

    def pixels(self, batch: Batch) -> torch.Tensor:
        """What is to be reconstructed, B 3 F H W of -1..1."""
        video = batch["video"] * 2 - 1
        mask = batch["mask"] * (batch["chance"] < self.masked)[:, None, None, None]
        return mask_video(video, mask).movedim(-1, 1)  # BFHWC -> BCFHW

    def forward(self, batch: Batch) -> torch.Tensor:
        pixels = self.pixels(batch)
        moments = torch.cat(list(self.vae.encode_stream(pixels)), dim=2).float()
        mean, logvar = moments.chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        latent = mean + (logvar / 2).exp() * batch["noise"][:, 0]
        restored = torch.cat(list(self.vae.decode_stream(latent)), dim=2).float()
        kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2  # of each latent value, to a unit normal
        return (restored - pixels).square().mean() + self.kl_weight * kl

    def trained(self) -> dict[str, nn.Module]:
        """What the run changes, by the part of the model folder that it belongs to."""
        return {"vae": self.vae}

"""Training of the VAE, in the chunks that it runs in.

The loss has three terms: reconstruction, KL divergence, and agreement between the latents of a clip and of the same
clip with its unknown part black.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ...model_loading.networks.vae import CogVideoXVAE
from ...sampling.geometry import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
from ...sampling.inpaint import mask_video
from ..data.samples import Batch

SMALLEST = 1e-6  # mean square error, so that its logarithm has a gradient at 0


def known_cells(mask: torch.Tensor) -> torch.Tensor:
    """Which latent cells and their neighbours show only known pixels: B F H W (1 = generate) -> B T h w."""
    mask = torch.cat([mask[:, :1].expand(-1, TEMPORAL_COMPRESSION - 1, -1, -1), mask], dim=1)  # 4n + 1 -> 4 (n + 1)
    size = SPATIAL_COMPRESSION
    cells = F.max_pool3d(mask[:, None], (TEMPORAL_COMPRESSION, size, size))
    return F.max_pool3d(cells, (1, 3, 3), stride=1, padding=(0, 1, 1))[:, 0] == 0


def log_error(made: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """The logarithm of the root mean square error of clips, averaged over them; -0.115 of it is 1 dB of PSNR."""
    return ((made - pixels).square().flatten(1).mean(1) + SMALLEST).log().mean() / 2


class VAETask(nn.Module):
    """The loss of a batch.

    It is the logarithm of the root mean square error of each clip's -1..1 pixels, plus ``kl_weight`` times the KL
    divergence, plus ``agreement_weight`` times the squared difference between the latents of the clip and of its
    masked version, where both show the same pixels. That difference is relative to the latents' mean square.

    The mean logarithm is the mean PSNR: -0.115 of it is 1 dB. With the mean square, clips with fine texture would
    outweigh all others: their error is ten times as large.

    Group norm makes the two differ: its statistics are those of the whole chunk, with the black pixels. A transformer
    gets the latents of the masked clip and can copy only what is equal in both.

    Args:
        masked: how often the masked clip is restored instead of the whole one.
        train_encoder: False keeps the latent space, so that transformers trained in it still fit.
    """

    def __init__(
        self,
        vae: CogVideoXVAE,
        kl_weight: float,
        masked: float,
        train_encoder: bool = True,
        agreement_weight: float = 0.0,
    ):
        super().__init__()
        self.vae = vae.requires_grad_(True).train()
        self.vae.encoder.requires_grad_(train_encoder)
        self.kl_weight, self.masked = kl_weight, masked
        self.agreement_weight = agreement_weight if train_encoder else 0.0

    def moments(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance, float32."""
        mean, logvar = torch.cat(list(self.vae.encode_stream(pixels)), dim=2).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def versions(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """A clip and its masked version: first the one to restore, then the other; B 3 F H W of -1..1."""
        video = batch["video"] * 2 - 1
        whole, masked = (v.movedim(-1, 1) for v in (video, mask_video(video, batch["mask"])))  # BFHWC -> BCFHW
        swapped = (batch["chance"] < self.masked)[:, None, None, None, None]
        return torch.where(swapped, masked, whole), torch.where(swapped, whole, masked)

    def restore(self, pixels: torch.Tensor) -> torch.Tensor:
        """A clip B 3 F H W of -1..1 after the VAE."""
        return self.vae.decode(self.vae.encode(pixels))

    def forward(self, batch: Batch) -> torch.Tensor:
        """The loss of a batch, [1]."""
        pixels, other = self.versions(batch)
        if self.agreement_weight:  # both in one batch
            (mean, others), (logvar, _) = (m.chunk(2) for m in self.moments(torch.cat([pixels, other])))
            disagreement = self.disagreement(mean, others, batch["mask"])
        else:
            (mean, logvar), disagreement = self.moments(pixels), 0.0
        latent = mean + (logvar / 2).exp() * batch["noise"][:, 0]
        restored = torch.cat(list(self.vae.decode_stream(latent)), dim=2).float()
        kl = (mean.square() + logvar.exp() - 1 - logvar).mean() / 2  # of each latent value, to a unit normal
        loss = log_error(restored, pixels) + self.kl_weight * kl + self.agreement_weight * disagreement
        return loss[None]

    @staticmethod
    def disagreement(mean: torch.Tensor, other: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The mean square by which latents B C T h w differ in known cells, relative to their mean square.

        Both means are over the clips of one process, so several processes give a slightly different value than one.
        """
        known = known_cells(mask)[:, None].to(mean)
        difference = ((mean - other).square() * known).sum() / (known.sum() * mean.shape[1]).clamp(min=1)
        return difference / mean.detach().square().mean()

"""Training of the transformer or of a LoRA: v-prediction on the model's own schedule."""

import torch
from torch import nn

from ...model_loading.networks.transformer import CogVideoXTransformer
from .encoders import Encoded


def v_target(clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """``sqrt(a) noise - sqrt(1 - a) clean`` (Salimans and Ho 2022); alpha: signal power, shaped to broadcast."""
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * clean


def noised(clean: torch.Tensor, noise: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """``sqrt(a) clean + sqrt(1 - a) noise``."""
    return alpha.sqrt() * clean + (1 - alpha).sqrt() * noise


def snr_weight(alpha: torch.Tensor, gamma: float) -> torch.Tensor:
    """The weight of a v-prediction's squared error, ``min(snr, gamma) / (snr + 1)`` (min-SNR, Hang et al. 2023).

    With ``snr = a / (1 - a)`` this is ``min(a, gamma (1 - a))``, which is finite for every a. The last timestep of a
    schedule with zero-terminal SNR has the weight 0.

    Args:
        alpha: signal power, 0..1.
        gamma: above 0; the paper uses 5.
    """
    return torch.minimum(alpha, gamma * (1 - alpha))


def levelled(losses: torch.Tensor, level: float) -> torch.Tensor:
    """The same values, with the gradient of each multiplied by ``level / (loss + level)``.

    Without it, clips of which little is given fill most of the gradient: nobody can know where their shapes are, so
    their losses stay large. It is the adaptive weight of MeanFlow (Geng et al. 2025) with ``p = 1``, scaled to be 1
    at most.

    Args:
        losses: squared errors, any shape.
        level: 0 changes nothing.
    """
    if not level:
        return losses
    known = losses.detach()
    return known + (losses - known) * level / (known + level)


class TransformerTask(nn.Module):
    """The squared error of v, for encoded clips.

    Args:
        transformer: parameters that require a gradient are trained.
        alphas: signal power per timestep, see `NoiseSchedule.alphas_cumprod`.
        t5: transformers' T5 encoder, if it is trained, too.
        snr_gamma: see `snr_weight`; 0 = every timestep has the weight 1.
        loss_level: see `levelled`.
    """

    def __init__(
        self,
        transformer: CogVideoXTransformer,
        alphas: torch.Tensor,
        t5: nn.Module | None = None,
        snr_gamma: float = 0.0,
        loss_level: float = 0.0,
    ):
        super().__init__()
        self.snr_gamma, self.loss_level = snr_gamma, loss_level
        self.transformer = transformer
        # With autocast the sum over all blocks would have half precision, which is too coarse to copy known pixels.
        transformer.patch_embed.register_forward_hook(lambda module, args, out: tuple(x.float() for x in out))
        self.t5 = t5
        self.register_buffer("alphas", alphas, persistent=False)

    def repeated(self, clips: Encoded) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """The latent, the noise, the text features and the conditioning of each clip and noise, (B R) ..."""
        latent, extra = clips["latent"], clips.get("extra")
        context = clips["context"] if self.t5 is None else self.t5(input_ids=clips["ids"]).last_hidden_state
        noise, repeats = clips["noise"].flatten(0, 1), clips["time"].shape[1]
        latent, context = latent.repeat_interleave(repeats, 0), context.repeat_interleave(repeats, 0)
        return latent, noise, context, None if extra is None else extra.repeat_interleave(repeats, 0)

    def forward(self, clips: Encoded) -> torch.Tensor:
        """The loss of each clip and noise, [B R]."""
        latent, noise, context, extra = self.repeated(clips)
        time = clips["time"].flatten()
        timestep = (time * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        alpha = self.alphas[timestep].float()[:, None, None, None, None]
        v = self.transformer(noised(latent, noise, alpha), timestep, context, concat_latents=extra)
        loss = (v.float() - v_target(latent, noise, alpha)).square().flatten(1).mean(1)
        if self.snr_gamma:
            loss = loss * snr_weight(alpha.flatten(), self.snr_gamma)
        return levelled(loss, self.loss_level).view_as(clips["time"])

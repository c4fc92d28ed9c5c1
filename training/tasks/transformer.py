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


class TransformerTask(nn.Module):
    """The squared error of v, for encoded clips.

    Args:
        transformer: parameters that require a gradient are trained.
        alphas: signal power per timestep, see `NoiseSchedule.alphas_cumprod`.
        t5: transformers' T5 encoder, if it is trained, too.
    """

    def __init__(self, transformer: CogVideoXTransformer, alphas: torch.Tensor, t5: nn.Module | None = None):
        super().__init__()
        self.transformer = transformer
        # With autocast the sum over all blocks would have half precision, which is too coarse to copy known pixels.
        transformer.patch_embed.register_forward_hook(lambda module, args, out: tuple(x.float() for x in out))
        self.t5 = t5
        self.register_buffer("alphas", alphas, persistent=False)

    def forward(self, clips: Encoded) -> torch.Tensor:
        """The loss of each clip and noise, [B R]."""
        latent, extra = clips["latent"], clips.get("extra")
        context = clips["context"] if self.t5 is None else self.t5(input_ids=clips["ids"]).last_hidden_state
        noise, time = clips["noise"].flatten(0, 1), clips["time"].flatten()  # B R ... -> (B R) ...
        repeats = clips["time"].shape[1]
        latent, context = latent.repeat_interleave(repeats, 0), context.repeat_interleave(repeats, 0)
        extra = None if extra is None else extra.repeat_interleave(repeats, 0)
        timestep = (time * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)
        alpha = self.alphas[timestep].float()[:, None, None, None, None]
        v = self.transformer(noised(latent, noise, alpha), timestep, context, concat_latents=extra)
        error = (v.float() - v_target(latent, noise, alpha)).square().flatten(1).mean(1)
        return error.unflatten(0, clips["time"].shape)

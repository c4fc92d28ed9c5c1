"""Exponential moving average of what is trained."""

from collections.abc import Iterable

import torch


class EMA:
    """Averages of parameters, float32.

    The decay of update n is ``min(decay, (1 + n) / (10 + n))``, so that the start is forgotten quickly.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], decay: float):
        self.decay = decay
        self.updates = 0
        self.averages = [parameter.detach().clone().float() for parameter in parameters]

    @torch.no_grad()
    def update(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = [parameter.detach().float() for parameter in parameters]
        torch._foreach_lerp_(self.averages, current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        for parameter, average in zip(parameters, self.averages, strict=True):
            parameter.copy_(average)

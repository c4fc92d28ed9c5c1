"""Steps of small models on a GPU without the time that Python and CUDA take to start each kernel.

A step of the nano VAE starts some ten thousand kernels, and starting them takes longer than running them. A CUDA graph
starts them all at once.
"""

from collections.abc import Callable

import torch
from torch import nn

from ..data.samples import Batch

WARM_UP = 3  # steps before a capture: libraries choose and load their kernels


class GraphedGradients:
    """Adds the gradients of a batch's mean loss, by a CUDA graph for each shape of a batch.

    Gradients, and everything else that a step reads beside its batch, must keep their addresses: set gradients to
    zero, not to None. The transformer replaces its position table when the size changes, so it can't be trained
    this way.

    Args:
        losses: the losses of a batch on the device. It may not wait for the device, or choose by values on it.
        parameters: what is trained.
    """

    def __init__(self, losses: Callable[[Batch], torch.Tensor], parameters: list[nn.Parameter], device: torch.device):
        self.losses, self.parameters, self.device = losses, parameters, device
        self.captured: dict[tuple, tuple[torch.cuda.CUDAGraph, Batch, torch.Tensor]] = {}
        self.pool = None  # the memory that all graphs share: they run one after the other

    def __call__(self, batch: Batch) -> torch.Tensor:
        """The losses; the next call overwrites them."""
        tensors = {name: value for name, value in batch.items() if torch.is_tensor(value)}
        shapes = tuple((name, value.shape) for name, value in sorted(tensors.items()))
        if shapes not in self.captured:
            self.captured[shapes] = self.capture(tensors)
        graph, inputs, losses = self.captured[shapes]
        for name, value in tensors.items():
            inputs[name].copy_(value, non_blocking=True)
        graph.replay()
        return losses

    def capture(self, tensors: Batch) -> tuple[torch.cuda.CUDAGraph, Batch, torch.Tensor]:
        inputs = {name: value.to(self.device, copy=True) for name, value in tensors.items()}
        before = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                self.losses(inputs).mean().backward()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # other threads may go on: one pins the next batches
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            losses = self.losses(inputs)
            losses.mean().backward()
        self.pool = graph.pool()
        for parameter, old in zip(self.parameters, before, strict=True):
            parameter.grad.zero_() if old is None else parameter.grad.copy_(old)
        return graph, inputs, losses.detach()

"""How a model is shared among processes: whole on each (DDP), or in shards (FSDP 2).

`accelerate launch --config_file FILE` says which, in environment variables that accelerate's own plugins read. The
DeepSpeed engine is in `zero`.
"""

import contextlib
import math
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import nn

from .config import OF_THE_VAE, Optimizer, Phase

WEIGHTS, AVERAGE = "weights", "average"
Read = Callable[[dict[str, torch.Tensor]], None]  # fills tensors by name from a checkpoint


def make_optimizer(options: Optimizer, parameters, device: torch.device) -> torch.optim.Optimizer:
    """The phase's optimizer.

    Raises:
        ValueError: the 8-bit optimizer can't run here.
    """
    arguments = {"lr": options.learning_rate, "betas": options.betas, "eps": options.eps}
    arguments["weight_decay"] = options.weight_decay
    if options.kind == "adamw":
        return torch.optim.AdamW(parameters, **arguments)
    found = f"optimizer.kind is {options.kind!r}"
    if device.type != "cuda":
        raise ValueError(f"{found}, expected a GPU, not {device.type}: set it to 'adamw'")
    try:
        import bitsandbytes
    except ImportError as error:
        raise ValueError(f"{found}, and bitsandbytes is missing: pip install bitsandbytes") from error
    return bitsandbytes.optim.AdamW8bit(parameters, **arguments)


def start_state(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> None:
    """Make the state that the optimizer itself would make at its first step, so that a checkpoint can fill it."""
    if not isinstance(optimizer, torch.optim.AdamW):  # bitsandbytes'
        for group_index, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                optimizer.init_state(group, parameter, group_index, index)
        return
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }


def set_steps(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Set how many steps the optimizer has done. No step is ever skipped, so it is the run's number for all."""
    for state in optimizer.state.values():
        state["step"] = torch.full_like(state["step"], step) if torch.is_tensor(state["step"]) else step


class Engine:
    """A task that is whole on every process, with its optimizer and the average of what it trains.

    Args:
        task: its parameters that require a gradient are trained. They are float32.

    Attributes:
        title: what the log calls it.
        parameters: what is trained, by name; in shards where the engine shards.
        optimizer: its ``param_groups`` have the learning rate.
        sharded: no process has the whole model, and all of them must call it together.
    """

    title, sharded = "DDP", False

    def __init__(self, phase: Phase, task: nn.Module, accelerator):
        self.phase, self.accelerator, self.device = phase, accelerator, accelerator.device
        self.world = accelerator.num_processes
        self.shapes = {name: p.shape for name, p in task.named_parameters() if p.requires_grad}
        self.module = self.share(task)
        self.parameters = {name: p for name, p in task.named_parameters() if p.requires_grad}
        self.start_optimizer()

    def share(self, task: nn.Module) -> nn.Module:
        return self.accelerator.prepare(task.to(self.device))

    def start_optimizer(self) -> None:
        parameters = list(self.parameters.values())
        self.optimizer = make_optimizer(self.phase.optimizer, parameters, self.device)
        start_state(self.optimizer, parameters)
        self.start_average(parameters)

    def start_average(self, masters: list[torch.Tensor]) -> None:
        """Average float32 ``masters`` from now on; the decay 0 turns the average off."""
        from diffusers.training_utils import EMAModel

        self.masters, decay = masters, self.phase.optimizer.ema_decay
        self.ema = EMAModel(masters, decay, foreach=True) if decay else None

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.phase.mixed_precision == "bf16")

    def exchange(self, last: bool) -> contextlib.AbstractContextManager:
        """Around the forward and backward pass of a micro-batch: only the last one exchanges gradients."""
        return contextlib.nullcontext() if last else self.accelerator.no_sync(self.module)

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def update(self) -> float:
        """Clip the gradients of all shards together, and change the weights and the average.

        Returns:
            The norm before clipping. If it is not finite, nothing was changed.
        """
        parameters = list(self.parameters.values())
        norm = nn.utils.clip_grad_norm_(parameters, self.phase.optimizer.max_grad_norm)
        norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if math.isfinite(norm):
            self.optimizer.step()
            self.update_average()
        self.optimizer.zero_grad(set_to_none=not self.phase.cuda_graphs)
        return norm

    def update_average(self) -> None:
        if self.ema is not None:
            self.ema.step(self.masters)

    # What a checkpoint has: tensors of several kinds, by the parameters' names.

    def kinds(self) -> list[str]:
        """``weights``, ``average`` unless it is off, and the optimizer's moments."""
        moments = {k for s in self.optimizer.state.values() for k, value in s.items() if torch.is_tensor(value)}
        return [WEIGHTS, *([AVERAGE] if self.ema else []), *sorted(moments - {"step"})]

    def state(self, kind: str) -> dict[str, torch.Tensor]:
        """The tensors of a kind, whole or this process's shards. Every process calls it."""
        if kind == WEIGHTS:
            return {name: p.detach() for name, p in self.parameters.items()}
        if kind == AVERAGE:
            return dict(zip(self.parameters, self.ema.shadow_params, strict=True))
        states = {name: self.optimizer.state[p] for name, p in self.parameters.items()}
        return {name: state[kind] for name, state in states.items() if kind in state}

    def gathered(self, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a kind, whole, one after the other. Every process must take them all."""
        for name, value in self.state(kind).items():
            yield name, value.full_tensor() if hasattr(value, "full_tensor") else value

    def load(self, kind: str, read: Read) -> None:
        read(self.state(kind))

    def loaded(self, step: int) -> None:
        """Called after `load` of every kind."""
        set_steps(self.optimizer, step)
        if self.ema is not None:
            self.ema.optimization_step = step


class Fsdp2(Engine):
    """FSDP 2: parameters, gradients, moments and the average in shards, a block at a time made whole.

    With bf16 a block is gathered in bf16, and its gradient is summed in float32. Inputs are not cast, so that the sum
    over the blocks stays float32.

    Raises:
        ValueError: the configuration asks for FSDP 1.
    """

    title, sharded = "FSDP 2", True

    def share(self, task: nn.Module) -> nn.Module:
        from accelerate.utils import FullyShardedDataParallelPlugin
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        plugin = FullyShardedDataParallelPlugin()
        if plugin.fsdp_version != 2:
            raise ValueError(
                f"fsdp_version is {plugin.fsdp_version}, expected 2: set it in accelerate's configuration"
            )
        dtype = torch.bfloat16 if self.phase.mixed_precision == "bf16" else None
        options = {
            "mesh": init_device_mesh(self.device.type, (self.world,)),
            "reshard_after_forward": plugin.reshard_after_forward,
            "offload_policy": plugin.cpu_offload,
            "mp_policy": MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False),
        }
        norm_in_float32(task)
        self.roots = []
        for model, blocks in models_with_blocks(task):
            for block in blocks:
                fully_shard(block, **options)
            self.roots.append(fully_shard(model, **options))
        for name, buffer in list(task.named_buffers(recurse=False)):  # the models' own were moved by fully_shard
            task.register_buffer(name, buffer.to(self.device), persistent=False)
        return task

    @contextlib.contextmanager
    def exchange(self, last: bool) -> Iterator[None]:
        for root in self.roots:
            root.set_requires_gradient_sync(last)
        with warnings.catch_warnings():  # FSDP warns of views that are returned, in case someone writes into them
            warnings.filterwarnings("ignore", "FSDP2-wrapped module")
            yield


def models_with_blocks(task: nn.Module) -> list[tuple[nn.Module, nn.ModuleList]]:
    """The models of a `TransformerTask` that run on the training device, each with its blocks."""
    models = [(task.transformer, task.transformer.transformer_blocks)]
    if task.t5 is not None:
        models.append((task.t5, task.t5.encoder.block))
    return models


def norm_in_float32(task: nn.Module) -> None:
    """Compute layer norms of bf16 weights in float32, as autocast does on a GPU and does not on a CPU."""
    for module in task.modules():
        if isinstance(module, nn.LayerNorm):
            module.forward = partial(_norm, module)


def _norm(module: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    weight, bias = (None if p is None else p.float() for p in (module.weight, module.bias))
    return nn.functional.layer_norm(x.float(), module.normalized_shape, weight, bias, module.eps)


def make_engine(phase: Phase, task: nn.Module, accelerator) -> Engine:
    """The engine that `accelerate launch` was told to use.

    Raises:
        ValueError: it can't train this phase.
    """
    names = [n for n in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{n}", "").lower() == "true"]
    if not names:
        return Engine(phase, task, accelerator)
    (name,) = names
    if phase.task in OF_THE_VAE:
        raise ValueError(f"the task is {phase.task!r} and the engine {name}, expected DDP: the model is small")
    if phase.optimizer.kind != "adamw":
        raise ValueError(f"optimizer.kind is {phase.optimizer.kind!r} and the engine {name}, expected 'adamw' or DDP")
    if name == "FSDP":
        return Fsdp2(phase, task, accelerator)
    from .zero import Zero

    return Zero(phase, task, accelerator)

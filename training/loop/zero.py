"""DeepSpeed ZeRO: an engine for `accelerate launch` with a DeepSpeed configuration."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from .config import Phase
from .engines import AVERAGE, WEIGHTS, Engine, Read, make_optimizer, norm_in_float32, start_state

READ_AT_ONCE = 2**28  # numbers that a process holds while it reads a checkpoint: 1 GiB in float32


class Zero(Engine):
    """ZeRO: float32 masters, moments and the average in shards; from stage 2 gradients, in stage 3 weights, too.

    With bf16 the weights are bf16 beside their masters. Micro-batches exchange gradients each time, because no process
    holds a whole gradient. The average is kept in the optimizer's state, where DeepSpeed's functions find it.

    Raises:
        ValueError: DeepSpeed is missing, or the stage shards nothing.
    """

    title, sharded = "DeepSpeed ZeRO", True

    def share(self, task: nn.Module) -> nn.Module:
        try:
            import deepspeed
        except ImportError as error:
            raise ValueError("the engine is DeepSpeed, which is missing: pip install deepspeed") from error

        config = zero_config(self.phase)
        self.stage = config["zero_optimization"]["stage"]
        if self.stage not in (1, 2, 3):
            raise ValueError(f"the ZeRO stage is {self.stage}, expected 1 to 3: use DDP to share nothing")
        trained = [p for p in task.parameters() if p.requires_grad]
        optimizer = make_optimizer(self.phase.optimizer, trained, self.device)
        norm_in_float32(task)
        buffers = {name: buffer.clone() for name, buffer in task.named_buffers()}
        engine, self.zero, *_ = deepspeed.initialize(model=task, optimizer=optimizer, config=config)
        for name, buffer in buffers.items():  # bf16 rounded them
            owner, _, attribute = name.rpartition(".")
            task.get_submodule(owner).register_buffer(attribute, buffer.to(self.device), persistent=False)
        task.forward = partial(_with_autocast, self.autocast, task.forward)
        return engine

    def start_optimizer(self) -> None:
        self.optimizer = self.zero.optimizer
        flat = self.zero.fp32_partitioned_groups_flat if self.stage == 3 else self.zero.single_partition_of_fp32_groups
        start_state(self.optimizer, flat)
        self.start_average(flat)
        if self.ema is not None:
            for master, average in zip(flat, self.ema.shadow_params, strict=True):
                self.optimizer.state[master][AVERAGE] = average
        if self.stage < 3:
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            for group, master in zip(self.zero.bit16_groups, flat, strict=True):
                lazy_init_hp_params_optimizer_state(group, master, self.optimizer.state)

    def exchange(self, last: bool):
        self.module.set_gradient_accumulation_boundary(last)
        return super().exchange(last=True)

    def backward(self, loss: torch.Tensor) -> None:
        self.module.backward(loss)

    def update(self) -> float:
        self.module.step()  # clips; leaves everything as it is if the norm is not finite
        norm = float("nan") if self.zero.overflow else float(self.module.get_global_grad_norm())
        if not self.zero.overflow:
            self.update_average()
        return norm

    def kinds(self) -> list[str]:
        return [WEIGHTS, *([AVERAGE] if self.ema else []), "exp_avg", "exp_avg_sq"]

    def state(self, kind: str) -> dict[str, torch.Tensor]:
        """Whole tensors on the CPU, of every parameter on one process."""
        own = self.accelerator.process_index
        return {name: value.cpu() for i, (name, value) in enumerate(self.gathered(kind)) if i % self.world == own}

    def gathered(self, kind: str) -> Iterator[tuple[str, torch.Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        for name, parameter in self.parameters.items():
            if kind == WEIGHTS:
                yield name, safe_get_full_fp32_param(parameter)
            else:
                yield name, safe_get_full_optimizer_state(parameter, kind)

    def load(self, kind: str, read: Read) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for names in self.chunks():
            values = {name: torch.empty(self.shapes[name]) for name in names}
            read(values)
            for name, value in values.items():
                parameter = self.parameters[name]
                if kind == WEIGHTS:
                    safe_set_full_fp32_param(parameter, value)
                    self.set_weight(parameter, value)
                else:
                    safe_set_full_optimizer_state(parameter, value, kind)

    @torch.no_grad()
    def set_weight(self, parameter: nn.Parameter, value: torch.Tensor) -> None:
        """Set the weight itself, beside its master."""
        if self.stage < 3:
            parameter.data.copy_(value)
            return
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            parameter.data.copy_(value)

    def chunks(self) -> list[list[str]]:
        """The names of the parameters, in parts of about `READ_AT_ONCE` numbers."""
        chunks, size = [[]], 0
        for name, shape in self.shapes.items():
            if size > READ_AT_ONCE:
                chunks.append([])
                size = 0
            chunks[-1].append(name)
            size += shape.numel()
        return chunks


def zero_config(phase: Phase) -> dict:
    """DeepSpeed's configuration: accelerate's, with the phase's values where it leaves them open.

    The batch's size is not given to DeepSpeed. It is only used in its log.
    """
    from accelerate.utils import DeepSpeedPlugin

    given = {key: value for key, value in DeepSpeedPlugin().deepspeed_config.items() if value != "auto"}
    return {
        **given,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": phase.optimizer.max_grad_norm,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,  # with offload: its own AdamW has to be compiled first
        "bf16": {"enabled": phase.mixed_precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
    }


def _with_autocast(autocast, forward, clips) -> torch.Tensor:
    """Run the task with autocast: DeepSpeed turns it off around its engine."""
    with autocast():
        return forward(clips)

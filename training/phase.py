"""One phase from its configuration to its model folder."""

import logging
from itertools import islice
from pathlib import Path

import torch

from .config import Phase
from .parts import Parts, measure_scale
from .trainer import Trainer, open_clips, phase_batches

log = logging.getLogger(__name__)

SCALE_BATCHES = 16  # of the phase's own, from which the latents' deviation is measured


def run_phase(phase: Phase, until: int | None = None, cpu: bool = False) -> None:
    """Run a phase and write ``output``: the checkpoint and the losses while it runs, the model when it is done.

    Args:
        until: stop after this step without writing the model; the next call goes on from there.
        cpu: leave a GPU alone.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    accelerator = Accelerator(cpu=cpu, mixed_precision=phase.mixed_precision)
    set_seed(phase.seed)  # for the initial values of LoRA layers; all else is drawn per sample
    frozen = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[phase.mixed_precision]
    parts = Parts(phase, torch.float32 if accelerator.device.type == "cpu" else frozen)
    trainer = Trainer(phase, parts.task, accelerator, Path(phase.output) / "run")
    trainer.run(until)
    if trainer.step < phase.steps:
        log.info("stopped at step %d of %d: run the same command to go on", trainer.step, phase.steps)
    else:
        finish(phase, trainer, parts)
    accelerator.wait_for_everyone()
    accelerator.end_training()  # a process group that is left to the interpreter's exit may abort it


def finish(phase: Phase, trainer: Trainer, parts: Parts) -> None:
    """Write the averages as the phase's model."""
    trainer.ema.copy_to(trainer.parameters.values())
    if not trainer.accelerator.is_main_process:
        return
    output = Path(phase.output) / "model"
    scale_factor = parts.checkpoint.scale_factor
    if phase.task == "vae" and phase.train_encoder:
        parts.task.vae.cpu().eval()
        samples = islice(phase_batches(phase, open_clips(phase.data)), SCALE_BATCHES)
        scale_factor = measure_scale(parts.task.vae, (batch["video"] for batch in samples))
    parts.write(output, scale_factor)
    log.info("%s: written", output)

"""One phase from its configuration to its model folder."""

import logging
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import islice
from pathlib import Path

import torch

from ...model_loading.files.safetensors_files import open_weights
from ...model_loading.networks.blocks import sdpa
from ..tasks.attention import product_attention
from ..tasks.hub import save_weights
from ..tasks.lora import lower_rank
from ..tasks.parts import (
    LORA_FILE,
    Parts,
    convolve_in_float32,
    measure_scale,
    trained_vae,
    write_lora_model,
    write_result,
)
from .config import ConfigError, Phase
from .cpu import has_amx, warn_if_bfloat16_is_slow
from .monitor import check_trackers
from .source import open_clips, phase_batches
from .state import newest, read_phase_of, read_tensors
from .trainer import Trainer

log = logging.getLogger(__name__)

# Processes wait for one that encodes, validates or writes a model. NCCL ends them after ten minutes by default.
LONGEST_WAIT = timedelta(hours=12)
SCALE_CLIPS = 128  # to measure the standard deviation of the latents


@contextmanager
def processes(cpu: bool = False) -> Iterator:
    """The processes of this run. They leave their group at the end: one that is left open can abort the interpreter.

    Args:
        cpu: do not use a GPU.

    Raises:
        ConfigError: several processes were started, but they do not know each other. Each would train alone, and all
            would write the same files.
    """
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    started = int(os.environ.get("WORLD_SIZE", 1))
    if state.num_processes < started:
        raise ConfigError(
            f"{started} processes were started, but on {state.device.type} each of them found {state.num_processes}: "
            "where there is no GPU, put --cpu after the command of run.py, not after accelerate launch"
        )
    yield state
    state.destroy_process_group()


def make_parts(phase: Phase, device: torch.device) -> Parts:
    """The parts of a phase as they are trained on a device."""
    on_cpu, bf16 = device.type == "cpu", phase.mixed_precision == "bf16"
    parts = Parts(
        phase,
        dtype=torch.bfloat16 if bf16 and not on_cpu else torch.float32,
        attention=product_attention if bf16 and on_cpu else sdpa,
    )
    if bf16 and on_cpu:
        warn_if_bfloat16_is_slow()
        if has_amx():  # oneDNN's bfloat16 gradient can crash there
            log.info("this CPU has AMX: convolutions are trained in float32")
            convolve_in_float32(parts.task)
    return parts


def run_phase(phase: Phase, cpu: bool = False, until: int | None = None) -> None:
    """Run a phase and write ``output``: the checkpoint and the losses while it runs, the model when it is done.

    Call it within `processes`.

    Args:
        cpu: do not use a GPU.
        until: stop after this step without writing the model; the next call continues from there.
    """
    from accelerate import Accelerator
    from accelerate.utils import set_seed

    check_trackers(phase.logging.trackers)
    trackers = {"log_with": list(phase.logging.trackers) or None, "project_dir": str(Path(phase.output) / "run")}
    accelerator = Accelerator(cpu=cpu, mixed_precision=phase.mixed_precision, **trackers)
    set_seed(phase.seed)  # for the initial values of LoRA layers; everything else has a seed per sample
    trainer = Trainer(phase, make_parts(phase, accelerator.device), accelerator, Path(phase.output) / "run")
    if accelerator.is_main_process:
        count, title, kind = accelerator.num_processes, trainer.engine.title, accelerator.device.type
        log.info("processes: %d, device: %s, engine: %s", count, kind, title)
    trainer.run(until)
    if accelerator.is_main_process:
        if trainer.step < phase.steps:
            log.info("%s: stopped after step %d, with a checkpoint to continue from", phase.output, trainer.step)
        else:
            finish(newest(trainer.folder), Path(phase.output) / "model", accelerator.device, phase)
    accelerator.wait_for_everyone()


def finish(checkpoint: Path, output: Path, device: torch.device | str = "cpu", phase: Phase | None = None) -> None:
    """Write the model of a checkpoint: the average of its weights, or the weights where there is no average.

    Args:
        device: where a VAE's latents are measured.
        phase: None for that of the checkpoint, whose paths may have changed since.
    """
    phase, state = phase or read_phase_of(checkpoint), read_tensors(checkpoint)
    scale_factor = None
    if phase.task == "vae" and phase.train_encoder:
        count = math.ceil(SCALE_CLIPS / phase.batches.batch_size)
        samples = islice(phase_batches(phase, open_clips(phase.data)), count)
        vae = trained_vae(phase, state).to(device)
        scale_factor = measure_scale(vae, (batch["video"].to(device) for batch in samples))
    write_result(phase, state, output, scale_factor)
    log.info("%s: written", output)


def export_run(folder: str | Path, output: str | Path, base: str | Path | None = None, rank: int = 0) -> None:
    """Write the model of a run's newest checkpoint, whether the run is done or not.

    Args:
        folder: the run's output.
        base: of a LoRA: write a model folder that adds it to the weights of this one, see `write_lora_model`.
        rank: of a LoRA: the highest rank to write it with, see `lower_rank`. 0: as it was trained.

    Raises:
        ValueError: it has no checkpoint, or there is a base or a rank but the run is no LoRA's.
        CheckpointError: the LoRA does not fit the base.
    """
    checkpoint = newest(Path(folder) / "run")
    if checkpoint is None:
        raise ValueError(f"{folder} has no run/checkpoint_*: give the output folder of a run that saved one")
    if (base is not None or rank) and not (phase := read_phase_of(checkpoint)).makes_lora:
        raise ValueError(
            f"{folder} is the run of a task {phase.task!r}, expected lora or few_steps: leave --base and --rank out"
        )
    log.info("exporting %s", checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(output if base is None else temporary)
        finish(checkpoint, target)
        lora = target / LORA_FILE
        if rank:
            save_weights(lora, lower_rank(open_weights(lora).load(), rank), torch.float16)
        if base is not None:
            write_lora_model(lora, base, output)

"""The part "training" of `make gpu`: steps of real models with random weights, from encoded clips.

Weights that are trained are float32 with AdamW's moments and the average; everything is computed in bfloat16.
"""

import dataclasses
import gc
import logging
from collections.abc import Callable

import torch

from ...model_loading.networks.transformer import CogVideoXTransformer
from ...sampling.geometry import token_count
from ...training.data.buckets import Bucket
from ...training.loop.config import Batches, Phase
from ...training.planning.trace import encoded, trace_step
from ...training.tasks.encoders import Encoded
from ...training.tasks.parts import prepare_transformer
from ...training.tasks.transformer import TransformerTask
from .. import traced
from .models import Scale, peak, seconds

log = logging.getLogger(__name__)

RANK = 64  # of the LoRA


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of training: the model, what of it is trained, and the clip's width, height and frames."""

    family: str
    lora: bool
    size: tuple[int, int, int]
    checkpoint: bool = True

    @property
    def name(self) -> str:
        width, height, length = self.size
        what = "LoRA" if self.lora else "full"
        again = ", blocks recomputed" if self.checkpoint else ""
        return f"{self.family} {what}, {width} x {height} x {length}{again}"


REPORT = [(512, 512, 49), (768, 768, 49), (1024, 1024, 49)]  # 13312, 29952 and 53248 tokens
CASES = (
    Case("2B", False, REPORT[0]),
    Case("2B", False, REPORT[0], checkpoint=False),
    Case("5B", True, (720, 480, 49)),
    Case("5B", True, REPORT[0]),
    *(Case("2B", False, size) for size in REPORT[1:]),
)


def clip(scale: Scale, case: Case) -> Encoded:
    """One random clip, as the encoders give it."""
    generator = torch.Generator(scale.device).manual_seed(0)
    found = {}
    for name, empty in encoded(phase_of(case), scale.configs[case.family], Bucket(*case.size), 1).items():
        found[name] = torch.randn(empty.shape, generator=generator, device=scale.device).to(empty.dtype)
    return {**found, "time": torch.full((1, 1), 0.5, device=scale.device)}


def trainable(scale: Scale, case: Case) -> TransformerTask:
    """A task with random weights: float32 where they are trained, bfloat16 where they are frozen."""
    config = scale.configs[case.family]
    frozen_bf16 = case.lora and scale.device.type != "cpu"  # as in `run_phase`: a CPU's norms take one dtype only
    dtype = torch.bfloat16 if frozen_bf16 else torch.float32
    with torch.device("meta"):
        model = CogVideoXTransformer(config, dtype=dtype)
    state = traced.random_state(model, scale.device, dtype)
    model = model.requires_grad_(False).to_empty(device=scale.device)
    model.load_state_dict(state)
    prepare_transformer(model, phase_of(case))
    alphas = config.default_schedule.alphas_cumprod()
    return TransformerTask(model, alphas).to(scale.device)


def phase_of(case: Case) -> Phase:
    """The phase of a case, without its model's folder."""
    width, height, length = case.size
    return Phase(
        task="lora" if case.lora else "full",
        model="",
        output="",
        steps=1,
        batches=Batches(token_count(*case.size), ((width, height),), length),
        mixed_precision="bf16",
        checkpoint_blocks=case.checkpoint,
        lora_rank=RANK,
        lora_alpha=float(RANK),
    )


def planned(scale: Scale, case: Case) -> int:
    """The peak bytes that `plan` gives for a case on one GPU, from encoded clips."""
    step = trace_step(phase_of(case), scale.configs[case.family], Bucket(*case.size), 1)
    return step.frozen + step.trained + step.moments + step.average + max(step.passes, step.trained + step.update)


def step_of(scale: Scale, case: Case) -> Callable[[], None]:
    """One step: forward, backward, AdamW and the average."""
    from diffusers.training_utils import EMAModel

    task = trainable(scale, case)
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, 1e-5)
    average = EMAModel(trained, 0.999, foreach=True)
    batch = clip(scale, case)

    def step() -> None:
        with torch.autocast(scale.device.type, torch.bfloat16):
            loss = task(batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(trained)

    return step


def training(scale: Scale, write) -> dict:
    """Seconds and tokens a second of a step of one clip, and the peak bytes of everything: weights, AdamW, average.

    Beside the peak stands what `plan` says.
    """
    found: dict = {}
    for case in CASES:
        used = case if scale.device.type != "cpu" else dataclasses.replace(case, size=(48, 32, 9))
        try:
            found[case.name] = measure(scale, used)
        except torch.OutOfMemoryError as error:
            found[case.name] = {"error": str(error)[:300]}
        log.info("%s: %s", case.name, found[case.name])
        write(found)
        gc.collect()
    return found


def measure(scale: Scale, case: Case) -> dict:
    gc.collect()
    steps: list[Callable[[], None]] = []

    def two_steps() -> None:  # the first makes AdamW's moments
        steps.append(step_of(scale, case))
        steps[0]()
        steps[0]()

    most = peak(two_steps, scale.device)
    taken = seconds(steps[0], scale.device, repeats=2, warm_up=0)
    tokens = token_count(*case.size)
    rate = tokens / taken
    return {"tokens": tokens, "peak": most, "planned": planned(scale, case), "seconds": taken, "tokens/s": rate}

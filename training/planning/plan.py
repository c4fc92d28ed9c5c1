"""What a phase needs on given GPUs: memory and what lowers it, operations, hours, and the disk of a cache."""

import dataclasses
import functools
import itertools
from pathlib import Path

import torch

from ...model_loading.files.checkpoint import load_vae_config, open_checkpoint
from ...model_loading.files.detect import V15_SAMPLE
from ...model_loading.files.safetensors_files import open_weights
from ...model_loading.networks.config import TEXT_TOKENS, TransformerConfig, VAEConfig
from ...model_loading.networks.vae import ENCODE_FRAMES, CogVideoXVAE, encode_chunks
from ..data.buckets import Bucket
from ..loop.config import OF_THE_VAE, Phase
from ..loop.source import phase_buckets, worker_count
from .trace import Step, trace_encoding, trace_step


@dataclasses.dataclass(frozen=True)
class GPU:
    """Memory in bytes, and dense bf16 operations a second.

    A GB counts as 1e9 bytes. The GPU has more (80 GB are 80 GiB), which is left for the CUDA context, kernels'
    workspaces and fragments.
    """

    name: str
    memory: float
    rate: float


GPUS = {
    "h100": GPU("H100 SXM", 80e9, 989e12),  # NVIDIA H100 datasheet: 1,979 TFLOPS with sparsity, half of it dense
    "h200": GPU("H200 SXM", 141e9, 989e12),  # NVIDIA H200 datasheet: likewise
    "a100": GPU("A100 80 GB", 80e9, 312e12),  # NVIDIA A100 datasheet
    "l40s": GPU("L40S", 48e9, 362e12),  # NVIDIA L40S datasheet: 733 TFLOPS with sparsity
    "rtx4090": GPU("RTX 4090", 24e9, 165e12),  # NVIDIA Ada GPU architecture paper: bf16, summed in float32
}

# The published configurations, as InP models, by `Phase.family`.
ROTARY = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
PUBLISHED = {
    "2b": TransformerConfig(in_channels=33),
    "5b": TransformerConfig(in_channels=33, **ROTARY),
    "v1.5": TransformerConfig(in_channels=33, patch_size_t=2, **V15_SAMPLE, **ROTARY),
}
T5_PARAMETERS = 4_762_310_656  # of T5 1.1 XXL's encoder
EIGHT_BIT = 2 / 8  # bytes of a weight's two moments in 8 bits over those in float32


@dataclasses.dataclass(frozen=True)
class Setup:
    """Where a phase is to run."""

    gpu: str = "h100"
    gpus: int = 1
    utilisation: float = 0.3  # of the GPU's rate that the run reaches; measured for the 2B on an H100: 0.29 to 0.31
    clips: int = 1_200_000  # in a cache


@dataclasses.dataclass(frozen=True)
class Saving:
    """How memory is saved."""

    checkpoint_blocks: bool
    micro_batch: int  # clips in a forward pass
    cached: bool = False  # latents and text features come from a cache: no VAE and no T5 on the GPU
    sharded: bool = False  # FSDP 2 or ZeRO-3
    eight_bit: bool = False  # AdamW's moments
    gpus: int = 1


class Plan:
    """What a phase needs that trains the transformer or a LoRA.

    Attributes:
        buckets, earlier: the phase's, and those of earlier token lengths that it repeats.
        share: clips of a step on each GPU.
        saving: how the phase saves memory as it is, without shards.

    Raises:
        ValueError: the phase is of another task, or nothing says what its model is.
    """

    def __init__(self, phase: Phase, setup: Setup):
        if phase.task in OF_THE_VAE or phase.train_text_encoder:
            task = "a trained text encoder" if phase.train_text_encoder else f"the task {phase.task!r}"
            raise ValueError(f"the phase has {task}, expected the transformer or a LoRA: plan traces no other")
        if phase.batches.batch_size % setup.gpus:
            batch = phase.batches.batch_size
            raise ValueError(f"batch_size is {batch}, expected a multiple of the {setup.gpus} GPUs")
        self.phase, self.setup, self.gpu = phase, setup, GPUS[setup.gpu]
        self.config, self.vae, self.t5_parameters = model_of(phase)
        options = phase.batches
        self.buckets = phase_buckets(options, options.tokens, self.config)
        self.earlier = [b for tokens in options.earlier_tokens for b in phase_buckets(options, tokens, self.config)]
        self.share = options.batch_size // setup.gpus
        micro_batch = min(phase.micro_batch or self.share, self.share)
        self.saving = Saving(
            phase.checkpoint_blocks,
            micro_batch,
            cached=bool(phase.data.cache),
            eight_bit=phase.optimizer.kind == "adamw8bit",
            gpus=setup.gpus,
        )
        self._steps: dict[tuple, Step] = {}

    @property
    def largest(self) -> Bucket:
        """The bucket with the most tokens, which needs the most memory."""
        return max([*self.buckets, *self.earlier], key=lambda bucket: bucket.tokens)

    @property
    def nominal(self) -> Bucket:
        """The bucket that is closest to the phase's token length, and of these the squarest."""
        goal = self.phase.batches.tokens
        return min(self.buckets, key=lambda b: (abs(b.tokens - goal), abs(b.width - b.height)))

    def accumulates(self, saving: Saving) -> bool:
        """Whether a step has several micro-batches."""
        return self.phase.batches.batch_size // saving.gpus > saving.micro_batch

    def traced(self, saving: Saving, bucket: Bucket | None = None) -> Step:
        """A step with clips of a bucket (default: the largest)."""
        bucket = bucket or self.largest
        key = saving.checkpoint_blocks, saving.micro_batch, self.accumulates(saving), saving.gpus, bucket
        if key not in self._steps:
            phase = dataclasses.replace(self.phase, checkpoint_blocks=saving.checkpoint_blocks)
            clips, accumulates, gpus = key[1:4]
            self._steps[key] = trace_step(phase, self.config, bucket, clips, accumulates, gpus)
        return self._steps[key]

    @functools.cached_property
    def encoding(self) -> tuple[int, float]:
        """Encoding one clip: the most bytes of all buckets, and the operations, their mean."""
        firsts = [dataclasses.replace(bucket, length=encode_chunks(bucket.length)[0].stop) for bucket in self.buckets]
        largest = max(firsts, key=pixels_of)  # a clip's first chunk is its largest
        two = dataclasses.replace(largest, length=largest.length + ENCODE_FRAMES)  # later ones have the causal cache
        size, flops = trace_encoding(self.phase, self.vae, two, 1)
        mean = sum(map(pixels_of, self.buckets)) / len(self.buckets)
        return size, flops * mean / pixels_of(two)

    @functools.cached_property
    def frozen_bytes(self) -> int:
        """Of the VAE and T5."""
        with torch.device("meta"):
            vae = sum(p.numel() for p in CogVideoXVAE(self.vae).parameters())
        return (vae + self.t5_parameters) * self.frozen_element

    @property
    def frozen_element(self) -> int:
        """Bytes of a frozen weight, and of what matrix products take."""
        return 2 if self.phase.mixed_precision == "bf16" else 4

    def peak(self, saving: Saving, bucket: Bucket | None = None) -> int:
        """The most bytes on a GPU at once, with clips of a bucket (default: the largest)."""
        step, shards = self.traced(saving, bucket), saving.gpus if saving.sharded else 1
        state = step.frozen + step.trained + step.moments * (EIGHT_BIT if saving.eight_bit else 1) + step.average
        # FSDP 2 keeps whole gradients between the micro-batches, and sums them once per step
        left = step.trained if self.accumulates(saving) else 0
        passes, update = step.passes, step.trained + step.update
        if saving.sharded:
            # the weights of a block and of the next one, and a block's gradients before and after their sum
            gathered = 2 * step.block * self.frozen_element + 2 * step.trained_block * 4
            state, passes, update = state / shards, step.passes_sharded + gathered, update / shards
        elif saving.gpus > 1:
            state += step.trained  # DDP sums gradients in a copy
        validation = 0
        if self.phase.validation.every and (saving.cached or saving.sharded):
            # T5 encodes its captions beside the model; beside the shards, that is another one
            validation = self.frozen_bytes + (step.frozen + step.trained if saving.sharded else 0)
        if saving.cached:
            return int(state + max(left + passes, update, validation))
        biggest = max(pixels_of(b) for b in ([bucket] if bucket else [*self.buckets, *self.earlier]))
        channel = saving.micro_batch * biggest * 4  # float32
        video = 4 * channel  # three channels and the mask
        encode = left + saving.micro_batch * self.encoding[0] + video + 6 * channel  # in -1..1, and the masked one
        return int(state + self.frozen_bytes + max(encode, left + passes + video, update, validation))

    def fits(self, saving: Saving) -> bool:
        return self.peak(saving) <= self.gpu.memory

    def remedies(self) -> list[tuple[list[str], Saving]]:
        """The fewest changes with which the phase fits, as the reader makes them: all ways of that many changes."""
        gpus, options = self.setup.gpus, {}
        if not self.saving.checkpoint_blocks:
            options["checkpoint_blocks = true"] = {"checkpoint_blocks": True}
        if self.saving.micro_batch > 1:
            options["micro_batch = 1"] = {"micro_batch": 1}
        options["cached latents and text features"] = {"cached": True}
        if gpus > 1:
            options[f"FSDP 2 or ZeRO-3 on {gpus} GPUs"] = {"sharded": True}
        options["8-bit AdamW"] = {"eight_bit": True}
        for count in range(1, len(options) + 1):
            found = []
            for names in itertools.combinations(options, count):
                changes = {key: value for name in names for key, value in options[name].items()}
                saving = dataclasses.replace(self.saving, **changes)
                if not (saving.sharded and saving.eight_bit) and self.fits(saving):  # it does not take shards
                    found.append((list(names), saving))
            if found:
                return found
        return self.more_gpus()

    def more_gpus(self) -> list[tuple[list[str], Saving]]:
        """The fewest GPUs with which the phase fits with all that saves memory, as in `remedies`."""
        saving = Saving(checkpoint_blocks=True, micro_batch=1, cached=True, sharded=True, gpus=2 * self.setup.gpus)
        batch = self.phase.batches.batch_size
        while batch % saving.gpus == 0:
            if self.fits(saving):
                changes = ["checkpoint_blocks = true", "micro_batch = 1", "cached latents and text features"]
                return [([*changes, f"FSDP 2 or ZeRO-3 on {saving.gpus} GPUs"], saving)]
            saving = dataclasses.replace(saving, gpus=2 * saving.gpus)
        return []

    def state_bytes(self) -> int:
        """Weights, gradients, moments and the average, of all GPUs together."""
        step = self.traced(self.saving)
        return step.frozen + 2 * step.trained + step.moments + step.average

    def clip_flops(self, checkpoint_blocks: bool | None = None) -> float:
        """Operations of a clip's step, the mean of all buckets; recomputation counts.

        Attention grows with the square of the tokens, and everything else with the tokens.
        """
        saving = self.saving
        if checkpoint_blocks is not None:
            saving = dataclasses.replace(saving, checkpoint_blocks=checkpoint_blocks)
        step, most = self.traced(saving), self.tokens(self.largest)

        def mean(buckets: list[Bucket]) -> float:
            ratios = [self.tokens(bucket) / most for bucket in buckets]
            flops = sum(step.attention_flops * r**2 + step.other_flops * r for r in ratios)
            return flops / len(ratios) / saving.micro_batch

        share = self.phase.batches.earlier_share if self.earlier else 0.0
        return mean(self.buckets) * (1 - share) + (mean(self.earlier) * share if self.earlier else 0.0)

    def tokens(self, bucket: Bucket) -> int:
        """Of the model, with the text's."""
        return bucket.tokens // (self.config.patch_size_t or 1) + TEXT_TOKENS

    def encoding_flops(self) -> float:
        """Operations of encoding a clip: the VAE once more for an InP model's known part, and T5."""
        known = 1 - self.phase.masks.get("nothing", 0.0) / sum(self.phase.masks.values())
        passes = 1 + known if self.config.conditioning == "inpaint" else 1
        return self.encoding[1] * passes + 2 * self.t5_parameters * TEXT_TOKENS

    def hours(self, flops: float) -> float:
        """Of the phase, at the setup's utilisation, with so many operations for each clip."""
        rate = self.setup.gpus * self.gpu.rate * self.setup.utilisation
        return self.phase.steps * self.phase.batches.batch_size * flops / rate / 3600

    def cache_bytes(self) -> tuple[float, float]:
        """Latents with the conditioning's channels, and text features, of `Setup.clips` clips in bf16."""
        mean = sum(b.tokens for b in self.buckets) / len(self.buckets)
        latents = mean * self.config.patch_size**2 * self.config.in_channels * 2
        return self.setup.clips * latents, self.setup.clips * TEXT_TOKENS * self.config.text_embed_dim * 2.0

    def waiting_bytes(self) -> int:
        """Of the batches in the computer's memory: one of each worker, and the one that is trained on; of all GPUs."""
        config, phase, grid = self.config, self.phase, 4 * self.config.patch_size**2  # bytes of a float32 channel

        def clip(bucket: Bucket) -> int:
            noise = phase.batches.noises_per_clip * config.out_channels * bucket.tokens * grid
            if phase.data.cache:
                return noise + config.in_channels * bucket.tokens * grid + 4 * TEXT_TOKENS * config.text_embed_dim
            return noise + pixels_of(bucket) * 4 * (7 if phase.data.control else 4)  # colours, mask, control's colours

        batch = self.share * max(clip(bucket) for bucket in [*self.buckets, *self.earlier])
        return self.setup.gpus * (worker_count(phase.data) + 1) * batch


def pixels_of(bucket: Bucket) -> int:
    return bucket.length * bucket.height * bucket.width


def model_of(phase: Phase) -> tuple[TransformerConfig, VAEConfig, int]:
    """The configurations of a phase's model and T5's parameters: from its folder, or the published ones of its family.

    Raises:
        ValueError: there is no folder and the phase names no family.
    """
    if not Path(phase.model).is_dir():
        if not phase.family:
            raise ValueError(
                f"{phase.model} is not there, and the phase has no family: give the model, or set family to one of "
                f"{list(PUBLISHED)}"
            )
        return PUBLISHED[phase.family], VAEConfig(), T5_PARAMETERS
    source = open_checkpoint(phase.model)
    vae = load_vae_config(source.vae, open_weights(source.vae)) if source.vae else VAEConfig()
    if not source.text_encoder:
        return source.config, vae, T5_PARAMETERS
    shapes = open_weights(source.text_encoder).shapes.values()
    return source.config, vae, sum(torch.Size(shape).numel() for shape in shapes)

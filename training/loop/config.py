"""What one phase of training does, read from a TOML file."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from ...sampling.geometry import FRAMES_PER_SECOND
from ...sampling.positions import POSITION_MODES
from ..data.control import EDGES, THRESHOLDS
from ..data.masks import KINDS, VIDEOX_FUN
from ..data.scenes import BACKGROUNDS, HELD_OUT
from ..data.scenes import KINDS as SCENES
from ..data.shapes import NEW_SHAPE, SHAPES

TASKS = ("vae", "full", "lora", "few_steps", "tiny_decoder")
OF_THE_VAE = ("vae", "tiny_decoder")  # tasks without a transformer
FAMILIES = {"": None, "2b": "2B", "5b": "5B", "v1.5": "5B V1.5"}  # the names in `TransformerConfig.family`
OPTIMIZERS = ("adamw", "adamw8bit")
MASK_WEIGHTS = {"start": 0.25, "end": 0.1, "start_end": 0.2, "region": 0.2, "everything": 0.05, "nothing": 0.2}


class ConfigError(ValueError):
    """A configuration that can't be used; the message has the file, the field, the value and what was expected."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Where clips come from: a ``manifest``, ``folders`` of videos with captions, or otherwise procedural `scenes`."""

    manifest: str = ""  # a JSONL file, see `data.manifest`
    folders: tuple[str, ...] = ()
    control: str = ""  # edges, or what control videos have between the clip's name and its suffix, as "_depth"
    edge_thresholds: tuple[float, float] = THRESHOLDS  # low and high, as in ComfyUI's Canny node
    fps: float = float(FRAMES_PER_SECOND)  # frames a second to take from a video: the models' own rate; 0 = all frames
    shapes: tuple[str, ...] = SHAPES  # of procedural clips
    kinds: tuple[str, ...] = tuple(SCENES)  # of procedural clips: what happens in them
    # how often each group of backgrounds is behind the shapes of procedural clips
    backgrounds: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(BACKGROUNDS))
    count: int = 0  # procedural clips before they repeat; 0 = never
    seed: int = 0
    workers: int = -1  # processes of each rank, each one batch ahead of the training; -1: see `worker_count`
    cache: str = ""  # a folder that `encode` wrote: train from its latents and text features, not from clips


@dataclasses.dataclass(frozen=True)
class Batches:
    """Token length, sizes (width, height) in pixels, and clips in a batch of all processes together."""

    tokens: int
    sizes: tuple[tuple[int, int], ...] = ()
    max_length: int = 49
    tolerance: float = 0.1
    batch_size: int = 16
    noises_per_clip: int = 1  # timesteps and noises for each encoded clip
    earlier_tokens: tuple[int, ...] = ()  # token lengths of earlier phases, repeated so that the model keeps them
    earlier_share: float = 0.25  # how often a clip is drawn at one of them
    bases: tuple[int, ...] = ()  # resolutions at which VideoX-Fun's 40 shapes are added to the sizes: 512, 768 ...


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.0  # at the last step, after half a cosine
    warmup_steps: int = 100
    weight_decay: float = 1e-2
    betas: tuple[float, ...] = (0.9, 0.99)
    eps: float = 1e-8
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999  # of the average of the weights; 0 = no average, and no memory for it
    kind: str = "adamw"  # or adamw8bit: bitsandbytes' 8-bit moments, on a GPU


@dataclasses.dataclass(frozen=True)
class Logging:
    """Where losses and pictures go beside the run's folder."""

    trackers: tuple[str, ...] = ()  # of accelerate, such as tensorboard or wandb
    project: str = "cogvideox-fun"  # what the trackers call the run


@dataclasses.dataclass(frozen=True)
class Validation:
    """Clips to look at while the model is trained, always from the same seeds: see `Validator`."""

    every: int = 0  # steps between; 0 = none
    weights: str = "average"  # or current
    # what to make
    rows: tuple[str, ...] = ()  # of start, start_end, region and text; Control: control. Empty = all
    clips: int = 2  # for each row
    folders: tuple[str, ...] = ()  # of videos; empty = held-out shapes, or the first clips of the training
    prompts: tuple[str, ...] = ()  # in place of the clips' captions
    size: tuple[int, ...] = ()  # width, height, frames; empty = the phase's first bucket
    # how
    steps: int = 20
    cfg: float = 6.0
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class FewSteps:
    """How the task ``few_steps`` trains its LoRA: see `tasks.few_steps`."""

    steps: int = 4  # that are to be enough, without guidance
    teacher_steps: int = 40  # of a whole run of the teacher: a multiple of steps, and a divisor of 1000
    # of the teacher's steps in a training step: teacher_steps / steps and more = the teacher alone gives the target
    steps_at_once: int = 1
    guidance: float = 6.0  # of the teacher
    negative: str = ""  # its negative prompt


@dataclasses.dataclass(frozen=True)
class Phase:
    """One run of the trainer.

    ``model`` is a folder in hub layout to start from, and ``output`` the folder for the result. Paths are relative to
    the configuration's folder.
    """

    task: str
    model: str
    output: str
    steps: int
    batches: Batches
    data: Data = Data()
    optimizer: Optimizer = Optimizer()
    masks: Mapping[str, float] = dataclasses.field(default_factory=lambda: dict(MASK_WEIGHTS))
    logging: Logging = Logging()
    validation: Validation = Validation()
    seed: int = 0
    mixed_precision: str = "no"  # no or bf16; the 5B models overflow in fp16
    save_every: int = 500  # steps between checkpoints
    micro_batch: int = 0  # clips per process and forward pass; 0 = all of its share of a batch
    # the transformer alone
    family: str = ""  # 2b, 5b or v1.5: what the model must be; `plan` needs it where the model is not there yet
    checkpoint_blocks: bool = False  # recompute each block for its gradient, which saves memory
    caption_dropout: float = 0.1
    control_dropout: float = 0.0  # how often a Control model gets zeros: see `Encoders`
    snr_gamma: float = 0.0  # min-SNR weights of the loss, 0 = off: see `snr_weight`
    snr_shift: float = 0.0  # of the noise schedule; 0 = the model's own
    loss_level: float = 0.0  # a loss above it has a smaller weight, 0 = off: see `levelled`
    train_text_encoder: bool = False
    text_encoder: str = ""  # a model folder whose text encoder and tokenizer replace the model's
    positions: str = "fun"  # fun (interpolated), cut or generated: see `sampling.positions.PositionOptions`
    # LoRAs alone: the tasks lora and few_steps
    lora_rank: int = 8
    lora_alpha: float = 8.0
    lora: str = ""  # a LoRA file of this trainer to go on from
    train_patch_projection: bool = False  # train the weight of `patch_embed.proj`, too: for new input channels
    few_steps: FewSteps = FewSteps()
    # the VAE alone
    kl_weight: float = 1e-4
    agreement_weight: float = 0.0  # between the latents of a masked clip and of the whole one: see `VAETask`
    train_encoder: bool = True  # False keeps the latent space
    cuda_graphs: bool = False  # on a GPU, start the kernels of a step all at once: see `graphs`; small decoders, too
    masked: float = 0.3  # how often the VAE sees a clip whose unknown part is black, as in conditioning
    # the small decoder alone
    widths: tuple[int, int, int, int] = (256, 128, 64, 64)  # channels, see `TinyDecoder`; the default is taecvx's

    @property
    def makes_lora(self) -> bool:
        """Whether the transformer is frozen, and a LoRA for it is trained."""
        return self.task in ("lora", "few_steps")


def _value(kind, value, where: str):
    """A TOML value as the type of a field."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{where} is {value!r}, expected a list")
        kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is ... else args
        if len(kinds) != len(value):
            raise ConfigError(f"{where} is {value!r}, expected {len(kinds)} values")
        return tuple(_value(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is not None:  # Mapping[str, float]
        if not isinstance(value, dict):
            raise ConfigError(f"{where} is {value!r}, expected a table")
        return {k: _value(args[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where} is {value!r}, expected {kind.__name__}")
    return value


def _read(cls, values, where: str):
    if not isinstance(values, dict):
        raise ConfigError(f"{where} is {values!r}, expected a table")
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for name in values:
        if name not in fields:
            raise ConfigError(f"{where} has no field {name!r}, expected one of {sorted(fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in values and field.default is field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where} lacks {missing[0]}")
    return cls(**{name: _value(fields[name].type, value, f"{where}: {name}") for name, value in values.items()})


Check = Callable[[str, Callable[[typing.Any], bool], str], None]  # a field's name, what it must fulfil, in words


def _check(phase: Phase, where: str) -> None:
    def check(name: str, fine: Callable[[typing.Any], bool], expected: str) -> None:
        value = functools.reduce(getattr, name.split("."), phase)
        if not fine(value):
            shown = list(value) if isinstance(value, tuple) else value
            raise ConfigError(f"{where}: {name} is {shown!r}, expected {expected}")

    choices = {"task": TASKS, "mixed_precision": ("no", "bf16"), "positions": POSITION_MODES}
    choices |= {"optimizer.kind": OPTIMIZERS, "validation.weights": ("average", "current"), "family": FAMILIES}
    for name, allowed in choices.items():
        check(name, lambda value, allowed=allowed: value in allowed, f"one of {list(allowed)}")
    _check_numbers(check)
    _check_data(phase, check)
    _check_tasks(phase, check)
    _check_few_steps(phase, check)
    if phase.data.cache:
        check_cacheable(phase, where)


def _check_numbers(check: Check) -> None:
    for name in ("batches.earlier_share", "batches.tolerance", "optimizer.ema_decay"):
        check(name, lambda value: 0 <= value < 1, "0 to less than 1")
    for name in ("caption_dropout", "control_dropout", "masked"):
        check(name, lambda value: 0 <= value <= 1, "0 to 1")
    for name in ("seed", "data.seed", "validation.seed"):
        check(name, lambda value: 0 <= value < HELD_OUT, f"0 to {HELD_OUT - 1}: the evaluation uses the others")
    from_0 = ["micro_batch", "snr_gamma", "snr_shift", "loss_level", "kl_weight", "agreement_weight", "data.count"]
    from_0 += ["optimizer.final_learning_rate", "optimizer.warmup_steps", "optimizer.weight_decay", "validation.every"]
    for name in from_0:
        check(name, lambda value: value >= 0, "0 or more")
    positive = ["steps", "save_every", "batches.tokens", "batches.batch_size", "batches.noises_per_clip"]
    positive += ["validation.steps", "validation.clips", "optimizer.learning_rate", "optimizer.eps"]
    positive += ["optimizer.max_grad_norm"]  # a limit of 0 makes every gradient 0
    positive += ["lora_rank", "lora_alpha"]  # an alpha of 0, which is the rank in VideoX-Fun, would train nothing
    for name in positive:
        check(name, lambda value: value > 0, "more than 0")
    check("optimizer.betas", lambda b: len(b) == 2 and all(0 <= v < 1 for v in b), "two numbers from 0 to less than 1")
    check("batches.max_length", lambda length: length > 0 and length % 4 == 1, "4n + 1 frames, such as 49")
    check("widths", lambda widths: min(widths) > 0, "four numbers of channels, each more than 0")
    check("validation.size", lambda size: len(size) in (0, 3), "width, height and frames")


def _check_data(phase: Phase, check: Check) -> None:
    for name, known in {"masks": [*KINDS, VIDEOX_FUN], "data.backgrounds": list(BACKGROUNDS)}.items():
        check(name, lambda w, known=known: all(k in known and w[k] >= 0 for k in w), f"weights from 0 for {known}")
        check(name, lambda weights: sum(weights.values()) > 0, "a weight above 0")
    for name, known in {"data.shapes": [*SHAPES, NEW_SHAPE], "data.kinds": list(SCENES)}.items():
        check(name, lambda value, known=known: value and set(value) <= set(known), f"some of {known}")
    check("batches", lambda batches: batches.sizes or batches.bases, "sizes or bases")
    check("data.workers", lambda value: value >= -1, "0 or more, or -1 to choose")
    check("data.fps", lambda value: value >= 0, "frames a second, or 0 for all frames")
    manifest, videos = phase.data.manifest, phase.data.manifest or phase.data.folders
    check("data.folders", lambda value: not (value and manifest), "none beside a manifest: give one of them")
    check("data.control", lambda value: value in ("", EDGES) or videos, f"{EDGES!r}: procedural clips have no files")
    expected = "two numbers above 0 and below 1, the lower one first"
    check("data.edge_thresholds", lambda t: 0 < t[0] < t[1] < 1, expected)


def _check_tasks(phase: Phase, check: Check) -> None:
    """Fields that only some tasks have."""
    task = phase.task
    check(
        "lora", lambda value: not value or phase.makes_lora, "none: only the tasks lora and few_steps go on from one"
    )
    check("train_text_encoder", lambda value: not value or task == "full", "false: only task full writes a T5")
    check("train_patch_projection", lambda value: not value or task == "lora", "false: only task lora trains it")
    check("snr_gamma", lambda value: not value or task != "few_steps", "0: few_steps does not weight timesteps")
    check("snr_shift", lambda value: not value or task != "few_steps", "0: few_steps is for the model's own schedule")
    expected = f"false: CUDA graphs work with the tasks {' and '.join(OF_THE_VAE)} alone"
    check("cuda_graphs", lambda value: not value or task in OF_THE_VAE, expected)


def _check_few_steps(phase: Phase, check: Check) -> None:
    steps = phase.few_steps.steps
    for name in ("steps", "steps_at_once"):
        check(f"few_steps.{name}", lambda value: value > 0, "more than 0")
    expected = f"a multiple of few_steps.steps, which is {steps}"
    check("few_steps.teacher_steps", lambda value: value > 0 and value % steps == 0, expected)
    check("few_steps.guidance", lambda value: value >= 1, "1 (no guidance) or more")


def check_cacheable(phase: Phase, where: str) -> None:
    """Raise a ConfigError if a phase can't be trained from encoded clips."""
    if phase.task in OF_THE_VAE:
        raise ConfigError(
            f"{where}: task is {phase.task!r}, expected full, lora or few_steps: the VAE and small decoders are "
            "trained on clips"
        )
    if phase.train_text_encoder:
        raise ConfigError(
            f"{where}: train_text_encoder is True, expected false: a cache has the features of a frozen T5"
        )


def phase_of_values(values: Mapping, where: str) -> Phase:
    """A phase from the values of its fields, as a checkpoint keeps them; see `read_phase`.

    Raises:
        ConfigError: they are not those of a phase.
    """
    return _read(Phase, values, where)


def read_phase(path: str | Path, **changes) -> Phase:
    """Read a phase from a TOML file, with paths made absolute.

    Args:
        changes: fields to replace, as the command line gives them.

    Raises:
        ConfigError: what is wrong, and where.
    """
    try:
        import tomllib
    except ImportError:  # Python 3.10
        import tomli as tomllib

    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as TOML: {error}") from error
    phase = dataclasses.replace(_read(Phase, values, str(path)), **changes)
    _check(phase, str(path))
    base = path.resolve().parent
    manifest = str(base / phase.data.manifest) if phase.data.manifest else ""
    cache = str(base / phase.data.cache) if phase.data.cache else ""
    phase = dataclasses.replace(phase, data=dataclasses.replace(phase.data, manifest=manifest, cache=cache))
    data, validation = (
        dataclasses.replace(part, folders=tuple(str(base / folder) for folder in part.folders))
        for part in (phase.data, phase.validation)
    )
    paths = {
        name: str(base / getattr(phase, name))
        for name in ("model", "output", "text_encoder", "lora")
        if getattr(phase, name)
    }
    return dataclasses.replace(phase, data=data, validation=validation, **paths)

"""What one phase of training does, read from a TOML file."""

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from pathlib import Path

from ...sampling.positions import POSITION_MODES
from ..data.masks import KINDS
from ..data.shapes import HELD_OUT, NEW_SHAPE, SHAPES

TASKS = ("vae", "full", "lora")
OPTIMIZERS = ("adamw", "adamw8bit")
MASK_WEIGHTS = {"start": 0.25, "end": 0.1, "start_end": 0.2, "region": 0.2, "everything": 0.05, "nothing": 0.2}


class ConfigError(ValueError):
    """A configuration that can't be used; the message has the file, the field, the value and what was expected."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Where clips come from: ``folders`` of videos with captions, or procedural shapes if there are none."""

    folders: tuple[str, ...] = ()
    fps: float = 8.0  # frames a second to take from a video: the models' own rate; 0 = all frames
    shapes: tuple[str, ...] = SHAPES
    count: int = 0  # procedural clips before they repeat; 0 = never
    seed: int = 0
    workers: int = 0  # processes that read clips while the model trains


@dataclasses.dataclass(frozen=True)
class Batches:
    """Token length, sizes (width, height) in pixels, and clips in a batch of all processes together."""

    tokens: int
    sizes: tuple[tuple[int, int], ...]
    max_length: int = 49
    tolerance: float = 0.1
    batch_size: int = 16
    noises_per_clip: int = 1  # timesteps and noises for each encoded clip
    earlier_tokens: tuple[int, ...] = ()  # token lengths of earlier phases, repeated so that the model keeps them
    earlier_share: float = 0.25  # how often a clip is drawn at one of them


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.0  # at the last step, after half a cosine
    warmup_steps: int = 100
    weight_decay: float = 1e-2
    betas: tuple[float, ...] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999  # of the average of the weights; 0 = no average, and no memory for it
    kind: str = "adamw"  # or adamw8bit: bitsandbytes' 8-bit moments, on a GPU


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
    seed: int = 0
    mixed_precision: str = "no"  # no or bf16; the 5B models overflow in fp16
    save_every: int = 500  # steps between checkpoints
    micro_batch: int = 0  # clips per process and forward pass; 0 = all of its share of a batch
    # the transformer alone
    checkpoint_blocks: bool = False  # recompute each block for its gradient, which saves memory
    caption_dropout: float = 0.1
    train_text_encoder: bool = False
    text_encoder: str = ""  # a model folder whose text encoder and tokenizer replace the model's
    positions: str = "fun"  # fun (interpolated), cut or generated: see `sampling.positions.PositionOptions`
    # LoRA alone
    lora_rank: int = 8
    lora_alpha: float = 8.0
    # the VAE alone
    kl_weight: float = 1e-4
    agreement_weight: float = 0.0  # between the latents of a masked clip and of the whole one: see `VAETask`
    train_encoder: bool = True  # False keeps the latent space
    masked: float = 0.3  # how often the VAE sees a clip whose unknown part is black, as in conditioning


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


def _check(phase: Phase, where: str) -> None:
    def check(name: str, fine: Callable[[typing.Any], bool], expected: str) -> None:
        value = functools.reduce(getattr, name.split("."), phase)
        if not fine(value):
            shown = list(value) if isinstance(value, tuple) else value
            raise ConfigError(f"{where}: {name} is {shown!r}, expected {expected}")

    shapes = [*SHAPES, NEW_SHAPE]
    choices = {"task": TASKS, "mixed_precision": ("no", "bf16"), "positions": POSITION_MODES}
    for name, allowed in {**choices, "optimizer.kind": OPTIMIZERS}.items():
        check(name, lambda value, allowed=allowed: value in allowed, f"one of {list(allowed)}")
    check("masks", lambda m: all(kind in KINDS and m[kind] >= 0 for kind in m), f"weights from 0 for {list(KINDS)}")
    check("masks", lambda masks: sum(masks.values()) > 0, "a weight above 0")
    check("data.shapes", lambda value: value and set(value) <= set(shapes), f"some of {shapes}")
    check("optimizer.betas", lambda b: len(b) == 2 and all(0 <= v < 1 for v in b), "two numbers from 0 to less than 1")
    for name in ("batches.earlier_share", "batches.tolerance", "optimizer.ema_decay"):
        check(name, lambda value: 0 <= value < 1, "0 to less than 1")
    for name in ("caption_dropout", "masked"):
        check(name, lambda value: 0 <= value <= 1, "0 to 1")
    for name in ("seed", "data.seed"):
        check(name, lambda value: 0 <= value < HELD_OUT, f"0 to {HELD_OUT - 1}: the evaluation uses the others")
    check("micro_batch", lambda value: value >= 0, "0 or more")
    counts = "tokens", "batch_size", "noises_per_clip"
    for name in ("steps", "save_every", "lora_rank", "optimizer.learning_rate", *(f"batches.{c}" for c in counts)):
        check(name, lambda value: value > 0, "more than 0")


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
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as TOML: {error}") from error
    phase = dataclasses.replace(_read(Phase, values, str(path)), **changes)
    _check(phase, str(path))
    base = path.resolve().parent
    data = dataclasses.replace(phase.data, folders=tuple(str(base / folder) for folder in phase.data.folders))
    paths = {
        name: str(base / getattr(phase, name)) for name in ("model", "output", "text_encoder") if getattr(phase, name)
    }
    return dataclasses.replace(phase, data=data, **paths)

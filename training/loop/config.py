"""What one phase of training does, read from a TOML file."""

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path

from ...sampling.positions import POSITION_MODES
from ..data.masks import KINDS
from ..data.shapes import HELD_OUT, NEW_SHAPE, SHAPES

TASKS = ("vae", "full", "lora")
MASK_WEIGHTS = {"start": 0.25, "end": 0.1, "start_end": 0.2, "region": 0.2, "everything": 0.05, "nothing": 0.2}


class ConfigError(ValueError):
    """A configuration that can't be run; the message names the file, the field, the value and what was expected."""


@dataclasses.dataclass(frozen=True)
class Data:
    """Where clips come from: ``folders`` of videos with captions, or, without any, procedural shapes."""

    folders: tuple[str, ...] = ()
    fps: float = 8.0  # frames a second that are taken of a video: the models' own rate; 0 = all that the file has
    shapes: tuple[str, ...] = SHAPES
    count: int = 0  # procedural clips before they repeat; 0 = never
    seed: int = 0


@dataclasses.dataclass(frozen=True)
class Batches:
    """Token length, sizes (width, height) in pixels, and clips in a batch of all processes together."""

    tokens: int
    sizes: tuple[tuple[int, int], ...]
    max_length: int = 49
    tolerance: float = 0.1
    batch_size: int = 16
    noises_per_clip: int = 1  # timesteps and noises drawn for one encoded clip
    earlier_tokens: tuple[int, ...] = ()  # token lengths of earlier phases, rehearsed lest they be forgotten
    earlier_share: float = 0.25  # how often a clip is drawn at one of them


@dataclasses.dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-4
    final_learning_rate: float = 0.0  # at the last step, after half a cosine
    warmup_steps: int = 100
    weight_decay: float = 1e-2
    betas: tuple[float, ...] = (0.9, 0.99)
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999


@dataclasses.dataclass(frozen=True)
class Phase:
    """One run of the trainer.

    ``model`` is a folder in hub layout to start from and ``output`` the folder that the trained parts go to; paths
    are relative to the configuration's folder.
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
    micro_batch: int = 0  # clips that a process takes through the model at once; 0 = its whole share of a batch
    # the transformer alone
    checkpoint_blocks: bool = False  # compute each block again for its gradient, for memory
    caption_dropout: float = 0.1
    train_text_encoder: bool = False
    text_encoder: str = ""  # a model folder whose text encoder and tokenizer take the place of the model's
    positions: str = "fun"  # fun (interpolated), cut or generated: see `sampling.positions.PositionOptions`
    # LoRA alone
    lora_rank: int = 8
    lora_alpha: float = 8.0
    # the VAE alone
    kl_weight: float = 1e-4
    agreement_weight: float = 0.0  # of what is known, in a masked clip and in the whole one: see `VAETask`
    train_encoder: bool = True  # without it the latent space stays what it is
    masked: float = 0.3  # how often the VAE sees a clip with its unknown part black, as conditioning will be


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
    for name, allowed in {
        "task": TASKS,
        "mixed_precision": ("no", "bf16"),
        "positions": POSITION_MODES,
    }.items():
        if getattr(phase, name) not in allowed:
            raise ConfigError(f"{where}: {name} is {getattr(phase, name)!r}, expected one of {list(allowed)}")
    for kind, weight in phase.masks.items():
        if kind not in KINDS or weight < 0:
            raise ConfigError(f"{where}: masks has {kind} = {weight}, expected weights from 0 for {list(KINDS)}")
    if not sum(phase.masks.values()) > 0:
        raise ConfigError(f"{where}: masks has no weight above 0")
    if not phase.data.shapes or not set(phase.data.shapes) <= {*SHAPES, NEW_SHAPE}:
        raise ConfigError(
            f"{where}: data.shapes is {list(phase.data.shapes)}, expected some of {[*SHAPES, NEW_SHAPE]}"
        )
    if len(phase.optimizer.betas) != 2:
        raise ConfigError(f"{where}: optimizer.betas is {list(phase.optimizer.betas)}, expected two numbers")
    shares = {
        "batches.earlier_share": phase.batches.earlier_share,
        "batches.tolerance": phase.batches.tolerance,
        "optimizer.ema_decay": phase.optimizer.ema_decay,
        **{f"optimizer.betas[{i}]": beta for i, beta in enumerate(phase.optimizer.betas)},
    }
    for name, value in shares.items():
        if not 0 <= value < 1:
            raise ConfigError(f"{where}: {name} is {value}, expected 0 to less than 1")
    for name in ("caption_dropout", "masked"):
        if not 0 <= getattr(phase, name) <= 1:
            raise ConfigError(f"{where}: {name} is {getattr(phase, name)}, expected 0 to 1")
    for name, value in {"seed": phase.seed, "data.seed": phase.data.seed}.items():
        if not 0 <= value < HELD_OUT:
            raise ConfigError(f"{where}: {name} is {value}, expected 0 to {HELD_OUT - 1}: the others are held out")
    if phase.micro_batch < 0:
        raise ConfigError(f"{where}: micro_batch is {phase.micro_batch}, expected 0 or more")
    positive = {
        "steps": phase.steps,
        "save_every": phase.save_every,
        "lora_rank": phase.lora_rank,
        "batches.tokens": phase.batches.tokens,
        "batches.batch_size": phase.batches.batch_size,
        "batches.noises_per_clip": phase.batches.noises_per_clip,
        "optimizer.learning_rate": phase.optimizer.learning_rate,
    }
    for name, value in positive.items():
        if not value > 0:
            raise ConfigError(f"{where}: {name} is {value}, expected more than 0")


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

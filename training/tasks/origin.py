"""What encoded clips are made from, so that no phase trains from the clips of another one."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from ...model_loading.files.checkpoint import Checkpoint
from ..data.cache import Cache
from ..loop.config import Phase

PIECES, PIECE = 64, 64 * 1024  # of each file of weights, spread evenly: T5 alone has 9.5 GB
FREE_BATCHES = ("batch_size", "noises_per_clip")  # they choose among encoded clips, and change none
FREE_DATA = ("cache", "workers", "folders", "manifest")  # the clips may be on another machine


def files_hash(files: list[Path]) -> str:
    """A hash of the names, sizes and bytes of files; of a large file, of its beginning and of evenly spread pieces."""
    made = hashlib.sha256()
    for path in sorted(files):
        size = path.stat().st_size
        made.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            step = max((size - PIECE) // (PIECES - 1), PIECE)
            for start in range(0, size, step):
                file.seek(start)
                made.update(file.read(PIECE))
    return made.hexdigest()[:16]


def _hash(folder: Path | None, *patterns: str) -> str | None:
    files = [path for pattern in patterns for path in folder.glob(pattern)] if folder else []
    return files_hash(files) if files else None


def origin(phase: Phase, checkpoint: Checkpoint, texts: Checkpoint) -> dict:
    """What the latents and features of a phase depend on, by name. A part that a folder lacks is None.

    Args:
        checkpoint: of the model that is trained.
        texts: the folder with its text encoder and tokenizer.
    """
    batches, data = dataclasses.asdict(phase.batches), dataclasses.asdict(phase.data)
    found = {
        "conditioning": checkpoint.config.conditioning,
        "reference noise": bool(checkpoint.config.reference_noise),
        "latent frames per patch": checkpoint.config.patch_size_t or 1,
        "scale factor": checkpoint.scale_factor,
        "VAE": _hash(checkpoint.vae, "*.safetensors"),
        "text encoder": _hash(texts.text_encoder, "*.safetensors"),
        "tokenizer": _hash(texts.tokenizer, "spiece.model", "tokenizer*.json"),
        "masks": dict(phase.masks),
        "control_dropout": phase.control_dropout,
        **{f"batches.{name}": value for name, value in batches.items() if name not in FREE_BATCHES},
        **{f"data.{name}": value for name, value in data.items() if name not in FREE_DATA},
    }
    return json.loads(json.dumps(found))  # lists, as a file has them


def differences(found: dict, wanted: dict) -> Iterator[str]:
    """Where two origins differ, in words. A part that one of them lacks is not compared."""
    for name in sorted({*found, *wanted}):
        a, b = found.get(name), wanted.get(name)
        if a != b and None not in (a, b):
            yield f"{name} was {a}, and is {b}"


def check_origin(cache: Cache, wanted: dict) -> None:
    """Raise a ValueError if a cache is not of the phase whose origin is given."""
    changes = list(differences(cache.origin, wanted))
    if changes:
        raise ValueError(
            f"{cache.folder} was encoded for another phase ({'; '.join(changes)}): run encode with this "
            "configuration, into another folder"
        )

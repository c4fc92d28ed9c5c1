"""Checkpoints of a run: what is trained, its average, the optimizer's state and the step. Safetensors, no pickles."""

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .ema import EMA

NAME = "checkpoint.safetensors"
REMEDY = "give another output folder, or remove it"


def difference(theirs: str, ours: str) -> str:
    """The first of two texts' lines that differs."""
    pairs = zip(theirs.splitlines(), ours.splitlines(), strict=False)
    return next((f"it had {a!r}, here {b!r}" for a, b in pairs if a != b), "its configuration is another")


def save_state(
    # where
    folder: Path,
    about: str,
    # what
    parameters: dict[str, torch.nn.Parameter],
    optimizer,
    ema: EMA,
    step: int,
) -> None:
    """Write a checkpoint; an older one stays until this one is whole.

    Args:
        about: what the run is, which another run must not take up.
        parameters: what is trained, by name, in the optimizer's order.
        step: how many steps are done.
    """
    tensors = {f"parameter.{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"average.{name}": average for name, average in zip(parameters, ema.averages, strict=True)}
    state = optimizer.state_dict()["state"]
    for index, name in enumerate(parameters):
        tensors |= {f"optimizer.{key}.{name}": value for key, value in state.get(index, {}).items()}
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{NAME}.tmp"
    tensors = {key: value.cpu().contiguous().clone() for key, value in tensors.items()}
    save_file(tensors, temporary, metadata={"step": str(step), "updates": str(ema.updates), "about": about})
    temporary.replace(folder / NAME)


def load_state(folder: Path, about: str, parameters: dict[str, torch.nn.Parameter], optimizer, ema: EMA) -> int:
    """Take up a checkpoint; returns how many steps were done, 0 if there is none.

    Raises:
        ValueError: it is of another model, another task or another configuration.
    """
    path = folder / NAME
    if not path.is_file():
        return 0
    with safe_open(str(path), framework="pt") as file:
        keys = set(file.keys())
        found = {key.removeprefix("parameter.") for key in keys if key.startswith("parameter.")}
        if found != set(parameters):
            odd = sorted(found ^ set(parameters))[0]
            raise ValueError(f"{path} is of another run ({odd} differs): {REMEDY}")
        for name, parameter in parameters.items():
            shape = file.get_slice(f"parameter.{name}").get_shape()
            if shape != list(parameter.shape):
                raise ValueError(
                    f"{path} is of another run ({name} is {shape}, here {list(parameter.shape)}): {REMEDY}"
                )
        metadata = file.metadata() or {}
        if not {"about", "step", "updates"} <= metadata.keys():
            raise ValueError(f"{path} does not say what run it is of: {REMEDY}")
        if metadata["about"] != about:
            raise ValueError(f"{path} is of another run ({difference(metadata['about'], about)}): {REMEDY}")
        kinds = sorted({key.split(".")[1] for key in keys if key.startswith("optimizer.")})
        state = {}
        with torch.no_grad():
            for index, (name, parameter) in enumerate(parameters.items()):
                parameter.copy_(file.get_tensor(f"parameter.{name}"))
                ema.averages[index].copy_(file.get_tensor(f"average.{name}"))
                names = {kind: f"optimizer.{kind}.{name}" for kind in kinds}
                state[index] = {kind: file.get_tensor(key) for kind, key in names.items() if key in keys}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    ema.updates = int(metadata["updates"])
    return int(metadata["step"])

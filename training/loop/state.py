"""Checkpoints of a run.

`accelerate` saves the optimizer, the average and the random generators. Two files are added: what is trained, without
the frozen parts (T5 alone has 9.5 GB), and a description of the run, so that no other run continues from it.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS, RUN = "trained.safetensors", "run.json"


class Checkpoints:
    """The checkpoints of a run, of which the newest is kept: ``folder/checkpoint_<step>``.

    Args:
        about: describes the run, a value per line.
        parameters: what is trained, by name.
        ema: diffusers' average of them.
    """

    def __init__(self, accelerator, folder: Path, about: str, parameters: dict[str, torch.nn.Parameter], ema):
        self.accelerator, self.folder, self.about, self.parameters = accelerator, folder, about, parameters
        self.ema = ema
        accelerator.register_for_checkpointing(ema)
        accelerator.register_save_state_pre_hook(self._save_weights)
        accelerator.register_load_state_pre_hook(self._load_weights)

    def newest(self) -> Path | None:
        return max(self.folder.glob("checkpoint_*"), default=None)

    def save(self, step: int) -> None:
        """Write a checkpoint; the older one stays until this one is complete."""
        unfinished, older = self.folder / "unfinished", set(self.folder.glob("checkpoint_*"))
        target = self.folder / f"checkpoint_{step:07d}"
        if self.accelerator.is_main_process:
            shutil.rmtree(unfinished, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(unfinished))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            (unfinished / RUN).write_text(json.dumps({"step": step, "about": self.about}), encoding="utf-8")
            unfinished.rename(target)
            for path in older:
                shutil.rmtree(path)
        self.accelerator.wait_for_everyone()

    def load(self) -> int:
        """Continue from the newest checkpoint; returns how many steps were done, 0 if there is none.

        Raises:
            ValueError: it is of another run.
        """
        path = self.newest()
        if path is None:
            return 0
        run = json.loads((path / RUN).read_text(encoding="utf-8"))
        if run["about"] != self.about:
            pairs = zip(run["about"].splitlines(), self.about.splitlines(), strict=False)
            change = next((f"it had {a!r}, here {b!r}" for a, b in pairs if a != b), "it has other fields")
            raise ValueError(f"{path} is of another run ({change}): give another output folder, or remove it")
        self.accelerator.load_state(str(path))
        self.ema.to(self.accelerator.device)
        return run["step"]

    def _save_weights(self, models: list, weights: list, folder: str) -> None:
        weights.clear()
        if self.accelerator.is_main_process:
            save_file({name: p.detach().cpu().clone() for name, p in self.parameters.items()}, Path(folder) / WEIGHTS)

    @torch.no_grad()
    def _load_weights(self, models: list, folder: str) -> None:
        models.clear()
        found = load_file(Path(folder) / WEIGHTS)
        if {name: p.shape for name, p in found.items()} != {name: p.shape for name, p in self.parameters.items()}:
            raise ValueError(f"{folder} is of another model: give another output folder, or remove it")
        for name, parameter in self.parameters.items():
            parameter.copy_(found[name])

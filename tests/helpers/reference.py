"""VideoX-Fun's numbers in tests/data (see the README there) and models made of them."""

import ast
import json
from pathlib import Path

import torch
from cogvideox_fun.sampling.masks import build_start_end
from safetensors import safe_open
from safetensors.torch import load_file, save_file

DATA = Path(__file__).parents[1] / "data"
RUNS = [("2b", "i2v"), ("5b", "i2v_end"), ("5b", "inpaint"), ("v1.5", "i2v"), ("v1.5", "t2v")]
SCALE = {"2b": 1.15258426, "5b": 0.7, "v1.5": 0.7}
VARIANTS = ("2b", "5b", "v1.5", "2b-control")


def load(name: str) -> dict[str, torch.Tensor]:
    return load_file(DATA / f"{name}.safetensors")


def metadata(name: str) -> dict:
    """A file's metadata with its values as Python's own types."""
    with safe_open(str(DATA / f"{name}.safetensors"), "pt") as file:
        raw = file.metadata()
    values = {}
    for key, text in raw.items():
        try:
            values[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            values[key] = text
    return values


def channels_second(x: torch.Tensor) -> torch.Tensor:
    """Between VideoX-Fun's B F C h w and ours, B C T h w."""
    return x.movedim(1, 2)


def image(x: torch.Tensor) -> torch.Tensor:
    """H W 3 bytes as [1, H, W, 3] of 0..1."""
    return x[None].float() / 255


def inputs_of(task: str, data: dict, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Video and mask of a task from the pictures of a run."""
    if task == "inpaint":
        return data["video_u8"].float() / 255, data["maskimg_u8"][None].float() / 255
    names = {"i2v": ("start",), "i2v_end": ("start", "end")}.get(task, ())
    return build_start_end(80, 48, length, *(image(data[f"{name}_rgb_u8"]) for name in names))


def write_model(folder: Path, variant: str, scale_factor: float, text: Path | None = None) -> Path:
    """VideoX-Fun's tiny model of a variant as a folder in hub layout.

    Args:
        text: a folder whose text_encoder and tokenizer are linked in.
    """
    for part, weights in (("transformer", f"transformer_{variant}_weights"), ("vae", "vae_weights")):
        (folder / part).mkdir(parents=True)
        config = metadata(weights)
        if part == "vae":
            config["scaling_factor"] = scale_factor
        (folder / part / "config.json").write_text(json.dumps(config))
        save_file(load(weights), folder / part / "diffusion_pytorch_model.safetensors")
    for part in ("text_encoder", "tokenizer") if text else ():
        (folder / part).symlink_to(text / part)
    return folder

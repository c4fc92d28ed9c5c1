"""The model files that the loaders list."""

import dataclasses
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import folder_paths
from comfy_api.latest import io

from ..model_loading.errors import CheckpointError, listed, shown
from ..model_loading.files import checkpoint
from ..model_loading.files.t5 import is_t5_file
from ..model_loading.files.tiny_decoder import is_tiny_decoder_file

FIRST = object()  # the default of a loader's name: the first in the list
HUB = "https://huggingface.co/alibaba-pai"
HUB_EXAMPLE = "CogVideoX-Fun-V1.1-2b-InP"
PUBLISHED = re.compile(r"CogVideoX-Fun-[\w.]+-(InP|Control|Pose)")  # names there, to say where a missing one is
NO_MODEL = "(no model found)"
OWN_MODELS = Path(__file__).resolve().parent.parent / "models"  # the nano model, which comes with the pack


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files that a loader lists.

    Args:
        what: their name in messages.
        kind: ComfyUI's folder of single files.
        find: gives name -> path.
        in_repositories: repositories hold such files, too.
    """

    what: str
    kind: str
    find: Callable[[], dict[str, Path]]
    in_repositories: bool = True

    def input(self, name: str, tooltip: str):
        return io.Combo.Input(name, options=list(self.find()) or [NO_MODEL], tooltip=tooltip)

    def missing(self, name, found: dict[str, Path]) -> str:
        """The message for a name that is not found: what there is, every folder looked in, and what to put there."""
        if not found:
            problem = f"no CogVideoX-Fun {self.what} found"
        elif not name or name == NO_MODEL:
            problem = f"no {self.what} is chosen, expected one of those found ({listed(found)})"
        else:
            problem = f"the {self.what} {shown(name)} is not among those found ({listed(found)})"
        remedy = f"put a safetensors file into {', '.join(folder_paths.get_folder_paths(self.kind))}"
        if self.in_repositories:
            is_known = isinstance(name, str) and PUBLISHED.fullmatch(name)
            address = f"{HUB}/{name}" if is_known else f"for example {HUB}/{HUB_EXAMPLE}"
            remedy = (
                f"put a whole repository of Hugging Face, {address}, into a folder of its own in "
                f"{', '.join(map(str, hub_roots()))}, or {remedy}"
            )
        return f"{problem}: {remedy}; then refresh"

    def check(self, name: str | None) -> bool | str:
        """For ``validate_inputs``. ComfyUI passes None for a linked name, which `choose` checks."""
        found = self.find()
        return True if name is None or name in found else self.missing(name, found)

    def choose(self, name) -> tuple[str, Path]:
        """A name and its path. Raises a ValueError that names the searched folders if there is no such name."""
        found = self.find()
        if name is FIRST:
            name = next(iter(found), "")
        if not isinstance(name, str) or name not in found:
            raise ValueError(self.missing(name, found))
        return name, found[name]

    def fingerprint(self, name: str | None, beside: Callable[[Path | None], Path | None] = lambda path: None) -> str:
        """For ``fingerprint_inputs``: changes when the file is replaced, or any file if the name is linked.

        Args:
            beside: another file or folder that is loaded with this one.
        """
        found = self.find()
        if name is None:
            return fingerprint(*found.values())
        path = found.get(name)
        return fingerprint(path, beside(path))


def fingerprint(*paths: Path | None) -> str:
    """Changes when files or folders on disk are replaced, so that ComfyUI loads them again."""
    files = []
    for path in filter(None, paths):
        files += sorted(path.glob("**/*")) if path.is_dir() else [path]
    return ";".join(f"{f}:{f.stat().st_mtime_ns}:{f.stat().st_size}" for f in files if f.is_file())


def base_of(path: Path | None) -> Path | None:
    """The other folder that a model's weights come from, if it has one. Loading the model reports errors."""
    try:
        return checkpoint.base_of(path) if path is not None and path.is_dir() else None
    except CheckpointError:
        return None


def hub_roots() -> list[Path]:
    """Folders of model repositories; those of ``extra_model_paths.yaml`` come first."""
    roots = []
    for name in checkpoint.MODEL_FOLDERS:
        if name in folder_paths.folder_names_and_paths:
            roots += folder_paths.get_folder_paths(name)
        roots.append(os.path.join(folder_paths.models_dir, name))
    roots += folder_paths.get_folder_paths("diffusers") if "diffusers" in folder_paths.folder_names_and_paths else []
    return [Path(root) for root in dict.fromkeys(roots)]


def single_files(kind: str) -> dict[str, Path]:
    """ComfyUI's files of a kind (diffusion_models, vae, text_encoders, loras), name -> path."""
    paths = {name: folder_paths.get_full_path(kind, name) for name in folder_paths.get_filename_list(kind)}
    return {name: Path(path) for name, path in paths.items() if path is not None}


def with_own(found: dict[str, Path], own: dict[str, Path]) -> dict[str, Path]:
    """The user's files, then the pack's own where the user has none of that name."""
    return found | {name: path for name, path in own.items() if name not in found}


def find_models() -> dict[str, Path]:
    """Model folders, single files, and last the pack's own model: name -> path."""
    files = single_files("diffusion_models")
    if "unet_gguf" in folder_paths.folder_names_and_paths:  # ComfyUI-GGUF is installed
        files |= single_files("unet_gguf")
    return with_own(checkpoint.find_models(hub_roots(), files), checkpoint.find_models([OWN_MODELS], {}))


def find_parts(part: str, kind: str, is_one: Callable[[Path], bool]) -> dict[str, Path]:
    """``<name>/<part>`` of model folders, single files, and last the pack's own: name -> path."""

    def parts(roots: list[Path]) -> dict[str, Path]:
        folders = checkpoint.find_models(roots, {})
        return {f"{name}/{part}": f / part for name, f in folders.items() if (f / part / "config.json").is_file()}

    files = {name: path for name, path in single_files(kind).items() if is_one(path)}
    return with_own(parts(hub_roots()) | files, parts([OWN_MODELS]))


def find_vaes() -> dict[str, Path]:
    """VAEs, then small decoders: of models/vae_approx and models/vae, and those of model folders."""

    def decoders(roots: list[Path]) -> dict[str, Path]:
        folders = checkpoint.find_models(roots, {})
        paths = {f"{name}/{checkpoint.TINY_DECODER}": checkpoint.tiny_decoder_of(f) for name, f in folders.items()}
        return {name: path for name, path in paths.items() if path is not None}

    files = single_files("vae") | single_files("vae_approx")
    small = {name: path for name, path in files.items() if is_tiny_decoder_file(path)}
    found = find_parts("vae", "vae", checkpoint.is_vae_file)
    return with_own(found, with_own(small | decoders(hub_roots()), decoders([OWN_MODELS])))


def find_loras() -> dict[str, Path]:
    """LoRA files, and last the pack's own: name -> path."""
    own = OWN_MODELS.glob("*/lora/*.safetensors")
    return with_own(single_files("loras"), {f"{path.parent.parent.name}/{path.name}": path for path in own})


MODELS = Listing("model", "diffusion_models", find_models)
TEXT_ENCODERS = Listing(
    "text encoder", "text_encoders", lambda: find_parts("text_encoder", "text_encoders", is_t5_file)
)
VAES = Listing("VAE", "vae", find_vaes)
LORAS = Listing("LoRA", "loras", find_loras, in_repositories=False)

# What the loaders made of files, for as long as anything holds it, so that another weight_dtype does not load T5 and
# the VAE again. On ComfyUI 0.3.64 and 0.8.0 the nodes that the model loader adds to the graph are enough for that. But
# 0.33.0 drops their results after a run that took the model loader's result from its cache; this finds what is
# still in use.
LOADED: weakref.WeakValueDictionary = weakref.WeakValueDictionary()


def loaded(load: Callable, *paths: Path | None):
    """What ``load`` made of these files before, or None."""
    return LOADED.get((load, fingerprint(*paths)))


def load_once(load: Callable, *paths: Path | None):
    """What ``load`` makes of these files, or made of them before."""
    key = load, fingerprint(*paths)
    found = LOADED.get(key)
    if found is None:
        found = LOADED[key] = load(*paths)
    return found

"""What the nodes share: inputs with their ranges, the wording of tooltips, and where models lie."""

import os
import weakref
from pathlib import Path

import folder_paths
from comfy_api.latest import io, ui

from ..model_loading.errors import listed, shown
from ..model_loading.files import checkpoint
from ..model_loading.networks.config import is_finite
from ..sampling.schedule import SPACINGS

CATEGORY = "CogVideoX-Fun"
NO_MODEL = "(no model found)"
FIRST = object()  # the default of a loader's name, where `execute` is called without it
OWN_MODELS = Path(__file__).resolve().parent.parent / "models"  # the nano model, which comes with the pack
SPACING_OPTIONS = ["auto", *SPACINGS]

LOADED: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # see `held`

SPACING_TOOLTIP = (
    "Which of the 1000 timesteps are run. auto: what the model's own configuration says; trailing ends its strides at "
    "the last timestep, linspace spreads them from the first to the last, leading begins them at the first."
)
DENOISE_TOOLTIP = (
    "How much of the input is replaced, 0 to 1. As in KSampler, all steps are run: they are the last of a schedule of "
    "steps / denoise. The authors' 10 steps at strength 0.7 are 7 steps at denoise 0.7 here."
)
MASK_TOOLTIP = "1 (white) = generate, 0 (black) = keep."


def schema(*, search_aliases: tuple[str, ...] = (), shows_picture: bool = False, **fields) -> io.Schema:
    """The definition of a node.

    Args:
        search_aliases: what else people type to find the node. Hosts whose Schema has no such field, as 0.3.64, search
            by name and id alone.
        shows_picture: a picture appears under the node though it ends no graph. Newer hosts must be told, to show it
            again when the node's result comes from their cache; 0.3.64 does so by itself.
        fields: those of the host's Schema.
    """
    newer = {"search_aliases": list(search_aliases), "has_intermediate_output": shows_picture}
    known = io.Schema.__dataclass_fields__
    return io.Schema(**fields, **{name: value for name, value in newer.items() if name in known})


def show_text(node, text: str) -> ui.PreviewText:
    """Show a line under a node whose schema asks for ``unique_id``, as the host's GetImageSize does.

    The result is the node's ``ui``, by which the line stands in the history of the run, too.
    """
    node_id = node.hidden.unique_id if node.hidden else None
    if node_id:
        from server import PromptServer  # here: it starts a good part of the host

        PromptServer.instance.send_progress_text(text, node_id)
    return ui.PreviewText(text)


def size_inputs() -> list:
    return [
        io.Int.Input(
            "width", default=720, min=16, max=2048, step=16, tooltip="Width of the video in pixels, a multiple of 16."
        ),
        io.Int.Input(
            "height",
            default=480,
            min=16,
            max=2048,
            step=16,
            tooltip="Height of the video in pixels, a multiple of 16.",
        ),
    ]


def length_input():
    return io.Int.Input(
        "length",
        default=49,
        min=1,
        max=1001,
        step=4,
        tooltip="Frames of the video, 4n + 1: 1 makes an image, 49 is six seconds at 8 frames a second. Any other "
        "number is rounded down.",
    )


def tile_inputs() -> list:
    return [
        io.Int.Input(
            "tile_size",
            default=0,
            min=0,
            max=4096,
            step=8,
            tooltip="Size of the spatial tiles in pixels; 0 = whole frames. Tiles need less memory and can leave "
            "faint seams; they are at least 64 pixels.",
        ),
        io.Int.Input(
            "overlap",
            default=64,
            min=0,
            max=4096,
            step=8,
            tooltip="How far neighbouring tiles overlap, in pixels; at most half a tile.",
        ),
    ]


def seed_input(name: str, tooltip: str, control_after_generate: bool):
    return io.Int.Input(
        name, default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=control_after_generate, tooltip=tooltip
    )


def optional_model_input():
    return io.Model.Input(
        "model", optional=True, tooltip="Round the length down to what this model takes, with both numbers in the log."
    )


def fit_tiles(tile_size: int, overlap: int) -> tuple[int, int]:
    """Tile size and overlap that can be run: at least 64 pixels, an overlap of at most half a tile."""
    tile_size = max(tile_size, 64) if tile_size else 0
    return tile_size, min(overlap, tile_size // 2)


def hub_roots() -> list[Path]:
    """Folders in which people keep model repositories, those of ``extra_model_paths.yaml`` first."""
    roots = []
    for name in checkpoint.MODEL_FOLDERS:
        if name in folder_paths.folder_names_and_paths:
            roots += folder_paths.get_folder_paths(name)
        roots.append(os.path.join(folder_paths.models_dir, name))
    roots += folder_paths.get_folder_paths("diffusers") if "diffusers" in folder_paths.folder_names_and_paths else []
    return [Path(root) for root in dict.fromkeys(roots)]


def single_files(kind: str) -> dict[str, Path]:
    """The host's files of a kind (diffusion_models, vae, text_encoders), name -> path."""
    paths = {name: folder_paths.get_full_path(kind, name) for name in folder_paths.get_filename_list(kind)}
    return {name: Path(path) for name, path in paths.items() if path is not None}


def find_models() -> dict[str, Path]:
    """Every model by the name that the loader lists it under; the pack's own comes last."""
    own = checkpoint.find_models([OWN_MODELS], {})
    files = single_files("diffusion_models")
    if "unet_gguf" in folder_paths.folder_names_and_paths:  # ComfyUI-GGUF is installed
        files |= single_files("unet_gguf")
    found = checkpoint.find_models(hub_roots(), files)
    return found | {name: path for name, path in own.items() if name not in found}


def find_parts(part: str, kind: str, is_one) -> dict[str, Path]:
    """Hub folders' ``<name>/<part>``, then the host's single files for which ``is_one`` holds, then the pack's own."""

    def parts(roots: list[Path]) -> dict[str, Path]:
        folders = checkpoint.find_models(roots, {})
        return {f"{n}/{part}": f / part for n, f in folders.items() if (f / part / "config.json").is_file()}

    found = parts(hub_roots()) | {name: path for name, path in single_files(kind).items() if is_one(path)}
    return found | {name: path for name, path in parts([OWN_MODELS]).items() if name not in found}


def missing(found: dict[str, Path], name, what: str, kind: str) -> str:
    """What to say of a name that is not found; see `choose`."""
    name = "" if name == NO_MODEL else name
    return checkpoint.no_model_message(name, what, found, hub_roots(), map(Path, folder_paths.get_folder_paths(kind)))


def choose(found: dict[str, Path], name, what: str, kind: str) -> Path:
    """The path of a listed name.

    Args:
        name: as typed, or what another node gave; `FIRST` is the first in the list.
        what: what is looked for, for messages.
        kind: the host's folder of single files.

    Raises:
        ValueError: nothing by that name; the message names every folder that was looked in.
    """
    if name is FIRST and found:
        return next(iter(found.values()))
    if not isinstance(name, str) or name not in found:
        raise ValueError(missing(found, NO_MODEL if name is FIRST else name, what, kind))
    return found[name]


def one_of(name: str, value, options) -> None:
    """Raise a ValueError unless a choice is among its options: the host checks what is typed, not what is linked."""
    if value not in list(options):
        raise ValueError(f"{name} is {shown(value)}, expected one of {listed(options)}")


def check_numbers(**values) -> None:
    """Raise a ValueError unless every input is a finite number: to the host, NaN is in every range."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not is_finite(value):
            raise ValueError(f"{name} is {shown(value)}, expected a number: check where it comes from")


def fingerprint(path: Path | None) -> str:
    """Changes when a model on disk is replaced, so that the host loads it again."""
    if path is None or not path.exists():
        return "missing"
    files = [path] if path.is_file() else sorted(p for p in path.glob("**/*") if p.is_file())
    return ";".join(f"{file}:{file.stat().st_mtime_ns}:{file.stat().st_size}" for file in files)


def held(load, *paths: Path | None):
    """What a loader made of files, if anything still holds it: ComfyUI may hold what a node gave before its input
    changed, and nothing is kept for this."""
    return LOADED.get(_key(load, paths))


def once(load, *paths: Path | None):
    """What a loader makes of files, which is what it made of them before if that is `held`."""
    found = held(load, *paths)
    if found is None:
        found = LOADED[_key(load, paths)] = load(*paths)
    return found


def _key(load, paths: tuple[Path | None, ...]) -> tuple:
    return load, *((path, fingerprint(path)) for path in paths)

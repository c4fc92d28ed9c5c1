"""What the nodes share: the schema, inputs with their ranges and tooltips, and checks of linked values."""

import math
import numbers

from comfy_api.latest import io

from ..model_loading.comfyui.compat import known_fields
from ..model_loading.errors import listed, shown
from ..sampling.masks import FITS
from ..sampling.schedule import SPACINGS

SPACING_OPTIONS = ["auto", *SPACINGS]
MAX_SEED = 0xFFFFFFFFFFFFFFFF
MASK_TOOLTIP = "1 (white) = generate, 0 (black) = keep."


def schema(group: str, aliases: str, *, shows_picture: bool = False, is_inner: bool = False, **fields) -> io.Schema:
    """The definition of a node in the menu CogVideoX-Fun/``group``.

    Args:
        aliases: what else people type to find the node, separated by ", ". ComfyUI 0.3.64 has no such field.
        shows_picture: the node shows a picture. Newer versions of ComfyUI need this to show it for a cached result.
        is_inner: another node adds this one to the graph. Newer versions of ComfyUI show it in the menu only in
            developer mode.
        fields: of ComfyUI's Schema.
    """
    newer = {
        "search_aliases": aliases.split(", "),
        "has_intermediate_output": shows_picture,
        "is_dev_only": is_inner,
    }
    return io.Schema(category=f"CogVideoX-Fun/{group}", **fields, **known_fields(newer))


def integer(name: str, values: tuple, tooltip: str, kind=io.Int, **options):
    """An INT; ``values`` are default, minimum, maximum and, if it is not 1, the step."""
    named = dict(zip(("default", "min", "max", "step"), values, strict=False))
    return kind.Input(name, tooltip=tooltip, **named, **options)


def number(name: str, values: tuple, tooltip: str, **options):
    """A FLOAT; ``values`` are default, minimum, maximum and step."""
    return integer(name, values, tooltip, kind=io.Float, **options)


def choice(name: str, options, tooltip: str, default: str | None = None):
    """A list to choose from. The default is the first option."""
    options = list(options)
    return io.Combo.Input(name, options=options, default=default or options[0], tooltip=tooltip)


def size_inputs() -> list:
    return [
        integer("width", (720, 16, 2048, 16), "Width of the video in pixels, a multiple of 16."),
        integer("height", (480, 16, 2048, 16), "Height of the video in pixels, a multiple of 16."),
    ]


def fit_input():
    return choice(
        "fit", FITS, "For other aspect ratios: crop cuts off what is too much, stretch distorts, as VideoX-Fun does."
    )


def length_input():
    tooltip = (
        "Frames of the video, rounded down to 4n + 1. 1 makes an image, 49 make six seconds at 8 frames a second."
    )
    return integer("length", (49, 1, 1001, 4), tooltip)


def length_model_input():
    tooltip = "Round length down to one that this model takes. The node and the log show both numbers."
    return io.Model.Input("model", optional=True, tooltip=tooltip)


def tile_inputs() -> list:
    tooltip = "Spatial tiles in pixels, at least 64; 0 = off. Tiles need less memory and can leave faint seams."
    return [
        integer("tile_size", (0, 0, 4096, 8), tooltip),
        integer("overlap", (64, 0, 4096, 8), "Overlap of the tiles in pixels, at most half a tile."),
    ]


def seed_input(name: str, tooltip: str, changes: bool, stays: bool = False):
    """A seed.

    Args:
        changes: the front end may change it after each run.
        stays: it begins with "fixed" where ComfyUI lets a node say so, else with "randomize".
    """
    modes = getattr(io, "ControlAfterGenerate", None) if stays else None
    return integer(name, (0, 0, MAX_SEED), tooltip, control_after_generate=modes.fixed if modes else changes)


def steps_input():
    return integer("steps", (50, 1, 1000), "Number of sampling steps.")


def schedule_inputs() -> list:
    spacing = "Which of the 1000 timesteps are run. auto: as the model's configuration says."
    denoise = (
        "How much of the input is replaced. All steps are run, as in KSampler: VideoX-Fun's 10 steps at strength 0.7 "
        "are 7 steps at denoise 0.7."
    )
    return [choice("spacing", SPACING_OPTIONS, spacing), number("denoise", (1.0, 0.0, 1.0, 0.01), denoise)]


def model_input():
    return io.Model.Input("model", tooltip="A CogVideoX-Fun model.")


def model_output():
    return io.Model.Output(display_name="model", tooltip="For the sampler.")


def prompt_inputs() -> list:
    return [
        io.Conditioning.Input("positive", tooltip="What the video should show."),
        io.Conditioning.Input("negative", tooltip="What the video should not show."),
    ]


def conditioning_outputs(latent: str = "An empty latent of the same size, for the sampler.") -> list:
    return [
        io.Conditioning.Output(display_name="positive", tooltip="For the sampler."),
        io.Conditioning.Output(display_name="negative", tooltip="For the sampler."),
        io.Latent.Output(display_name="latent", tooltip=latent),
    ]


def fit_tiles(tile_size: int, overlap: int) -> tuple[int, int]:
    """A tile size of 0 or at least 64 pixels, and an overlap of 0 to half a tile."""
    tile_size = max(tile_size, 64) if tile_size else 0
    return tile_size, max(0, min(overlap, tile_size // 2))


def one_of(name: str, value, options) -> None:
    """Raise a ValueError unless a value is among its options. ComfyUI does not check linked values."""
    if value not in list(options):
        raise ValueError(f"{name} is {shown(value)}, expected one of {listed(options)}")


def check_numbers(**values) -> None:
    """Raise a ValueError unless every value is a finite number. NaN passes ComfyUI's check of ranges."""
    for name, value in values.items():
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            raise ValueError(f"{name} is {shown(value)}, expected a number: check where it comes from")

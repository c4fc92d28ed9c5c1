"""Files of small decoders in TAEHV's layout, see `networks.tiny_decoder`."""

from pathlib import Path

from ..errors import CheckpointError, listed
from ..networks.tiny_decoder import LAST, LATENT_CHANNELS, WIDTHS, TinyDecoder
from .safetensors_files import Reader, Weights, header_names, open_weights, read_file

TAKE = "take taecvx.safetensors from https://github.com/madebyollin/taehv (folder safetensors)"


def is_tiny_decoder_file(path: Path) -> bool:
    """Whether a file's header is that of a small video decoder by madebyollin, of whatever model."""
    return header_names(path, f"decoder.{LAST}.bias") and header_names(path, "decoder.3.conv.0.weight")


def open_tiny_decoder(path: Path, reader: Reader = read_file) -> tuple[Weights, tuple[int, int, int, int]]:
    """The weights of a small decoder for CogVideoX's latents, and its widths. An encoder in the file is ignored.

    Raises:
        CheckpointError: another kind of file, or a decoder of another model.
    """
    weights = open_weights(path, reader)
    names = [f"decoder.{place}.weight" for place in (*WIDTHS, LAST)]
    shapes = [weights.shapes.get(name, ()) for name in names]
    for name, shape in zip(names, shapes, strict=True):
        if len(shape) != 4:
            found = f"{name} has the shape {list(shape)}" if shape else f"{name} is missing"
            raise CheckpointError(
                f"has another layout than TAEHV's decoder for CogVideoX: {found}, and it holds "
                f"{listed(sorted(weights.shapes)[:3])}: {TAKE}",
                path,
            )
    latent_channels, outputs = shapes[0][1], shapes[-1][0]
    if (latent_channels, outputs) != (LATENT_CHANNELS, 3):
        raise CheckpointError(
            f"decodes latents of {latent_channels} channels to pixels of {outputs}, expected {LATENT_CHANNELS} and 3: "
            f"it is the decoder of another model; {TAKE}",
            path,
        )
    return weights, tuple(shape[0] for shape in shapes[: len(WIDTHS)])


def load_tiny_decoder(path: Path, reader: Reader = read_file, operations=None, dtype=None) -> TinyDecoder:
    """A small decoder with its weights, without gradients.

    Args:
        operations: see `TinyDecoder`.
        dtype: of the weights; None: as in the file.

    Raises:
        CheckpointError: see `open_tiny_decoder`, or a tensor has another shape.
    """
    weights, widths = open_tiny_decoder(path, reader)
    layers = {} if operations is None else {"operations": operations}
    decoder = TinyDecoder(widths, device="meta", **layers).eval().requires_grad_(False)
    weights.assign_to(decoder, dtype or weights.tensors[f"decoder.{LAST}.weight"].dtype)
    return decoder

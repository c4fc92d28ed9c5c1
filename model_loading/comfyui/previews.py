"""Moving previews: what the page shows of the whole clip while a sampler works.

A wrapper on the MODEL looks at every step of every sampler. Clones of the MODEL have it, too.
"""

import base64
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args

from ...sampling.preview import Budget, PreviewFactors, durations, rgb_frames, to_pictures
from ..errors import CheckpointError
from ..files.tiny_decoder import load_tiny_decoder
from ..networks.tiny_decoder import TinyDecoder
from .compat import is_out_of_memory
from .files import read_file
from .page import page

log = logging.getLogger(__name__)

EVENT = "cogvideox-fun.preview"
WRAPPER = "cogvideox_fun_previews"
PUBLISHED_DECODER = "taecvx"  # in the name of its file: those of Wan 2.1 and HunyuanVideo have the same shapes
QUALITY = 70  # of WebP
COARSE_PART = 4  # the first quarter of the steps has coarse previews: what they predict is blurred


def add_previews(patcher) -> None:
    """Let a MODEL show previews in every sampler."""
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, WRAPPER, show_previews)


def show_previews(executor, guider, sigmas, extra_args, callback, *rest, **options):
    """The call of a sampler of ComfyUI, with a moving preview sent at its steps."""
    tell = None if args.preview_method == LatentPreviewMethod.NoPreviews else page()
    if tell is None:
        return executor(guider, sigmas, extra_args, callback, *rest, **options)
    preview = MovingPreview(guider.model_patcher.model, lambda picture: tell(EVENT, {"image": picture}))

    def on_step(step: int, denoised: torch.Tensor, x: torch.Tensor, total: int) -> None:
        preview(denoised, sharp=step >= total // COARSE_PART)  # before ComfyUI's own, which the page then leaves out
        if callback is not None:
            callback(step, denoised, x, total)

    samples = executor(guider, sigmas, extra_args, on_step, *rest, **options)
    budget = preview.budget
    log.info("%d previews took %.2f of %.2f seconds of sampling", budget.count, budget.spent, budget.elapsed)
    return samples


def find_decoder(model) -> Path | None:
    """The file of the small decoder for a model's latents, or None: its folder's own, or ``taecvx``.

    A model whose VAE has RGB factors of its own has another latent space than the published models.
    """
    if args.preview_method == LatentPreviewMethod.Latent2RGB:
        return None
    if model.tiny_decoder is not None or not model.has_published_latents:
        return model.tiny_decoder
    names = [n for n in folder_paths.get_filename_list("vae_approx") if PUBLISHED_DECODER in Path(n).name.lower()]
    names.sort(key=lambda name: not name.endswith(".safetensors"))  # of a pickle alone, the log says what to take
    paths = (folder_paths.get_full_path("vae_approx", name) for name in names)
    return next((Path(path) for path in paths if path is not None), None)


def load_decoder(model, device: torch.device) -> TinyDecoder | None:
    """The small decoder for a model's latents on a device; None if there is none, or if it can't be loaded."""
    path = find_decoder(model)
    if path is None:
        return None
    dtype = comfy.model_management.vae_dtype(device, [torch.float16, torch.bfloat16, torch.float32])
    try:
        return load_tiny_decoder(path, read_file, comfy.ops.disable_weight_init, dtype).to(device)
    except Exception as error:
        if not isinstance(error, CheckpointError) and not is_out_of_memory(error):
            raise
        log.warning("the previews are coarse: %s", error)
        return None


class MovingPreview:
    """Shows the first clip of a batch while it is sampled, as often as the `Budget` allows.

    Args:
        model: the `CogVideoXFun` that samples.
        send: takes a WebP in base64.
    """

    def __init__(self, model, send: Callable[[str], None]):
        self.model, self.send = model, send
        self.budget = Budget()
        self.decoder: TinyDecoder | None = None
        self.looked = False  # for a decoder

    def __call__(self, denoised: torch.Tensor, sharp: bool) -> None:
        """Show what a step predicts, B 16 T h w, scaled; ``sharp``: by a small decoder, if there is one."""
        if not self.budget.allows():
            return
        denoised.flatten()[0].item()  # waits for the GPU: the rest of the step is not the preview's cost
        with self.budget.spending():
            frames = self.frames(denoised[:1], sharp)
            self.send(base64.b64encode(to_webp(frames, durations(len(frames), denoised.shape[2]))).decode())

    def frames(self, latents: torch.Tensor, sharp: bool) -> torch.Tensor:
        """Latents 1 16 T h w as pictures F H W 3, uint8."""
        if sharp and not self.looked:
            self.decoder, self.looked = load_decoder(self.model, latents.device), True
        if sharp and self.decoder is not None:
            try:
                return torch.cat(list(self.decoded(latents)))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
            # outside the except block: the exception holds the failed run's tensors
            log.warning("out of memory for a sharp preview: the next ones are coarse")
            self.decoder = None
            comfy.model_management.soft_empty_cache()
        latent_format = self.model.latent_format
        factors = PreviewFactors(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
        return to_pictures(rgb_frames(latents[0], factors), args.preview_size)

    def decoded(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        unscaled = self.model.latent_format.process_out(latents)
        dtype = next(self.decoder.parameters()).dtype
        for pixels in self.decoder.decode_stream(unscaled, lambda chunk: chunk.to(dtype)):
            yield to_pictures(pixels[0].movedim(0, 1), args.preview_size)  # CFHW -> FCHW


def to_webp(frames: torch.Tensor, milliseconds: list[int]) -> bytes:
    """A WebP that moves and repeats, of pictures F H W 3, uint8."""
    from PIL import Image

    first, *others = (Image.fromarray(frame.numpy()) for frame in frames)
    file = io.BytesIO()
    options = {"duration": milliseconds, "loop": 0, "quality": QUALITY, "method": 0}
    first.save(file, "WEBP", save_all=True, append_images=others, **options)
    return file.getvalue()

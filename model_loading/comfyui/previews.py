"""Moving previews: what the page shows of the whole clip while a sampler works.

A wrapper on the MODEL looks at every step of every sampler. Clones of the MODEL have it, too.
"""

import base64
import io
import logging
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.ops
import comfy.patcher_extension
import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args

from ...sampling.geometry import latent_t_to_frames
from ...sampling.preview import Budget, PreviewFactors, durations, rgb_frames, to_pictures
from ..errors import CheckpointError
from ..files.tiny_decoder import load_tiny_decoder
from ..networks.tiny_decoder import TinyDecoder
from .compat import is_out_of_memory
from .events import event_sender
from .files import read_file

log = logging.getLogger(__name__)

EVENT = "cogvideox-fun.preview"
WRAPPER = "cogvideox_fun_previews"
PUBLISHED_DECODER = "taecvx"  # in the name of its file: those of Wan 2.1 and HunyuanVideo have the same shapes
QUALITY = 70  # of WebP
COARSE_PART = 4  # the first quarter of the steps has coarse previews: what they predict is blurred
TRIAL_COST = 50  # what trying the decoder is taken to cost, in coarse previews
MOST_STEPS_BETWEEN = 10  # steps that a sharp preview may stay before the budget allows the next one


def add_previews(patcher) -> None:
    """Let a MODEL show previews in every sampler."""
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.SAMPLER_SAMPLE, WRAPPER, show_previews)


def show_previews(executor, guider, sigmas, extra_args, callback, *rest, **options):
    """The call of a sampler of ComfyUI, with a moving preview sent at its steps."""
    send = None if args.preview_method == LatentPreviewMethod.NoPreviews else event_sender()
    if send is None:
        return executor(guider, sigmas, extra_args, callback, *rest, **options)
    preview = MovingPreview(guider.model_patcher.model, lambda picture: send(EVENT, {"image": picture}))

    def on_step(step: int, denoised: torch.Tensor, x: torch.Tensor, total: int) -> None:
        # before ComfyUI's own, which the page then leaves out
        preview(denoised, late=step >= max(total // COARSE_PART, 1))
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

    Previews are coarse at first. Then a small decoder is tried. If the budget allows a sharp preview at least every
    `MOST_STEPS_BETWEEN` steps, the next ones are sharp. If not, one picture would stay too long, and they stay coarse.

    Args:
        model: the `CogVideoXFun` that samples.
        send: takes a WebP in base64.
    """

    def __init__(self, model, send: Callable[[str], None]):
        self.model, self.send = model, send
        self.budget = Budget()
        self.steps = 0
        self.decoder: TinyDecoder | None = None
        self.tried = self.was_sharp = self.failed = False
        self.coarse_seconds = self.sharp_seconds = 0.0  # what the next one is taken to cost
        self.trial_seconds = 0.0  # what trying the decoder took; coarse previews don't wait until it is made up for

    def __call__(self, denoised: torch.Tensor, late: bool) -> None:
        """Show what a step predicts, B 16 T h w, scaled. Whatever goes wrong with it, the run goes on.

        Args:
            late: whether a sharp picture is worth it: what the first steps predict is blurred.
        """
        self.steps += 1
        sharp = self.decoder is not None and self.budget.allows(self.sharp_seconds)
        coarse = not self.was_sharp and self.budget.allows(self.coarse_seconds - self.trial_seconds)
        if self.failed or not (sharp or coarse):
            return
        denoised.flatten()[0].item()  # waits for the GPU: the rest of the step is not the preview's cost
        try:
            with self.budget.spending():
                if late and not self.tried and self.budget.allows(TRIAL_COST * self.coarse_seconds):
                    self.try_decoder(denoised[:1])
                self.show(denoised[:1], sharp)
        except Exception:  # a picture is not worth the run; the log has the error
            self.failed = True
            log.warning("a preview failed: there are none in the rest of this run", exc_info=True)

    def show(self, latents: torch.Tensor, sharp: bool) -> None:
        """Send a preview of latents 1 16 T h w, and note what it cost."""
        started = self.budget.clock()
        frames = self.sharp(latents) if sharp else None
        self.was_sharp = frames is not None
        if frames is None:
            frames = self.coarse(latents)
        self.send(base64.b64encode(to_webp(frames, durations(len(frames), latents.shape[2]))).decode())
        seconds = self.budget.clock() - started
        if self.was_sharp:
            self.sharp_seconds = seconds
        else:
            self.coarse_seconds = seconds

    def try_decoder(self, latents: torch.Tensor) -> None:
        """Load the small decoder, and keep it if sharp previews of latents 1 16 T h w are cheap enough."""
        started, step = self.budget.clock(), self.budget.elapsed / self.steps
        self.tried = True
        self.decoder = load_decoder(self.model, latents.device)
        for _ in range(2):  # the first call of a network takes longer than later ones
            before = self.budget.clock()
            frames = None if self.decoder is None else self.sharp(latents[:, :, :1])
            if frames is not None:
                decoded = self.budget.clock()
                to_webp(frames, durations(1, 1))
                encoded = self.budget.clock() - decoded
                latent_t = latents.shape[2]
                self.sharp_seconds = (decoded - before) * latent_t + encoded * latent_t_to_frames(latent_t)
        if self.sharp_seconds > MOST_STEPS_BETWEEN * self.budget.share * step:
            self.decoder = None
        self.trial_seconds = self.budget.clock() - started

    def coarse(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents 1 16 T h w as pictures T H W 3, uint8, by the RGB factors."""
        latent_format = self.model.latent_format
        factors = PreviewFactors(latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias)
        return to_pictures(rgb_frames(latents[0], factors), args.preview_size)

    def sharp(self, latents: torch.Tensor) -> torch.Tensor | None:
        """Latents 1 16 T h w as pictures F H W 3, uint8, by the decoder; None if memory is too short."""
        dtype = next(self.decoder.parameters()).dtype
        try:
            unscaled = self.model.latent_format.process_out(latents)
            chunks = self.decoder.decode_stream(unscaled, lambda chunk: chunk.to(dtype))
            return torch.cat([to_pictures(pixels[0].movedim(0, 1), args.preview_size) for pixels in chunks])
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # outside the except block: the exception holds the failed run's tensors
        log.warning("out of memory for a sharp preview: the next ones are coarse")
        self.decoder = None
        comfy.model_management.soft_empty_cache()
        return None


def to_webp(frames: torch.Tensor, milliseconds: list[int]) -> bytes:
    """A WebP that moves and repeats, of pictures F H W 3, uint8."""
    from PIL import Image

    first, *others = (Image.fromarray(frame.numpy()) for frame in frames)
    file = io.BytesIO()
    options = {"duration": milliseconds, "loop": 0, "quality": QUALITY, "method": 0}
    first.save(file, "WEBP", save_all=True, append_images=others, **options)
    return file.getvalue()

"""The VAE: our streamed VAE inside an object that every stock VAE node takes."""

import functools
import logging
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch

from ...sampling.geometry import SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION, legal_length
from ..errors import naming, shown
from ..files.checkpoint import load_vae_config
from ..files.safetensors_files import open_weights
from ..files.tiny_decoder import is_tiny_decoder_file, load_tiny_decoder
from ..networks.config import VAEConfig
from ..networks.memory_estimate import decode_bytes, encode_bytes, tiny_decode_bytes
from ..networks.tiling import tile_spans
from ..networks.vae import CogVideoXVAE, draw
from .compat import device_memory, is_out_of_memory, vae_output_dtype
from .files import read_file
from .model import progress_callback
from .patcher import MappedPatcher

log = logging.getLogger(__name__)

OOM_TILE = 256  # pixels, of the tiles where whole frames are too large
OOM_OVERLAP = 64
TOO_LARGE = "%s whole frames needs %.1f GB, and the device has %.1f GB: using tiles of %d pixels"


def tile_share(shape, tile: int, overlap: int, unit: int) -> float:
    """The area of one tile over that of a source B C T H W; see `tile_spans`."""
    if not tile:
        return 1.0
    rows, columns = (tile_spans(size, tile, overlap, unit)[0].stop for size in shape[3:])
    return rows * columns / (shape[3] * shape[4])


class ComfyVAE(comfy.sd.VAE):
    """A VAE of ComfyUI whose encode and decode stream in VideoX-Fun's chunks.

    Tiles are spatial only. A temporal tile is accepted and ignored: streaming already bounds the memory in time, and a
    fresh causal cache per tile would be wrong.
    """

    what = "VAE"  # in messages

    def __init__(self, path: str | Path, device=None, dtype=None):
        # ComfyUI's constructor sets what its nodes read of a VAE. Not every version can build a CogVideoX VAE, so it
        # builds its smallest one here. The values of CogVideoX are set afterwards.
        super().__init__({"pixel_space_vae": torch.ones(())}, device=device, dtype=dtype)
        self._describe()
        self.vae_dtype = dtype or comfy.model_management.vae_dtype(self.device, self.working_dtypes)
        self.first_stage_model = self._load(Path(path))
        self.size = comfy.model_management.module_size(self.first_stage_model)
        self.patcher = MappedPatcher(
            self.first_stage_model,
            load_device=self.device,
            offload_device=comfy.model_management.vae_offload_device(),
        )
        log.info("%s: CogVideoX %s, %s", shown(path), self.what, self.vae_dtype)

    def _load(self, path: Path) -> torch.nn.Module:
        weights = open_weights(path, read_file)
        config = load_vae_config(path, weights)
        self.latent_channels, self.output_channels = config.latent_channels, config.out_channels
        with naming(path), torch.device("meta"):
            model = CogVideoXVAE(config, comfy.ops.disable_weight_init, dtype=self.vae_dtype)
        weights.assign_to(model.eval().requires_grad_(False), self.vae_dtype)
        return model

    def _describe(self) -> None:
        """Set what ComfyUI's nodes read of a VAE and what is not the same for all VAEs."""
        space, time = SPATIAL_COMPRESSION, TEMPORAL_COMPRESSION
        self.latent_channels, self.latent_dim, self.output_channels = VAEConfig.latent_channels, 3, 3
        self.downscale_ratio = (lambda frames: max(0, (frames + time - 1) // time), space, space)
        self.upscale_ratio = (lambda latent_t: max(0, latent_t * time - time + 1), space, space)
        self.downscale_index_formula = self.upscale_index_formula = (time, space, space)
        self.working_dtypes = [torch.bfloat16, torch.float16, torch.float32]  # as ComfyUI's own CogVideoX VAE
        self.disable_offload = False
        self.handles_tiling = True
        self.memory_used_encode = self._memory_encode
        self.memory_used_decode = self._memory_decode

    def _memory_decode(self, shape, dtype) -> float:
        return decode_bytes(self.first_stage_model.config, shape, comfy.model_management.dtype_size(dtype))

    def _memory_encode(self, shape, dtype) -> float:
        return encode_bytes(self.first_stage_model.config, shape, comfy.model_management.dtype_size(dtype))

    def _run(self, function, source: torch.Tensor, memory: float, tile: int, overlap: int, unit: int) -> torch.Tensor:
        share = tile_share(source.shape, tile, overlap, SPATIAL_COMPRESSION // unit)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=int(memory * share))
        return function(
            source,
            device=self.device,
            dtype=self.vae_dtype,
            output_device=self.output_device,
            output_dtype=vae_output_dtype(self),
            tile=tile,
            overlap=overlap,
            on_progress=progress_callback(),
        )

    def _with_fallback(self, function, source, memory, tile, overlap, what: str, unit: int) -> torch.Tensor:
        """Run; in spatial tiles where whole frames need more memory than the device has, or after an out-of-memory.

        Some drivers never raise out-of-memory: they move to RAM what does not fit, which takes many times longer.

        Args:
            memory: bytes that the whole frame needs.
            unit: pixels per element of the source: 8 to decode, 1 to encode.
        """
        if tile >= max(source.shape[3:]):
            tile = overlap = 0
        total = device_memory(self.device)
        if not tile and memory > total:
            log.warning(TOO_LARGE, what, memory / 1e9, total / 1e9, OOM_TILE)
            tile, overlap = OOM_TILE // unit, OOM_OVERLAP // unit
        try:
            return self._run(function, source, memory, tile, overlap, unit)
        except Exception as error:
            if not is_out_of_memory(error) or 0 < tile <= OOM_TILE // unit:
                raise
        # outside the except block: the exception holds the failed run's tensors
        log.warning("out of memory while %s: trying again in tiles of %d pixels", what, OOM_TILE)
        comfy.model_management.soft_empty_cache()
        return self._run(function, source, memory, OOM_TILE // unit, OOM_OVERLAP // unit, unit)

    def decode(self, samples_in: torch.Tensor, vae_options=None) -> torch.Tensor:
        """B 16 T h w, unscaled -> B F H W 3, 0..1."""
        return self.decode_tiled(samples_in, tile_x=0, tile_y=0, overlap=0)

    def decode_tiled(self, samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """As `decode`, in spatial tiles of ``tile_x`` latents; ``tile_t`` is ignored."""
        if samples.ndim == 4:
            samples = samples.unsqueeze(2)  # an image's latent
        if samples.ndim != 5 or samples.shape[1] != self.latent_channels or not samples.shape[2]:
            raise ValueError(
                f"the latent has the shape {list(samples.shape)}, expected [batch, {self.latent_channels}, frames, "
                "height / 8, width / 8] from a CogVideoX model"
            )
        tile = 32 if tile_x is None else tile_x
        overlap = tile // 4 if overlap is None else min(overlap, max(tile - 1, 0))
        memory = self._memory_decode(samples.shape, self.vae_dtype)
        run = functools.partial(self.first_stage_model.decode, finish=self.process_output)
        pixels = self._with_fallback(run, samples, memory, tile, overlap, "decoding", SPATIAL_COMPRESSION)
        return pixels.movedim(1, -1)  # BCTHW -> BTHWC

    def encode(self, pixel_samples: torch.Tensor) -> torch.Tensor:
        """F H W C or B F H W C of 0..1 -> B 16 T h w, unscaled; the distribution's mode."""
        return self.encode_tiled(pixel_samples, tile_x=0, tile_y=0, overlap=0)

    def encode_tiled(self, pixel_samples, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None):
        """As `encode`, in spatial tiles of ``tile_x`` pixels; ``tile_t`` is ignored."""
        return self._encode(self.first_stage_model.encode, pixel_samples, tile_x, overlap)

    def encode_draw(self, pixel_samples: torch.Tensor, seed: int, tile: int = 0, overlap: int = 0) -> torch.Tensor:
        """As `encode_tiled`, a draw from the distribution instead of its mode."""
        return draw(self._encode(self.first_stage_model.encode_moments, pixel_samples, tile, overlap), seed)

    def _encode(self, function, pixel_samples: torch.Tensor, tile_x: int | None, overlap: int | None) -> torch.Tensor:
        pixels = pixel_samples if pixel_samples.ndim == 5 else pixel_samples[None]
        if pixels.ndim != 5 or pixels.shape[-1] < 3 or min(pixels.shape[2:4]) < SPATIAL_COMPRESSION:
            raise ValueError(
                f"the pixels have the shape {list(pixel_samples.shape)}, expected [frames, height, width, 3] with at "
                "least 8 x 8 pixels"
            )
        height, width = (n // SPATIAL_COMPRESSION * SPATIAL_COMPRESSION for n in pixels.shape[2:4])
        top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
        length = legal_length(pixels.shape[1])
        pixels = pixels[:, :length, top : top + height, left : left + width, :3]
        pixels = self.process_input(pixels.movedim(-1, 1))  # BTHWC -> BCTHW
        tile = 512 if tile_x is None else tile_x // SPATIAL_COMPRESSION * SPATIAL_COMPRESSION
        overlap = 64 if overlap is None else overlap // SPATIAL_COMPRESSION * SPATIAL_COMPRESSION
        overlap = min(overlap, max(tile - SPATIAL_COMPRESSION, 0))
        memory = self._memory_encode(pixels.shape, self.vae_dtype)
        return self._with_fallback(function, pixels, memory, tile, overlap, "encoding", 1)


class ComfyTinyDecoder(ComfyVAE):
    """A small decoder as a VAE of ComfyUI, for drafts. It can't encode."""

    what = "draft decoder"

    def _load(self, path: Path) -> torch.nn.Module:
        return load_tiny_decoder(path, read_file, comfy.ops.disable_weight_init, self.vae_dtype)

    def _describe(self) -> None:
        super()._describe()
        self.process_output = lambda pixels: pixels.clamp_(0, 1)  # ComfyUI's brings -1..1 to 0..1

    def _memory_decode(self, shape, dtype) -> float:
        return tiny_decode_bytes(self.first_stage_model.widths, shape, comfy.model_management.dtype_size(dtype))

    def _memory_encode(self, shape, dtype) -> float:
        return 0.0

    def encode_tiled(self, *_args, **_options):
        """Raise a ValueError: there is no encoder."""
        raise ValueError(
            "the VAE is a draft decoder, which can't encode: load the model's whole VAE with Load CogVideoX-Fun VAE"
        )

    encode_draw = encode_tiled


def reload_vae_patcher(path: str, **_options):
    return load_vae(path).patcher


def load_vae(path: str | Path) -> ComfyVAE:
    """Load a VAE folder or file, or the file of a small decoder, as a VAE of ComfyUI.

    Raises:
        CheckpointError: what is wrong with the files, and what to do.
    """
    vae = ComfyTinyDecoder(path) if is_tiny_decoder_file(Path(path)) else ComfyVAE(path)
    vae.patcher.cached_patcher_init = (reload_vae_patcher, (str(path),))
    return vae

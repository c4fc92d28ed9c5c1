"""ComfyUI's context windows for our models: a long clip is sampled in overlapping windows."""

import itertools

import comfy.context_windows as comfy_windows
import comfy.patcher_extension
import torch

from ...sampling.geometry import TEMPORAL_COMPRESSION, frames_to_latent_t, latent_t_to_frames, rounded_length
from ..networks.tiling import upload
from .compat import no_causal_anchor
from .model import STEP, length_limits

SCHEDULES = (
    comfy_windows.ContextSchedules.STATIC_STANDARD,
    comfy_windows.ContextSchedules.UNIFORM_STANDARD,
    comfy_windows.ContextSchedules.UNIFORM_LOOPED,
)
FUSE_METHODS = tuple(comfy_windows.ContextFuseMethods.LIST_STATIC)
TIME = 2  # the dimension of a latent, B C T h w


class Window(comfy_windows.IndexListContextWindow):
    """A window that reads and writes frames by slices. ComfyUI's uploads a list of frame numbers, which waits for the
    GPU."""

    def runs(self) -> list[tuple[int, int, int]]:
        """Runs of frames that follow each other: first in the clip, first in the window, how many."""
        groups = itertools.groupby(enumerate(self.index_list), key=lambda pair: pair[1] - pair[0])
        runs = [list(pairs) for _, pairs in groups]
        return [(pairs[0][1], pairs[0][0], len(pairs)) for pairs in runs]

    def get_tensor(self, full, device=None, dim=TIME, **_options):
        if dim == 0:  # the timesteps of a batch, which is one clip here
            return super().get_tensor(full, device, dim)
        return torch.cat([full.narrow(dim, first, count) for first, _, count in self.runs()], dim).to(device)

    def add_window(self, full, to_add, dim=TIME):
        for first, start, count in self.runs():
            full.narrow(dim, first, count).add_(to_add.narrow(dim, start, count))
        return full


class Windows(comfy_windows.IndexListContextHandler):
    """ComfyUI's windows, with our conditioning latents cut to each of them on every version."""

    def __init__(self, schedule: str, fuse_method: str, context_length: int, context_overlap: int):
        super().__init__(
            context_schedule=comfy_windows.get_matching_context_schedule(schedule),
            fuse_method=comfy_windows.get_matching_fuse_method(fuse_method),
            context_length=context_length,
            context_overlap=context_overlap,
            dim=TIME,
            **no_causal_anchor(comfy_windows.IndexListContextHandler),
        )

    def should_use_context(self, model, conds, x_in, timestep, model_options) -> bool:
        in_use = super().should_use_context(model, conds, x_in, timestep, model_options)
        if in_use and x_in.shape[0] > 1:  # ComfyUI would cut the timesteps of the batch as if they were frames
            raise ValueError(
                f"batch_size is {x_in.shape[0]}, but context windows sample one clip at a time: set it to 1 and queue "
                "several runs"
            )
        return in_use

    def get_context_windows(self, *args):
        windows = super().get_context_windows(*args)
        for window in windows:
            window.__class__ = Window  # what else it holds differs between versions of ComfyUI
        return windows

    def set_step(self, timestep, model_options) -> None:
        """Find the step by the nearest sigma: VideoX-Fun's schedulers run timesteps between two of the list."""
        if self.context_schedule.name == comfy_windows.ContextSchedules.STATIC_STANDARD:
            return  # the same windows at every step
        options = model_options["transformer_options"]
        if STEP in options:
            self._step = options[STEP]
            return
        sigmas = options["sample_sigmas"]
        self._step = int((sigmas - timestep.flatten()[0].to(sigmas)).abs().argmin())

    def combine_context_window_results(self, x_in, outputs, conds, window, *rest):
        """Add a window's outputs to the sums, as ComfyUI does, with weights that nothing waits for."""
        if self.fuse_method.name == comfy_windows.ContextFuseMethods.RELATIVE:
            return super().combine_context_window_results(x_in, outputs, conds, window, *rest)
        _number, _total, timestep, sums, counts, _biases = rest
        length, frames = x_in.shape[TIME], window.index_list
        weights = torch.as_tensor(comfy_windows.get_context_weights(len(frames), length, frames, self, sigma=timestep))
        weights = upload(weights, x_in.device, torch.float32)[:, None, None]
        for output, all_outputs, all_weights in zip(outputs, sums, counts, strict=True):
            window.add_window(all_outputs, output * weights)
            window.add_window(all_weights, weights[None, None])
        kind = comfy_windows.IndexListCallbacks.COMBINE_CONTEXT_WINDOW_RESULTS
        for callback in comfy.patcher_extension.get_all_callbacks(kind, self.callbacks):
            callback(self, x_in, outputs, conds, window, *rest)

    def get_resized_cond(self, cond_in, x_in, window, device=None) -> list | None:
        resized = super().get_resized_cond(cond_in, x_in, window, device)
        for cond, whole in zip(resized or [], cond_in or [], strict=True):
            mask = whole.get("mask")
            if mask is not None and mask.ndim == 4:  # 1 T H W, where ComfyUI takes H for the frames
                mask = mask if mask.shape[1] == 1 else window.get_tensor(mask, dim=1)
                cond["mask"] = mask.to(device)
            conds = cond.get("model_conds", {})
            extra = conds.get("concat_latents")
            if extra is not None and extra.cond.size(TIME) == x_in.size(TIME):  # 0.3.64 leaves it whole
                conds["concat_latents"] = extra._copy_with(window.get_tensor(extra.cond, device, dim=TIME))
        return resized


def with_windows(patcher, length: int, overlap: int, schedule: str, fuse_method: str):
    """A clone of a MODEL that samples clips longer than ``length`` in windows.

    Args:
        length, overlap: of a window, in frames; the length 4n + 1, and 8n + 5 on V1.5.
        schedule: one of `SCHEDULES`. fuse_method: one of `FUSE_METHODS`.

    Raises:
        ValueError: a window that the model does not take.
    """
    patch_t, longest = length_limits(patcher)
    legal, reason = rounded_length(length, patch_t, longest)
    if patch_t is not None and legal == 1:  # the model would take it, but each frame would be a video of its own
        legal, reason = latent_t_to_frames(patch_t), "V1.5 takes an even number of latent frames"
    if reason:
        raise ValueError(f"context_length is {length} frames, but {reason}: set it to {legal}")
    latent_t, latent_overlap = frames_to_latent_t(length), overlap // TEMPORAL_COMPRESSION
    if not 0 <= latent_overlap < latent_t:
        raise ValueError(
            f"context_overlap is {overlap} frames, expected less than the window of {length}: use a quarter of it"
        )
    if fuse_method == "overlap-linear" and not latent_overlap:
        raise ValueError(
            f"context_overlap is {overlap} frames, expected {TEMPORAL_COMPRESSION} or more with overlap-linear: raise "
            "it, or choose another fuse_method"
        )
    patched = patcher.clone()
    patched.model_options["context_handler"] = Windows(schedule, fuse_method, latent_t, latent_overlap)
    comfy_windows.create_prepare_sampling_wrapper(patched)
    return patched

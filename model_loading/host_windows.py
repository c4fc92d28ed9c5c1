"""Context windows over the host's own: a long clip sampled in overlapping windows."""

import comfy.context_windows as host

from ..sampling.geometry import TEMPORAL_COMPRESSION, frames_to_latent_t, latent_t_to_frames
from .host_model import accepts, length_limits

SCHEDULES = (
    host.ContextSchedules.STATIC_STANDARD,
    host.ContextSchedules.UNIFORM_STANDARD,
    host.ContextSchedules.UNIFORM_LOOPED,
)
FUSE_METHODS = tuple(host.ContextFuseMethods.LIST_STATIC)
TIME = 2  # the dimension of a latent, B C T h w


class Windows(host.IndexListContextHandler):
    """The host's windows, with our conditioning latents cut to each of them on every host."""

    def __init__(self, schedule: str, fuse_method: str, context_length: int, context_overlap: int):
        # The host's causal anchor would add a frame to every window but the first, which V1.5 can't take.
        off = (
            {"causal_window_fix": False} if accepts(host.IndexListContextHandler.__init__, "causal_window_fix") else {}
        )
        super().__init__(
            context_schedule=host.get_matching_context_schedule(schedule),
            fuse_method=host.get_matching_fuse_method(fuse_method),
            context_length=context_length,
            context_overlap=context_overlap,
            dim=TIME,
            **off,
        )

    def should_use_context(self, model, conds, x_in, timestep, model_options) -> bool:
        if x_in.size(TIME) < self.context_length:
            raise ValueError(
                f"a context window is {latent_t_to_frames(self.context_length)} frames, but the clip only "
                f"{latent_t_to_frames(x_in.size(TIME))}: remove Context Windows, or set context_length to at most that"
            )
        windows = super().should_use_context(model, conds, x_in, timestep, model_options)
        if windows and x_in.shape[0] > 1:  # the host would cut the timesteps of the batch as if they were frames
            raise ValueError(
                f"batch_size is {x_in.shape[0]}, but context windows sample one clip at a time: set it to 1 and queue "
                "several runs"
            )
        return windows

    def set_step(self, timestep, model_options) -> None:
        """The step by the nearest sigma: the authors' schedulers can run timesteps between two of the list."""
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        self._step = int((sigmas - timestep.flatten()[0].to(sigmas)).abs().argmin())

    def get_resized_cond(self, cond_in, x_in, window, device=None) -> list | None:
        resized = super().get_resized_cond(cond_in, x_in, window, device)
        for cond in resized or []:
            conds = cond.get("model_conds", {})
            extra = conds.get("extra_latents")
            if extra is not None and extra.cond.size(TIME) == x_in.size(TIME):  # 0.3.64 leaves it whole
                conds["extra_latents"] = extra._copy_with(window.get_tensor(extra.cond, device, dim=TIME))
        return resized


def with_windows(patcher, length: int, overlap: int, schedule: str, fuse_method: str):
    """A clone of a MODEL that samples clips longer than ``length`` in windows.

    Args:
        length, overlap: of a window, in frames; the length 4n + 1, and 8n + 5 on V1.5.
        schedule: one of `SCHEDULES`. fuse_method: one of `FUSE_METHODS`.

    Raises:
        ValueError: a window that the model does not take.
    """
    patch_t, longest = length_limits(patcher, of_a_call=True)
    latent_t = frames_to_latent_t(length)
    if length < 1 or (length - 1) % TEMPORAL_COMPRESSION:
        raise ValueError(
            f"context_length is {length} frames, expected 4n + 1: use {latent_t_to_frames(latent_t)} or "
            f"{latent_t_to_frames(latent_t + 1)}"
        )
    if longest is not None and length > longest:
        raise ValueError(f"context_length is {length} frames, but the model takes at most {longest}: use {longest}")
    if patch_t is not None and latent_t % patch_t:
        legal = [latent_t_to_frames(t) for t in (latent_t - 1, latent_t + 1) if t > 0]
        raise ValueError(
            f"context_length is {length} frames, which are {latent_t} latent frames, but V1.5 takes an even number: "
            f"use {' or '.join(map(str, legal))}"
        )
    latent_overlap = overlap // TEMPORAL_COMPRESSION
    if not 0 <= latent_overlap < latent_t:
        raise ValueError(
            f"context_overlap is {overlap} frames, expected less than the window of {length}: use a quarter of it"
        )
    patched = patcher.clone()
    patched.model_options["context_handler"] = Windows(schedule, fuse_method, latent_t, latent_overlap)
    host.create_prepare_sampling_wrapper(patched)
    return patched

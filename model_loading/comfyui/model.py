"""The MODEL: our transformer inside ComfyUI's BaseModel."""

import inspect

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch

from ...sampling.geometry import frames_to_latent_t, latent_t_to_frames
from ...sampling.positions import PositionOptions
from ...sampling.preview import PUBLISHED, PreviewFactors
from ..files.checkpoint import SAVED_CONFIG, Checkpoint, encode_config
from ..networks.memory_estimate import transformer_bytes
from ..networks.transformer import POSITIONS, CogVideoXTransformer
from .compat import multiplies_in_fp8, packed, prefetch_queue
from .conditioning import Scales, concat_latents
from .kernels import comfy_attention, comfy_norms

# In a conditioning: the fractions of the schedule, 0..1, at which the control video starts and ends.
CONTROL_PERCENTS = "cogvideox_fun_control_percents"

# In transformer_options, set by our samplers: the timestep, which need not be a whole number, and the index of the
# nearest of the run's sigmas. Both are Python numbers. ComfyUI's own are tensors on the GPU, and reading them waits.
TIMESTEP = "cogvideox_fun_timestep"
STEP = "cogvideox_fun_step"


def check_interrupt(_done: int, _total: int) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def check_patches(options: dict) -> None:
    """Raise a ValueError if transformer_options holds a patch of attention that is made for U-Nets.

    A patch for joint-attention models takes pe, attn_mask and extra_options, and returns a dict.
    """
    for patch in options.get("patches", {}).get("attn1_patch", ()):
        parameters = inspect.signature(patch).parameters
        if "pe" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            raise ValueError(
                f"the MODEL has a patch of attention for U-Nets ({patch.__module__}), but CogVideoX-Fun is not one: "
                "remove the node that set it, for example Tome Patch Model"
            )


class ComfyTransformer(CogVideoXTransformer):
    """The transformer with ComfyUI's operations, attention, interruption and DIFFUSION_MODEL wrappers."""

    def __init__(self, config, device=None, dtype=None, operations=None):
        norms = comfy_norms(comfy.model_management.get_torch_device(), dtype or torch.float32)
        super().__init__(
            config, operations, comfy_attention, on_progress=check_interrupt, device=device, dtype=dtype, **norms
        )

    @property
    def in_channels(self) -> int:
        """Channels of the latent that is sampled, for nodes such as RenormCFG; the model itself takes more."""
        return self.config.out_channels

    def weight_fetcher(self, device, options):
        """ComfyUI's queue of uploads, where its dynamic VRAM is in use."""
        return prefetch_queue(self.transformer_blocks, device, options) or super().weight_fetcher(device, options)

    def forward(self, x, timestep, context, transformer_options=None, **conds):
        options = transformer_options or {}
        check_patches(options)
        exact = options.get(TIMESTEP, 0)
        if exact != round(exact):
            timestep = torch.full_like(timestep, exact)
        wrappers = comfy.patcher_extension.get_all_wrappers(
            comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options
        )
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(super().forward, self, wrappers)
        return executor.execute(x, timestep, context, transformer_options=options, **conds)


class CogVideoXLatent(comfy.latent_formats.LatentFormat):
    latent_channels = 16
    latent_dimensions = 3
    temporal_downscale_ratio = 4

    def __init__(self, scale_factor: float, preview: PreviewFactors):
        self.scale_factor = scale_factor
        self.latent_rgb_factors, self.latent_rgb_factors_bias = preview


class CogVideoXFunConfig(comfy.supported_models_base.BASE):
    """ComfyUI's model configuration of a `Checkpoint`."""

    unet_extra_config: dict = {}
    scaled_fp8 = None  # of a quantised file, on 0.3.64: the dtype of its weights

    def __init__(self, checkpoint: Checkpoint):
        super().__init__({"config": checkpoint.config})
        schedule = checkpoint.schedule
        self.checkpoint_config = checkpoint.saved_config
        self.schedule = schedule
        self.image_scale = checkpoint.image_scale
        self.latent_format = CogVideoXLatent(checkpoint.scale_factor, checkpoint.preview)
        self.tiny_decoder = checkpoint.tiny_decoder
        self.has_published_latents = checkpoint.preview == PUBLISHED
        self.supported_inference_dtypes = [torch.bfloat16, torch.float32]
        if checkpoint.config.fp16_is_safe:  # after bf16: ComfyUI takes the first that the GPU has, or the file's fp16
            self.supported_inference_dtypes.insert(1, torch.float16)
        # "linear" is ComfyUI's name for betas linear in their roots; the sigmas are replaced by the schedule's own.
        self.sampling_settings = {
            "beta_schedule": "linear",
            "linear_start": schedule.beta_start,
            "linear_end": schedule.beta_end,
            "timesteps": schedule.num_timesteps,
            "zsnr": schedule.zero_terminal_snr,
        }

    def process_unet_state_dict_for_saving(self, state_dict):
        """Let ModelSave's file carry the configuration that its shapes don't tell."""
        state_dict = {key: packed(value) for key, value in state_dict.items()}
        state_dict[SAVED_CONFIG] = encode_config(self.checkpoint_config)
        return super().process_unet_state_dict_for_saving(state_dict)


class CogVideoXFun(comfy.model_base.BaseModel):
    """ComfyUI's model: v-prediction on the zero-terminal-SNR schedule, with the latents that its kind takes."""

    def __init__(self, model_config: CogVideoXFunConfig, device=None):
        super().__init__(
            model_config, comfy.model_base.ModelType.V_PREDICTION, device=device, unet_model=ComfyTransformer
        )
        self.diffusion_model.requires_grad_(False)
        self.schedule = model_config.schedule
        self.image_scale = model_config.image_scale
        self.tiny_decoder, self.has_published_latents = model_config.tiny_decoder, model_config.has_published_latents
        self.model_sampling.set_sigmas(self.schedule.sigmas())
        # exact where the sigmas can't be: no signal at all at the last timestep
        self.model_sampling.alphas_cumprod = self.schedule.alphas_cumprod()

    @property
    def config(self):
        return self.diffusion_model.config

    def extra_conds(self, **kwargs):
        check_cond_mask(kwargs.get("mask"), kwargs["noise"])
        out = super().extra_conds(**kwargs)
        text = out.get("c_crossattn")
        if text is not None:
            # ComfyUI would upload it for every call, and repeat a shorter text to the length of another in the batch,
            # which changes joint attention
            out["c_crossattn"] = comfy.conds.CONDRegular(text.cond.to(kwargs["device"]))
        scales = Scales(self.latent_format.scale_factor, self.image_scale)
        given = kwargs.get("concat_latent_image"), kwargs.get("concat_mask")
        extra = concat_latents(self.config, scales, kwargs["noise"], *given, kwargs["device"])
        if extra is not None:  # a key of its own: as c_concat, EasyCache of 0.3.64 would see the wrong channel count
            out["concat_latents"] = comfy.conds.CONDNoiseShape(extra)
            if (percents := kwargs.get(CONTROL_PERCENTS)) is not None:
                sigmas = tuple(map(self.model_sampling.percent_to_sigma, percents))
                out["control_sigmas"] = comfy.conds.CONDConstant(sigmas)
        return out

    def _apply_model(self, x, t, *args, control_sigmas: tuple[float, float] | None = None, **kwargs):
        """ComfyUI's call, with zeros for the control video outside its part of the schedule. t: [B] sigmas."""
        if control_sigmas is not None:
            first, last = control_sigmas
            inside = ((t <= first) & (t >= last)).to(x)
            kwargs["concat_latents"] = kwargs["concat_latents"] * inside[:, None, None, None, None]
        return super()._apply_model(x, t, *args, **kwargs)

    def inference_dtype(self) -> torch.dtype:
        return self.get_dtype() if self.manual_cast_dtype is None else self.manual_cast_dtype

    def memory_required(self, input_shape, cond_shapes=None) -> float:
        """Bytes of activations of one call."""
        element = comfy.model_management.dtype_size(self.inference_dtype())
        linear = self.diffusion_model.transformer_blocks[0].ff.net[2]
        return transformer_bytes(self.config, input_shape, element, packs_inputs=multiplies_in_fp8(linear))


def check_cond_mask(mask: torch.Tensor | None, noise: torch.Tensor) -> None:
    """Raise a ValueError unless a conditioning's mask has one frame or those of the latent.

    Args:
        mask: 1 F h w, as ComfyUI resized it. noise: B C T h w.
    """
    latent_t = noise.shape[2]
    if mask is not None and mask.ndim == 4 and mask.shape[1] not in (1, latent_t):
        raise ValueError(
            f"the mask on the conditioning has {mask.shape[1]} frames, but the latent {latent_t}: put Mask Resize 3D "
            "before Conditioning (Set Mask), or use a mask of one frame"
        )


def model_of(patcher) -> CogVideoXFun:
    """The model inside a MODEL.

    Raises:
        ValueError: it is of another family.
    """
    model = patcher.model
    if not isinstance(model, CogVideoXFun):
        raise ValueError(
            f"the MODEL is a {type(model).__name__}, expected a CogVideoX-Fun model: load one with Load CogVideoX-Fun "
            "Model"
        )
    return model


def with_positions(patcher, options: PositionOptions):
    """A clone of a MODEL whose positions are made as ``options`` say.

    Raises:
        ValueError: the MODEL is of another family, or RIFLEx for one without rotary positions.
    """
    config = model_of(patcher).config
    if options.riflex_k and not config.use_rotary_positional_embeddings:
        raise ValueError(
            f"riflex_k is {options.riflex_k}, but RIFLEx changes rotary positions and the {config.family} models have "
            "an additive table: set it to 0, and use Context Windows or temporal_scale for longer clips"
        )
    patched = patcher.clone()
    patched.model_options["transformer_options"][POSITIONS] = options
    return patched


def length_limits(patcher, length: int = 0) -> tuple[int | None, int | None]:
    """What lengths a MODEL takes: latent frames per patch (2 on V1.5, else None) and the most frames, or None.

    Args:
        length: of a clip, in frames. Where it is longer than the MODEL's context window, any length is taken.
    """
    config, windows = model_of(patcher).config, patcher.model_options.get("context_handler")
    if windows is not None and frames_to_latent_t(length) > windows.context_length:
        return None, None
    options = patcher.model_options.get("transformer_options", {}).get(POSITIONS, PositionOptions())
    latent_t = options.max_latent_t(config.max_latent_t)
    return config.patch_size_t, None if latent_t is None else latent_t_to_frames(latent_t)


def progress_callback():
    """A function on_progress(done, total) that moves ComfyUI's progress bar and lets the user interrupt."""
    bar = comfy.utils.ProgressBar(1)

    def on_progress(done: int, total: int) -> None:
        check_interrupt(done, total)
        bar.update_absolute(done, total)

    return on_progress

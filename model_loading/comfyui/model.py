"""The MODEL: our transformer inside the host's BaseModel and ModelPatcher, on every supported ComfyUI.

Only the modules called ``host_*`` know the host's classes. What differs between host versions is asked of the host (a
signature, an attribute), never of its version number.
"""

import inspect
import logging

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.supported_models_base
import comfy.utils
import torch
import torch.nn.functional as F

from ...sampling.geometry import SPATIAL_COMPRESSION, latent_t_to_frames
from ...sampling.inpaint import inpaint_latents
from ...sampling.masks import THRESHOLD, mask_to_latent
from ...sampling.positions import PositionOptions
from ...sampling.preview import PreviewFactors
from ..files.checkpoint import SAVED_CONFIG, Checkpoint, encode_config
from ..networks.memory_estimate import transformer_bytes
from ..networks.transformer import POSITIONS, CogVideoXTransformer
from .compat import accepts
from .kernels import comfy_attention, comfy_norms

try:
    import comfy.model_prefetch as model_prefetch  # newer hosts
except ImportError:
    model_prefetch = None

log = logging.getLogger(__name__)

CONDITIONING_REMEDIES = {  # by what the model takes
    "text": "remove it, or load an InP (33 channels) or Control (32) model",
    "inpaint": "use Inpaint Conditioning with VAE Encode and Mask Resize 3D, or load a Control (32 channels) model",
    "control": "use Control Conditioning, or load an InP (33 channels) model",
    "image": "use Image Conditioning, or load an InP (33 channels) model",
    "void": "use the host's VOIDInpaintConditioning, or load an InP (33 channels) model",
}

# In a conditioning: from where to where of the schedule, 0..1, the control video counts.
CONTROL_PERCENTS = "cogvideox_fun_control_percents"

# In transformer_options of the authors' samplers: the timestep, which may lie between two of the host's whole ones,
# and the number of the nearest of the run's sigmas. They are numbers of Python's; the host's own lie on the GPU.
TIMESTEP = "cogvideox_fun_timestep"
STEP = "cogvideox_fun_step"


def check_interrupt(_done: int, _total: int) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


def check_patches(options: dict) -> None:
    """Raise a ValueError if transformer_options holds a patch of attention that only a U-Net can take.

    Joint-attention models call it with pe, attn_mask and extra_options, and it returns a dict.
    """
    for patch in options.get("patches", {}).get("attn1_patch", ()):
        kinds = [parameter.kind for parameter in inspect.signature(patch).parameters.values()]
        if not accepts(patch, "pe") and inspect.Parameter.VAR_KEYWORD not in kinds:
            raise ValueError(
                f"the MODEL has a patch of attention for U-Nets ({patch.__module__}), and CogVideoX-Fun is not one: "
                "remove the node that set it, for example Tome Patch Model"
            )


class ComfyTransformer(CogVideoXTransformer):
    """The transformer with the host's operations, attention, interruption and DIFFUSION_MODEL wrappers."""

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
        """ComfyUI's queue that uploads the next block while one runs, where its dynamic VRAM is in use."""
        if model_prefetch is None or not options.get("prefetch_dynamic_vbars"):
            return super().weight_fetcher(device, options)
        # the modulations were uploaded already: they run once a call, before the blocks
        streamed = [torch.nn.ModuleList(block.streamed) for block in self.transformer_blocks]
        queue = model_prefetch.make_prefetch_queue(streamed, device, options)
        return lambda block: model_prefetch.prefetch_queue_pop(queue, device, block)

    def home(self, linear, temb):
        """Where the weights lie, unless they must be cast, unpacked or patched for the call, quicker on the card.

        A dynamic patcher's layers (``_v``) can't run on the CPU: there the host leaves their patches out. Nor can one
        whose forward a bypass LoRA has taken over, with its own weights on the card.
        """
        weight = linear.weight
        packed = type(weight.data) is not torch.Tensor  # a quantised one says the dtype that it unpacks to
        changed = any(getattr(linear, f"{name}_function", None) for name in ("weight", "bias"))
        taken = hasattr(linear, "_v") or "forward" in vars(linear)
        here = weight.dtype == temb.dtype and not (packed or changed or taken)
        return weight.device if here else temb.device

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
    """The host's model configuration of a `Checkpoint`."""

    unet_extra_config: dict = {}

    def __init__(self, checkpoint: Checkpoint):
        super().__init__({"config": checkpoint.config})
        schedule = checkpoint.schedule
        self.checkpoint_config = checkpoint.saved_config
        self.schedule = schedule
        self.image_scale = checkpoint.image_scale
        self.latent_format = CogVideoXLatent(checkpoint.scale_factor, checkpoint.preview)
        self.supported_inference_dtypes = [torch.bfloat16, torch.float32]
        if checkpoint.config.fp16_is_safe:
            self.supported_inference_dtypes.insert(0, torch.float16)
        # "linear" is the host's name for betas linear in their roots; the sigmas are replaced by the schedule's own.
        self.sampling_settings = {
            "beta_schedule": "linear",
            "linear_start": schedule.beta_start,
            "linear_end": schedule.beta_end,
            "timesteps": schedule.num_timesteps,
            "zsnr": schedule.zero_terminal_snr,
        }

    def process_unet_state_dict_for_saving(self, state_dict):
        """Let ModelSave's file carry the configuration that its shapes don't tell."""
        # 0.8.0 leaves quantised weights packed beside their scales, which safetensors can't write
        state_dict = {key: getattr(value, "_qdata", value) for key, value in state_dict.items()}
        state_dict[SAVED_CONFIG] = encode_config(self.checkpoint_config)
        return super().process_unet_state_dict_for_saving(state_dict)


class CogVideoXFun(comfy.model_base.BaseModel):
    """The host's model: v-prediction on the zero-terminal-SNR schedule, with InP or Control latents."""

    def __init__(self, model_config: CogVideoXFunConfig, device=None):
        super().__init__(
            model_config, comfy.model_base.ModelType.V_PREDICTION, device=device, unet_model=ComfyTransformer
        )
        self.diffusion_model.requires_grad_(False)
        self.schedule = model_config.schedule
        self.image_scale = model_config.image_scale
        self.model_sampling.set_sigmas(self.schedule.sigmas())
        # exact where the sigmas can't be: no signal at all at the last timestep
        self.model_sampling.alphas_cumprod = self.schedule.alphas_cumprod()

    @property
    def config(self):
        return self.diffusion_model.config

    def get_dynamic_vram__units(self):
        """For the host's dynamic patcher: which layers come first on the card, and which last."""
        return [], self.diffusion_model.modulations()

    def process_latent_in(self, latent):
        if not torch.isfinite(latent).all():
            raise ValueError("the latent holds NaN or infinity: check the node that made it")
        return super().process_latent_in(latent)

    def extra_conds(self, **kwargs):
        out = super().extra_conds(**kwargs)
        text = out.get("c_crossattn")
        if text is not None:  # the host would upload it for every call
            out["c_crossattn"] = text._copy_with(text.cond.to(kwargs["device"]))
        extra = self.concat_latents(
            kwargs["noise"], kwargs.get("concat_latent_image"), kwargs.get("concat_mask"), kwargs["device"]
        )
        if extra is not None:  # a key of its own: as c_concat, EasyCache of 0.3.64 would see the wrong channel count
            out["concat_latents"] = comfy.conds.CONDNoiseShape(extra)
            if CONTROL_PERCENTS in kwargs:
                sigmas = tuple(map(self.model_sampling.percent_to_sigma, kwargs[CONTROL_PERCENTS]))
                out["control_sigmas"] = comfy.conds.CONDConstant(sigmas)
        return out

    def _apply_model(self, x, t, *args, control_sigmas: tuple[float, float] | None = None, **kwargs):
        """The host's call, with zeros for the control video outside its part of the schedule. t: [B] sigmas."""
        if control_sigmas is not None:
            first, last = control_sigmas
            inside = ((t <= first) & (t >= last)).to(x)
            kwargs["concat_latents"] = kwargs["concat_latents"] * inside[:, None, None, None, None]
        return super()._apply_model(x, t, *args, **kwargs)

    def concat_latents(self, noise, latent, mask, device) -> torch.Tensor | None:
        """The channels that the model takes beside the noise, B C T h w, scaled; None for zeros (text to video).

        Raises:
            ValueError: conditioning for another kind of model, or of another size than the noise.
        """
        if latent is None and mask is None:
            return None
        kind = self.config.conditioning
        if latent is None or kind == "text" or (mask is not None) != (kind == "inpaint"):
            have = (
                "a mask without a latent"
                if latent is None
                else "a mask and a latent"
                if mask is not None
                else "a latent"
            )
            raise ValueError(
                f"this model takes {self.config.in_channels} channels ({kind}), but the conditioning holds {have}: "
                f"{CONDITIONING_REMEDIES[kind]}"
            )
        channels = 32 if kind == "void" else 16
        fits = latent.ndim == 5 and latent.shape[1] == channels and latent.shape[3:] == noise.shape[3:]
        if kind == "image":  # the first frame, or several; the rest are zeros
            fits = fits and latent.shape[2] <= noise.shape[2]
        if not fits or (kind != "image" and latent.shape[2] != noise.shape[2]):
            raise ValueError(
                f"the conditioning's latent has the shape {list(latent.shape)}, but the sampled latent "
                f"{list(noise.shape)}: give CogVideoX-Fun's Empty Latent and VAE Encode the same size and length"
            )
        latent = self.process_latent_in(latent).to(device)
        if kind == "image":
            scaled = latent * (self.image_scale / self.latent_format.scale_factor)
            return F.pad(scaled, (0, 0, 0, 0, 0, noise.shape[2] - latent.shape[2]))
        if kind != "inpaint":
            return latent
        mask = self.latent_mask(mask, noise)
        if mask is None:
            return None
        mask = comfy.utils.repeat_to_batch_size(mask.to(device), latent.shape[0])
        return inpaint_latents(mask, latent, self.latent_format.scale_factor)

    @staticmethod
    def latent_mask(mask: torch.Tensor, noise: torch.Tensor) -> torch.Tensor | None:
        """A conditioning's mask as B 1 T h w, 1 = generate; None where a pixel mask keeps nothing."""
        latent_t, latent_h, latent_w = noise.shape[2:]
        if mask.ndim == 5 and mask.shape[1] == 1 and mask.shape[2:] == noise.shape[2:]:
            return mask
        height, width = latent_h * SPATIAL_COMPRESSION, latent_w * SPATIAL_COMPRESSION
        frames = latent_t_to_frames(latent_t)
        is_pixel_mask = mask.ndim == 4 and mask.shape[1] == 1 and mask.shape[2:] == (height, width)
        if not is_pixel_mask or mask.shape[0] not in (1, frames):
            raise ValueError(
                f"the conditioning's mask has the shape {list(mask.shape)}, but the latent is {latent_t} x {latent_h} "
                f"x {latent_w}: bring the mask to the latent's size with Mask Resize 3D"
            )
        log.warning(
            "the conditioning's latent was made by the host's InpaintModelConditioning, which greys out what the "
            "model expects black: use CogVideoX-Fun's VAE Encode and Inpaint Conditioning instead"
        )
        if (mask >= THRESHOLD).all():
            return None
        return mask_to_latent(mask[:, 0], latent_t, latent_h, latent_w)[None, None]

    def inference_dtype(self) -> torch.dtype:
        return self.get_dtype() if self.manual_cast_dtype is None else self.manual_cast_dtype

    def memory_required(self, input_shape, cond_shapes=None) -> float:
        """Bytes of activations of one call."""
        element = comfy.model_management.dtype_size(self.inference_dtype())
        linear = self.diffusion_model.transformer_blocks[0].ff.net[2]
        quantised = getattr(linear, "layout_type", None) and not linear._full_precision_mm
        packs_inputs = bool(quantised) or isinstance(linear, comfy.ops.fp8_ops.Linear)
        return transformer_bytes(self.config, input_shape, element, packs_inputs)


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


def length_limits(patcher, of_a_call: bool = False) -> tuple[int | None, int | None]:
    """What lengths a MODEL takes: latent frames per patch (2 on V1.5, else None) and the most frames, or None.

    Args:
        of_a_call: of one call of the transformer, whatever windows it runs in.
    """
    config = model_of(patcher).config
    if not of_a_call and "context_handler" in patcher.model_options:  # its windows run through a clip of any length
        return None, None
    options = patcher.model_options.get("transformer_options", {}).get(POSITIONS, PositionOptions())
    latent_t = options.max_latent_t(config.max_latent_t)
    return config.patch_size_t, None if latent_t is None else latent_t_to_frames(latent_t)


def progress_callback():
    """A on_progress(done, total) that moves a progress bar of the host and lets the user interrupt."""
    bar = comfy.utils.ProgressBar(1)

    def on_progress(done: int, total: int) -> None:
        check_interrupt(done, total)
        bar.update_absolute(done, total)

    return on_progress

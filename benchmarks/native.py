"""ComfyUI's own CogVideoX (0.20 and newer) as a peer; for a process in which that ComfyUI can be imported."""

from pathlib import Path

import torch

from ..model_loading.networks.config import TransformerConfig
from ..model_loading.networks.transformer import CogVideoXTransformer
from .live_bytes import trace
from .peers import shared_options
from .timed import THREADS, TIMED, interleaved, random_, threads, timed_inputs
from .traced import CONFIGS, META, SIZES, call_inputs

NANO = Path(__file__).resolve().parent.parent / "models" / "nano"


def native_transformer(config: TransformerConfig, **where) -> torch.nn.Module:
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel

    # PyTorch's own layers: with dynamic VRAM those of ComfyUI have no weights until a file is loaded
    return CogVideoXTransformer3DModel(**shared_options(config), operations=torch.nn, **where).requires_grad_(False)


def measure() -> dict:
    found = {size: trace_native(latent) for size, latent in SIZES.items()}
    found["decode"] = trace_native_decode(SIZES["480x720x49"])
    found["call"] = time_native()
    found["numbers"] = numbers()
    return found


def trace_native(latent: tuple[int, int, int], batch: int = 2) -> int:
    """Peak bytes of one call of the host's own 5B, both prompts at once."""
    config = CONFIGS["5B"]
    with torch.device("meta"):
        model = native_transformer(config, **META).to(torch.bfloat16)
    noise, extra, timestep, text = call_inputs(config, latent, batch)
    x = torch.cat([noise, extra], dim=1)
    return trace(lambda: model(x, timestep, text)).peak


def trace_native_decode(latent: tuple[int, int, int]) -> int:
    from comfy.ldm.cogvideo.vae import AutoencoderKLCogVideoX

    with torch.device("meta"):
        vae = AutoencoderKLCogVideoX().to(torch.bfloat16).requires_grad_(False)
    z = torch.empty(1, 16, *latent, **META)
    return trace(lambda: vae.decode(z)).peak


def time_native(rounds: int = 9) -> dict[int, float]:
    """The call of `timed.time_transformer`, ours over the native one, which computes other numbers, by threads."""
    ours, native = CogVideoXTransformer(TIMED).requires_grad_(False), native_transformer(TIMED)
    random_(ours), random_(native)
    x, timestep, text = timed_inputs()
    ratios = {}
    for count in THREADS:
        with threads(count):
            pairs, *_ = interleaved(
                lambda: ours(x[:, :16], timestep, text, concat_latents=x[:, 16:]),
                lambda: native(x, timestep, text),
                rounds,
            )
        ratios[count] = pairs.ratio
    return ratios


def numbers() -> dict:
    """What the native model makes of CogVideoX-Fun: whether it opens a checkpoint, and how far its positions and its
    schedule are from ours, which the tests hold to the authors' within 1e-5."""
    import comfy.model_base
    import comfy.sd
    import comfy.supported_models

    from ..model_loading.files.checkpoint import open_checkpoint

    try:
        comfy.sd.load_diffusion_model(str(NANO / "transformer" / "diffusion_pytorch_model.safetensors"))
        found = {"opens": ""}
    except RuntimeError as error:
        found = {"opens": str(error).splitlines()[0].replace(str(NANO.parent), "models")}
    with torch.device("meta"):
        ours, native = CogVideoXTransformer(CONFIGS["5B"]), native_transformer(CONFIGS["5B"])
    for size, (t, h, w) in {"480x720": (13, 30, 45), "512x512": (13, 32, 32)}.items():
        expected = ours.compute_positions((t, h, w), ours.position_options)
        cos, sin = native._get_rotary_emb(h, w, t, "cpu")
        rope = torch.complex(cos[:, ::2], sin[:, ::2])
        found[f"rope {size}"] = float((rope - expected).abs().pow(2).mean().sqrt())
    config = comfy.supported_models.CogVideoX_T2V({"num_attention_heads": 30})
    sigmas = comfy.model_base.model_sampling(config, comfy.model_base.ModelType.V_PREDICTION_DDPM).sigmas[:-1]
    expected = open_checkpoint(NANO).schedule.sigmas()[:-1]  # the last is infinite by the schedule
    found["sigmas"] = float((sigmas / expected - 1).abs().max())
    return found

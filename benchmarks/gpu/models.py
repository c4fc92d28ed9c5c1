"""What is measured on a GPU, and how: models of the real size with random weights, seconds, peak bytes and kernels.

On the CPU, where the measurements are rehearsed, small models are used and only seconds are measured.
"""

import dataclasses
import gc
import json
import re
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...model_loading.comfyui.load import load_model
from ...model_loading.files.checkpoint import SAVED_CONFIG, encode_config, open_checkpoint
from ...model_loading.networks.config import TEXT_TOKENS, TransformerConfig
from ...model_loading.networks.transformer import CogVideoXTransformer
from ...model_loading.networks.vae import CogVideoXVAE, VAEConfig
from ...tools.pack import ROOT
from .. import traced

NANO = ROOT / "models" / "nano"
GB = 1e9
# A kernel's kind by its name; the first that matches counts.
KINDS = {
    "attention": re.compile("flash|fmha|attention|sdpa", re.IGNORECASE),
    "convolutions": re.compile("conv|fprop|wgrad|dgrad|implicit", re.IGNORECASE),  # often implicit_gemm
    "matrix products": re.compile("gemm|nvjet|cutlass|xmma|wgmma|splitk|cublas", re.IGNORECASE),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is measured: the real models on a GPU, or small ones in a rehearsal.

    Args:
        sizes: T h w of the latent, by the name of the size.
        steps: of a whole run.
        budgets: bytes of VRAM that are left free.
    """

    device: torch.device
    configs: Mapping[str, TransformerConfig]
    sizes: Mapping[str, tuple[int, int, int]]
    vae: VAEConfig
    steps: int
    budgets: tuple[float, ...]

    @property
    def first(self) -> tuple[int, int, int]:
        """The size that most parts are measured at."""
        return next(iter(self.sizes.values()))


def real(device: torch.device) -> Scale:
    return Scale(device, traced.CONFIGS, traced.SIZES, VAEConfig(), steps=50, budgets=(6 * GB, 8 * GB, 12 * GB))


def rehearsal(device: torch.device) -> Scale:
    small = {"num_attention_heads": 2, "num_layers": 2, "text_embed_dim": 32}
    configs = {name: dataclasses.replace(config, **small) for name, config in traced.CONFIGS.items()}
    vae = VAEConfig(block_out_channels=(32, 64, 64, 64), layers_per_block=1)
    sizes = {name: (3, 8 * i, 12 * i) for i, name in enumerate(traced.SIZES, start=1)}
    return Scale(device, configs, sizes, vae, steps=2, budgets=(1 * GB,))


def synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize()


def seconds(run: Callable[[], object], device: torch.device, repeats: int = 2, warm_up: int = 1) -> float:
    """Median seconds of a call, until the GPU is done with it."""
    for _ in range(warm_up):
        run()
    taken = []
    for _ in range(repeats):
        synchronize(device)
        begun = time.perf_counter()
        run()
        synchronize(device)
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def peak(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes of PyTorch's allocator during a call, beyond what was allocated before; 0 on the CPU."""
    if device.type == "cpu":
        run()
        return 0
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    synchronize(device)
    return torch.cuda.max_memory_allocated() - before


def timed(run: Callable[[], object], device: torch.device, repeats: int = 2) -> dict:
    """Peak bytes of a first call, and seconds of later ones."""
    bytes_ = peak(run, device)
    return {"peak": bytes_, "seconds": seconds(run, device, repeats, warm_up=0)}


def trace(run: Callable[[], object], device: torch.device) -> list[dict]:
    """The GPU's kernels and copies of a call, as PyTorch's profiler writes them."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type != "cpu":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return [event for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]


def uploaded(events: list[dict]) -> int:
    """Bytes copied from the CPU to the GPU."""
    copies = (event for event in events if event["cat"] == "gpu_memcpy" and "HtoD" in event["name"])
    return sum(event["args"].get("bytes", 0) for event in copies)


def kind(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if pattern.search(name)), "the rest")


def kernels(events: list[dict], count: int = 20) -> dict:
    """The longest kernels by their sum, and each kind's milliseconds, launches and share."""
    times, launches = Counter(), Counter()
    for event in events:
        times[event["name"]] += event["dur"]
        launches[event["name"]] += 1
    kinds, launched = Counter(), Counter()
    for name, microseconds in times.items():
        kinds[kind(name)] += microseconds
        launched[kind(name)] += launches[name]
    total = sum(times.values())
    return {
        "milliseconds": total / 1e3,
        "kinds": {
            name: {"milliseconds": value / 1e3, "launches": launched[name], "share": value / total}
            for name, value in kinds.most_common()
        },
        "longest": [
            {"kernel": name[:160], "milliseconds": value / 1e3, "launches": launches[name]}
            for name, value in times.most_common(count)
        ],
    }


def write_transformer(scale: Scale, name: str, folder: Path) -> Path:
    """Write a transformer's file, bf16, with its configuration in it."""
    with torch.device("meta"):
        model = CogVideoXTransformer(scale.configs[name])
    state = {key: value.cpu() for key, value in traced.random_state(model, scale.device, torch.bfloat16).items()}
    saved = {**open_checkpoint(NANO).saved_config, "transformer": vars(scale.configs[name])}
    path = folder / f"{name}.safetensors"
    save_file({**state, SAVED_CONFIG: encode_config(saved)}, path)
    return path


def write_vae(scale: Scale, folder: Path) -> Path:
    """Write a VAE's folder, bf16."""
    with torch.device("meta"):
        vae = CogVideoXVAE(scale.vae)
    path = folder / "vae"
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(dataclasses.asdict(scale.vae)))
    state = {key: value.cpu() for key, value in traced.random_state(vae, scale.device, torch.bfloat16).items()}
    save_file(state, path / "diffusion_pytorch_model.safetensors")
    return path


class Call:
    """A MODEL that is called as ComfyUI's samplers call it.

    Args:
        path: of its file.
        options: of `load_model`.
    """

    def __init__(self, scale: Scale, path: Path, **options):
        self.scale = scale
        self.patcher = load_model(path, **options)

    def load(self, latent: tuple[int, int, int], batch: int) -> None:
        """Let ComfyUI place the weights for calls of a latent T h w."""
        import comfy.model_management

        needed = self.patcher.model.memory_required([batch, 16, *latent])
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)

    def inputs(self, latent: tuple[int, int, int], batch: int) -> tuple[torch.Tensor, torch.Tensor, dict]:
        """(noise, sigma, conditioning) as the samplers give them, float32."""
        model = self.patcher.model
        generator = torch.Generator(self.scale.device).manual_seed(0)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, device=self.scale.device)

        sigma = model.model_sampling.sigmas[500].to(self.scale.device).expand(batch)
        extra = random(batch, model.config.in_channels - 16, *latent)
        return random(batch, 16, *latent), sigma, {
            "c_crossattn": random(batch, TEXT_TOKENS, model.config.text_embed_dim),
            "concat_latents": extra,
        }  # fmt: skip

    def runner(self, latent: tuple[int, int, int], batch: int):
        """A function that makes one call."""
        self.load(latent, batch)
        x, sigma, conds = self.inputs(latent, batch)
        options = self.patcher.model_options["transformer_options"]
        return lambda: self.patcher.model.apply_model(x, sigma, transformer_options={**options}, **conds)


def compiled(patcher):
    """A MODEL with each of its blocks compiled by inductor, with ComfyUI's helper: one compilation serves all."""
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    patched = patcher.clone(disable_dynamic=True)
    blocks = len(patched.model.diffusion_model.transformer_blocks)
    keys = [f"diffusion_model.transformer_blocks.{index}" for index in range(blocks)]
    guards = {"guard_filter_fn": lambda guards: ["transformer_options" not in g.name for g in guards]}
    set_torch_compile_wrapper(patched, backend="inductor", keys=keys, options=guards)
    return patched

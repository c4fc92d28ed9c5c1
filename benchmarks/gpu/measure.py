"""Seconds, peak bytes and kernels of a call on a GPU; on the CPU, where the kit is rehearsed, seconds alone."""

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

from ...model_loading.networks.config import TransformerConfig
from ...model_loading.networks.vae import VAEConfig
from .. import traced

GB = 1e9
# A kernel's kind by its name; the first that matches counts.
KINDS = {
    "attention": re.compile("flash|fmha|attention|sdpa", re.IGNORECASE),
    "matrix products": re.compile("gemm|nvjet|cutlass|xmma|wgmma|splitk|cublas", re.IGNORECASE),
    "convolutions": re.compile("conv|wgrad|dgrad|implicit", re.IGNORECASE),
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """What is measured: the real models on a GPU, or small ones that take the same way.

    Args:
        sizes: T h w of the latent, by the name of the size.
        steps: of a whole run.
        budgets: bytes of GPU memory that are pretended to be all.
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


def bench(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a kernel or a few, by events around each of many runs."""
    if device.type == "cpu":
        return seconds(run, device)
    from triton.testing import do_bench

    return do_bench(run, warmup=20, rep=60, return_mode="median") / 1e3


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
    """Bytes copied from the host to the GPU."""
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


def random_state(module: torch.nn.Module, device: torch.device, dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    """Weights for a module on the meta device, made on the GPU, of a size that keeps activations near one."""
    generator = torch.Generator(device).manual_seed(0)
    state = {}
    for name, value in module.state_dict().items():
        scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        tensor = torch.randn(value.shape, generator=generator, device=device, dtype=torch.float32) * scale
        state[name] = (tensor + 1 if value.ndim == 1 and name.endswith("weight") else tensor).to(dtype)
    return state

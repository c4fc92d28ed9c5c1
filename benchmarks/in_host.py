"""What only a ComfyUI can show: its native CogVideoX as a peer, and the cost of our sampler over its own loop.

``python benchmarks/run.py host PATH``, run with the Python of the ComfyUI at PATH, prints `measure` as JSON for
`measured_apart`.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import torch

from ..tools.comfyui_server import find_host
from .timed import Pairs, interleaved
from .traced import SIZES

RUN = Path(__file__).resolve().parent / "run.py"
STEPS = 50


def measured_apart() -> dict | None:
    """`measure` in the ComfyUI that the tests take, or None where there is none."""
    host = find_host()
    if host is None:
        return None
    command = [str(host.python), str(RUN), "host", str(host.path)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if answer.returncode:
        raise RuntimeError(f"measuring in {host.path} failed:\n{answer.stderr[-2000:]}")
    return json.loads(answer.stdout.splitlines()[-1])


def measure(path: Path) -> dict:
    """Bytes and times of the native model where this ComfyUI has one, and our loop's time over the host's.

    Args:
        path: of the ComfyUI, which comes to the front of ``sys.path``; for a process of its own.
    """
    sys.path.insert(0, str(path))
    from comfy.cli_args import args

    args.cpu = args.use_pytorch_cross_attention = True
    found = {}
    if importlib.util.find_spec("comfy.ldm.cogvideo"):
        from . import native

        found["native"] = native.measure()
    found["loop"] = time_loops().ratio
    return found


def time_loops(rounds: int = 15) -> Pairs:
    """Seconds of `cogvideox_ddim` and of the host's Euler over 50 steps with guidance, on latents of 480x720x49.

    The transformer does nothing from then on, for every model of this process.
    """
    import comfy.model_patcher
    import comfy.sample
    import comfy.samplers

    from ..model_loading.comfyui.load import CogVideoXFun, CogVideoXFunConfig
    from ..model_loading.comfyui.samplers import CogVideoXDDIM, run_sigmas
    from ..model_loading.files.checkpoint import open_checkpoint
    from ..model_loading.networks.transformer import CogVideoXTransformer

    checkpoint = open_checkpoint(RUN.parent.parent / "models" / "nano")
    model = CogVideoXFun(CogVideoXFunConfig(checkpoint))
    CogVideoXTransformer.forward = lambda self, x, timestep, context, **_: x
    cpu = torch.device("cpu")
    patcher = comfy.model_patcher.ModelPatcher(model, cpu, cpu)
    latent = torch.zeros(1, 16, *SIZES["480x720x49"])
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    conditioning = [[torch.zeros(1, 16, checkpoint.config.text_embed_dim), {}]]
    sigmas = run_sigmas(patcher, STEPS)

    def run(sampler) -> torch.Tensor:
        return comfy.sample.sample_custom(
            patcher, noise, 6.0, sampler, sigmas, conditioning, conditioning, latent, disable_pbar=True, seed=0
        )

    ddim = CogVideoXDDIM(checkpoint.schedule, STEPS)
    pairs, *_ = interleaved(lambda: run(ddim), lambda: run(comfy.samplers.sampler_object("euler")), rounds)
    return pairs

"""Run the nano model through a ComfyUI in this process, to see that a machine has all that the measurements need.

``python -m benchmarks.gpu.rehearsal``, with ComfyUI's own arguments after it; prints one line of JSON.
"""

import json
import sys

from . import host

LENGTH, HEIGHT, WIDTH = 9, 96, 128


def rehearse() -> dict:
    """Load the nano model, sample two steps and decode them; returns what came of it."""
    import comfy.memory_management
    import comfy.model_management
    import torch

    run = host.run_node
    model, clip, vae = run("CogVideoXFunModelLoader", model="nano", weight_dtype="default")
    (positive,), (negative,) = (run("CLIPTextEncode", clip=clip, text=text) for text in ("a red ball", ""))
    size = {"width": WIDTH, "height": HEIGHT, "length": LENGTH, "batch_size": 1}
    latent = run("CogVideoXFunEmptyLatent", **size)[0]
    wanted = {"positive": positive, "negative": negative, "latent": latent, "seed": 1, "steps": 2}
    (sampled,) = run("CogVideoXFunSampler", model=model, **wanted)
    (pixels,) = run("VAEDecode", vae=vae, samples=sampled)
    return {
        "torch": torch.__version__,
        "device": str(comfy.model_management.get_torch_device()),
        "dynamic_vram": comfy.memory_management.aimdo_enabled,
        "latent": list(sampled["samples"].shape),
        "pixels": list(pixels.shape),
        "mean": pixels.float().mean().item(),
        "std": pixels.float().std().item(),
    }


if __name__ == "__main__":
    host.start(*sys.argv[1:])
    sys.stdout.write(json.dumps(rehearse()) + "\n")

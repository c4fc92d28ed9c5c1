"""Load a MODEL onto a pretended GPU through ComfyUI's own patchers, run it, unload it, and count what stays there.

Also which dtype the VAE takes.

``python pretended_unload.py COMFYUI MODELS OUTPUT``, as `pretended`.
"""

import gc
import json
import sys
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor

sys.path[:0] = [str(Path(__file__).parents[2] / "tools"), str(Path(__file__).parents[1] / "helpers")]
from pretend_cuda import GPU, pretended_gpu, replaced  # noqa: E402
from pretended import on_the_gpu, start, text  # noqa: E402


def bytes_on_the_gpu() -> int:
    gc.collect()
    found = [value for value in gc.get_objects() if issubclass(type(value), FakeTensor) and value.is_cuda]
    return sum({id(value): value.nbytes for value in found}.values())


class Reserved:
    """In place of comfy-aimdo's reserved memory, of the GPU and page-locked: nothing is ever brought there."""

    def __init__(self, *_sizes: int):
        self.size = 0

    def alloc(self, size: int) -> tuple:
        self.size += size
        return self, self.size - size, size

    def prioritize(self) -> None:
        pass

    def loaded_size(self) -> int:
        return 0

    def free_memory(self, _size: int) -> int:
        return 0


def converted(module: torch.nn.Module, convert, _recurse: bool = True) -> torch.nn.Module:
    """``Module._apply``, with new parameters: PyTorch's can't make a real one a pretended one."""
    for child in module.children():
        child._apply(convert)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            module._parameters[name] = torch.nn.Parameter(convert(parameter.data), False)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else convert(buffer)
    return module


def plain(path: Path) -> dict:
    """Sampled with, then unloaded."""
    from cogvideox_fun.model_loading.comfyui.load import load_model
    from cogvideox_fun.nodes.sampling import Sampler

    patcher = load_model(path, "bf16")
    before = bytes_on_the_gpu()
    patcher.load(GPU, full_load=True)
    loaded = bytes_on_the_gpu() - before
    latent = {"samples": torch.zeros(1, 16, 4, 6, 10)}
    with torch.inference_mode():
        Sampler.execute(patcher, text(1), text(2), latent, 1, 2, 6.0)
    kept = bytes_on_the_gpu() - before - loaded
    patcher.detach()
    return {"loaded": loaded, "kept": kept, "left": bytes_on_the_gpu() - before}


def dynamic(path: Path) -> dict:
    """Positions made, then unloaded: the layers' weights are comfy-aimdo's, which is not here."""
    import comfy.model_patcher
    import comfy_aimdo.host_buffer
    import comfy_aimdo.model_vbar
    from cogvideox_fun.model_loading.comfyui.load import load_model

    core = replaced(comfy.model_patcher, CoreModelPatcher=comfy.model_patcher.ModelPatcherDynamic)
    buffers = replaced(comfy_aimdo.host_buffer, HostBuffer=Reserved)
    with core, buffers, replaced(comfy_aimdo.model_vbar, ModelVBAR=Reserved):
        patcher = load_model(path, "bf16")
        assert patcher.is_dynamic()
        before = bytes_on_the_gpu()
        patcher.partially_load(GPU)
        loaded = bytes_on_the_gpu() - before
        transformer = patcher.model.diffusion_model
        transformer.positions(
            (2, 3, 5), torch.empty(1, dtype=torch.bfloat16, device=GPU), transformer.position_options
        )
        kept = bytes_on_the_gpu() - before - loaded
        patcher.detach()
        return {"loaded": loaded, "kept": kept, "left": bytes_on_the_gpu() - before}


def vae_dtypes(path: Path) -> list[str]:
    """What the VAE computes in on GPUs with bf16 and fp16, with fp16 alone, and with neither."""
    import comfy.model_management
    from cogvideox_fun.model_loading.comfyui.vae import ComfyVAE

    found = []
    for has in ((True, True), (False, True), (False, False)):
        bf16, fp16 = (lambda *_args, answer=answer, **_options: answer for answer in has)
        with replaced(comfy.model_management, should_use_bf16=bf16, should_use_fp16=fp16):
            found.append(str(ComfyVAE(path, device=GPU).vae_dtype))
    return found


def main(comfyui: str, models: str, output: str) -> None:
    start(comfyui)
    import comfy.model_patcher

    runs = {"plain": plain}
    if hasattr(comfy.model_patcher, "ModelPatcherDynamic"):
        runs["dynamic"] = dynamic
    found = {"VAE": vae_dtypes(Path(models) / "tiny-2b" / "vae")}
    with pretended_gpu(), on_the_gpu(), replaced(torch.nn.Module, _apply=converted):
        for kind, run in runs.items():
            for variant in ("2b", "5b"):
                found[f"{kind} {variant}"] = run(Path(models) / f"tiny-{variant}")
    Path(output).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])

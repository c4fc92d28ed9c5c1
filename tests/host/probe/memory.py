"""Probes of where weights lie and what loading them takes."""

import json
from pathlib import Path

import torch


def anonymous_bytes() -> int:
    """RssAnon of the host."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def bypassed_home(transformer, row: torch.Tensor) -> str:
    """Where a modulation linear goes whose forward something else has taken over, as the host's bypass LoRAs do."""
    linear = next(iter(transformer.modulations()))
    linear.forward = linear.forward
    try:
        return transformer.home(linear, row).type
    finally:
        del linear.forward


class ProbePartialLoad:
    """What the host leaves off the card when a model is too large for it, and how far the result is off for it.

    The modulation of the first block is patched, so that a patch must count wherever the weights lie.
    """

    RETURN_TYPES = ()
    FUNCTION = "measure"
    CATEGORY = "probe"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "path": ("STRING", {"default": ""})}}

    @torch.no_grad()
    def measure(self, model, path):
        device = torch.device("cpu")
        transformer = model.model.diffusion_model
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(1, 16, 2, 6, 10, generator=generator)
        text = torch.randn(1, 9, transformer.config.text_embed_dim, generator=generator)
        run = lambda: transformer(x, torch.tensor([500]), text)  # noqa: E731
        names = {module: name for name, module in transformer.named_modules()}
        modulations = {names[linear] for linear in transformer.modulations()}
        bytes_of = {name: sum(p.nbytes for p in module.parameters()) for module, name in names.items()}
        away = sum(bytes_of[name] for name in modulations)
        model.load(device, full_load=True)
        plain = run()
        model.unpatch_model(device)
        model = model.clone()
        key = f"diffusion_model.{min(modulations)}.weight"
        model.add_patches({key: ("diff", (torch.randn_like(transformer.state_dict()[key[16:]]),))}, 0.1)
        model.load(device, full_load=True)
        expected = run()
        found = {
            "modulations": sorted(modulations),
            "patched": min(modulations),
            "of the patch": float((expected - plain).abs().max()),
        }
        for what, budget in (("short", model.model_size() - away // 2), ("half", model.model_size() // 2)):
            model.unpatch_model(device)
            model.load(device, lowvram_model_memory=budget)
            left = sorted(name for module, name in names.items() if hasattr(module, "prev_comfy_cast_weights"))
            found[what] = {"left": left, "difference": float((run() - expected).abs().max())}
        card = {dtype: torch.empty(1, device="meta", dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
        for what, row in (("at home", card[torch.float32]), ("to be cast", card[torch.bfloat16])):
            found[what] = [names[m] for m in transformer.modulations() if transformer.home(m, row) == device]
        found["bypassed"] = bypassed_home(transformer, card[torch.float32])
        model.unpatch_model(device)
        found["afterwards"] = float((run() - plain).abs().max())
        Path(path).write_text(json.dumps(found), encoding="utf-8")
        return ()


class ProbeLoading:
    """Anonymous bytes that loading a model folder takes, over its transformer's file."""

    RETURN_TYPES = ()
    FUNCTION = "measure"
    CATEGORY = "probe"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        text = ("STRING", {"default": ""})
        return {"required": {"folder": text, "weight_dtype": text, "path": text}}

    def measure(self, folder, weight_dtype, path):
        import gc
        import sys

        (load,) = (
            module.load_model for name, module in sys.modules.items() if name.endswith("model_loading.comfyui.load")
        )
        (file,) = Path(folder, "transformer").glob("*.safetensors")
        load(folder, weight_dtype)  # what stays for good: modules, kernels, buffers
        gc.collect()
        before = anonymous_bytes()
        model = load(folder, weight_dtype)
        share = (anonymous_bytes() - before) / file.stat().st_size
        Path(path).write_text(json.dumps({"anonymous": share, "bytes": model.model_size()}), encoding="utf-8")
        return ()

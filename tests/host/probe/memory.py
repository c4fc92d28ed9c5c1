"""A probe of what loading weights takes."""

import json
from pathlib import Path


def anonymous_bytes() -> int:
    """RssAnon of ComfyUI's process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


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

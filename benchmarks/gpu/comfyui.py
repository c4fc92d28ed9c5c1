"""A ComfyUI (0.33) in this process, with the pack loaded as one of its custom nodes; no server and no database.

ComfyUI chooses the CUDA allocator before PyTorch is imported, so `start` comes before anything that imports PyTorch.
"""

import asyncio
import importlib.machinery
import importlib.util
import logging
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

from ..run import ROOT, load_pack

AV = ("av", "av.container", "av.subtitles", "av.subtitles.stream", "av.video", "av.video.reformatter")
log = logging.getLogger(__name__)


class Name(type):
    """A class that has every class attribute, each of them such a class too: enough for annotations and tables."""

    def __getattr__(cls, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return Name(name, (), {})


class Absent(types.ModuleType):
    """A module that is not installed, in which every name is a `Name`."""

    __path__ = ()
    __getattr__ = Name.__getattr__

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)  # diffusers asks for it


def start(*arguments: str, comfyui: Path | None = None) -> None:
    """Make a ComfyUI importable and ready, as its ``main.py`` does, and add the pack's nodes to its own.

    Args:
        arguments: of ComfyUI's command line: ``--disable-dynamic-vram``, ``--lowvram`` and so on. ``--cpu`` is added
            where there is no NVIDIA GPU.
        comfyui: its folder; None is COMFYUI_PATH, else ``~/comfy/ComfyUI``.

    Raises:
        FileNotFoundError: there is no ComfyUI.
    """
    comfyui = Path(comfyui or os.environ.get("COMFYUI_PATH") or "~/comfy/ComfyUI").expanduser().resolve()
    if not (comfyui / "nodes.py").is_file():
        raise FileNotFoundError(f"no ComfyUI at {comfyui}: set COMFYUI_PATH to the folder of one")
    # python -m puts the repository on the path, and its folder nodes would hide ComfyUI's nodes.py
    sys.path[:] = [str(comfyui), *(entry for entry in sys.path if Path(entry).resolve() != ROOT)]
    if importlib.util.find_spec("av") is None:
        sys.modules.update({name: Absent(name) for name in AV})
    # its server would need a database and more packages; whoever imports it asks whether there is an instance
    sys.modules["server"] = types.ModuleType("server")
    sys.modules["server"].PromptServer = types.SimpleNamespace(instance=None)
    read_arguments(arguments if "--cpu" in arguments or has_gpu() else (*arguments, "--cpu"))
    start_memory_management()
    add_nodes()


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, asked without PyTorch, which must not be imported yet."""
    command = shutil.which("nvidia-smi")
    found = command is not None and subprocess.run([command, "-L"], capture_output=True).stdout.startswith(b"GPU")
    if not found:
        log.warning("nvidia-smi lists no GPU: ComfyUI runs on the CPU")
    return found


def read_arguments(arguments: tuple[str, ...]) -> None:
    """Let ComfyUI read these in place of this process's own arguments, and choose the CUDA allocator by them."""
    import comfy.options

    comfy.options.enable_args_parsing()
    own = sys.argv
    sys.argv = ["main.py", *arguments]
    try:
        import comfy.cli_args  # noqa: F401
    finally:
        sys.argv = own
    import utils.extra_config  # noqa: F401  # before other packages that have a module utils can be imported

    if not comfy.cli_args.args.cpu:
        import cuda_malloc  # noqa: F401


def start_memory_management() -> None:
    """Import ComfyUI's core, with dynamic VRAM where ``main.py`` of 0.33.0 would turn it on."""
    import comfy_aimdo.control
    from comfy.cli_args import args, enables_dynamic_vram

    if enables_dynamic_vram():
        headroom = None if args.reserve_vram is None else int(args.reserve_vram * 1024**3)
        comfy_aimdo.control.init(simple_vram_headroom=headroom, nvml_pressure=not args.disable_nvml_pressure)

    import comfy.memory_management
    import comfy.model_management
    import comfy.model_patcher

    if enables_dynamic_vram():
        devices = [
            (d.index, int(args.vram_headroom * 1024**3)) for d in comfy.model_management.get_all_torch_devices()
        ]
        if comfy_aimdo.control.init_devices(devices):
            comfy_aimdo.control.set_log_info()
            comfy.model_patcher.CoreModelPatcher = comfy.model_patcher.ModelPatcherDynamic
            comfy.memory_management.aimdo_enabled = True
        else:
            log.warning("comfy-aimdo could not be initialised: no dynamic VRAM, as ComfyUI does then")
    log.info("dynamic VRAM: %s", "on" if comfy.memory_management.aimdo_enabled else "off")


def add_nodes() -> None:
    """Load the pack under its alias and add its nodes to ComfyUI's, as ComfyUI's ``load_custom_node`` does."""
    import comfy.model_management

    import nodes

    async def listed() -> list[type]:
        extension = await load_pack().comfy_entrypoint()
        await extension.on_load()
        return await extension.get_node_list()

    nodes.NODE_CLASS_MAPPINGS.update({node.GET_SCHEMA().node_id: node for node in asyncio.run(listed())})
    comfy.model_management.set_cudnn_benchmark()


def run_node(node_id: str, **inputs) -> tuple:
    """Run a node of ComfyUI or of the pack as ComfyUI does, and return its outputs."""
    import comfy.memory_management
    import comfy.model_management
    import comfy.model_prefetch
    import comfy_aimdo.model_vbar
    import torch

    import nodes

    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    try:
        with torch.inference_mode():
            outputs = getattr(node(), node.FUNCTION)(**inputs)
    finally:
        if comfy.memory_management.aimdo_enabled:
            comfy.model_management.reset_cast_buffers()
            comfy.model_prefetch.cleanup_prefetch_queues()
            comfy_aimdo.model_vbar.vbars_reset_watermark_limits()
    return getattr(outputs, "result", outputs)

"""Pack what a machine with only PyTorch and transformers needs to run ComfyUI, this pack and diffusers.

``python -m benchmarks.gpu.bundle FOLDER`` (default ``.gpu``), run in the repository, fills FOLDER with

- ``ComfyUI``: sources of the ComfyUI at COMFYUI_PATH (default ``~/comfy/ComfyUI``), without web pages and tests;
- ``site``: the Python packages that such a machine lacks, for PYTHONPATH;
- ``bundle.tar.xz``: both of them, the only file that has to travel (about 7 MB).

Copy the repository with that file to the machine. There, in the repository:

    python -m tarfile -e .gpu/bundle.tar.xz .gpu
    PYTHONPATH=.gpu/site COMFYUI_PATH=.gpu/ComfyUI python -m benchmarks.gpu.run

The machine needs Python 3.12 on 64-bit Linux and a GPU of compute capability 9.0 (H100, H200): comfy-kitchen's code
for other GPUs is left out. So are ``av``, which is large and only reads and writes video files, and what ComfyUI's
server needs: `comfyui` replaces both.
"""

import argparse
import logging
import os
import re
import shutil
import struct
import subprocess
import sys
import tarfile
from pathlib import Path

log = logging.getLogger(__name__)

SOURCES = ("comfy", "comfy_api", "comfy_config", "comfy_execution", "comfy_extras", "utils", "app")
LEFT_OUT = ("*.pyc", "vocab.*", "merges.txt", "tokenizer.model")  # the last three: tokenizers of other models
PACKAGES = ("comfy-kitchen", "comfy-aimdo", "torchsde", "trampoline", "diffusers", "peft", "accelerate")
UNUSED = ("comfy_kitchen/backends/hip/*", "comfy_aimdo/aimdo_rocm.so")  # for AMD's GPUs
KITCHEN = "comfy_kitchen/backends/cuda/_C.abi3.so"
WHEELS = ["--only-binary=:all:", "--python-version=3.12", "--implementation=cp"] + [
    f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_24", "_2_17", "2014")
]
FATBIN_MAGIC, CUBIN, SM_90 = 0xBA55ED50, 2, 90


def copy_comfyui(source: Path, target: Path) -> None:
    """Copy what can be imported of a ComfyUI."""
    if not (source / "nodes.py").is_file():
        raise FileNotFoundError(f"no ComfyUI at {source}: set COMFYUI_PATH to the folder of one")
    target.mkdir(parents=True)
    for file in (*source.glob("*.py"), source / "requirements.txt"):
        shutil.copy(file, target)
    for name in SOURCES:
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns(*LEFT_OUT))


def pinned(packages: tuple[str, ...], requirements: str) -> list[str]:
    """The packages, each in the exact version that ComfyUI's requirements name, if they name one."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", requirements, re.MULTILINE))
    return [f"{name}=={pins[name]}" if name in pins else name for name in packages]


def install(packages: list[str], target: Path) -> None:
    """Install the packages for such a machine into a folder, without what they depend on."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", *WHEELS]
    subprocess.run([*command, "--target", str(target), *packages], check=True)
    for pattern in UNUSED:
        for file in target.glob(pattern):
            file.unlink()


def keep_sm_90(library: bytes) -> bytes:
    """Fill the GPU code of a shared library with zeros, but for that of compute capability 9.0.

    CUDA's compiler puts "fat binaries" into a library. Each has a header: a magic number of 32 bits, a version and the
    header's size of 16 bits each, and the size of the rest as 64 bits. The rest is entries: kind (1 PTX, 2 machine
    code) and version of 16 bits each, the entry's header size as 32 bits, the code's size as 64 bits, and at byte 28
    the compute capability as 32 bits. All of them stay where they are, so that nothing else in the library has to
    change. Zeros take no space in a compressed archive.

    Raises:
        ValueError: the library has no code for compute capability 9.0.
    """
    kept = bytearray(library)
    magic, found = struct.pack("<I", FATBIN_MAGIC), False
    start = library.find(magic)
    while start >= 0:
        version, header, size = struct.unpack_from("<HHQ", library, start + 4)
        position, end = start + header, start + header + size
        if version != 1 or end > len(library):  # the same four bytes by chance
            start = library.find(magic, start + 4)
            continue
        while position < end:
            kind, _, header, size = struct.unpack_from("<HHIQ", library, position)
            (capability,) = struct.unpack_from("<I", library, position + 28)
            if (kind, capability) == (CUBIN, SM_90):
                found = True
            else:
                kept[position + header : position + header + size] = bytes(size)
            position += header + size
        start = library.find(magic, end)
    if not found:
        raise ValueError("the library holds no GPU code for compute capability 9.0: look for a version that does")
    return bytes(kept)


def make(comfyui: Path, folder: Path) -> Path:
    """Fill a folder anew; returns the archive."""
    for name in ("ComfyUI", "site"):
        shutil.rmtree(folder / name, ignore_errors=True)
    copy_comfyui(comfyui, folder / "ComfyUI")
    install(pinned(PACKAGES, (comfyui / "requirements.txt").read_text()), folder / "site")
    kitchen = folder / "site" / KITCHEN
    kitchen.write_bytes(keep_sm_90(kitchen.read_bytes()))
    archive = folder / "bundle.tar.xz"
    with tarfile.open(archive, "w:xz") as tar:
        for name in ("ComfyUI", "site"):
            tar.add(folder / name, name)
    return archive


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(".gpu"))
    comfyui = Path(os.environ.get("COMFYUI_PATH") or "~/comfy/ComfyUI").expanduser()
    archive = make(comfyui, parser.parse_args().folder)
    log.info("%s: %.1f MB", archive, archive.stat().st_size / 1e6)


if __name__ == "__main__":
    main()

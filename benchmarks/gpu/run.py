"""Measure the pack on a GPU, part by part: ``python -m benchmarks.gpu.run``, or ``make gpu``.

Each part writes its own JSON file as soon as it has a result, so that nothing is lost if a later part fails. The
part that takes longest, "loop", comes last. Without an NVIDIA GPU only ``--rehearse`` runs: it measures small models
on the CPU.
"""

import argparse
import json
import logging
import math
import sys
import tempfile
import time
import traceback
from pathlib import Path

from ..run import ROOT
from . import comfyui

PARTS = ("numbers", "kernels", "calls", "vae", "small", "profile", "training", "loop")
KINDS = ("eager", "compiled", "fp8", "fp8 compiled")
log = logging.getLogger(__name__)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, help=f"of {', '.join(PARTS)}; default: all, in this order")
    parser.add_argument("--output", type=Path, default=ROOT / "gpu_output", help="folder for the results")
    parser.add_argument("--rehearse", action="store_true", help="small models, on the CPU where there is no GPU")
    parser.add_argument(
        "--seconds", type=float, default=math.inf, help="start no part after this time (default: no limit)"
    )
    parser.add_argument("--loops", nargs="*", default=KINDS, help="kinds of whole runs")
    return parser.parse_args()


class Writer:
    """Writes a part's JSON file, again and again; what was found stays in it when an error follows."""

    def __init__(self, file: Path, about: dict):
        self.file, self.about, self.begun, self.result = file, about, time.monotonic(), {}

    def __call__(self, result: dict | None = None, **more: str) -> None:
        self.result.update(result or {})
        took = round(time.monotonic() - self.begun, 1)
        whole = {**self.about, "took": took, "result": self.result, **more}
        self.file.write_text(json.dumps(whole, indent=1) + "\n")


def run_part(name: str, scale, folder: Path, args, write) -> dict:
    """Import and run one part; ``write`` takes what there is of its result."""
    from cogvideox_fun.benchmarks.gpu import kernels, models, parts, training

    def path() -> Path:
        file = folder / "5B.safetensors"
        return file if file.exists() else models.write_transformer(scale, "5B", folder)

    return {
        "numbers": lambda: parts.numbers(scale),
        "kernels": lambda: kernels.measure(scale, write),
        "calls": lambda: parts.calls(scale, folder, write),
        "vae": lambda: parts.whole_vae(scale, folder, write),
        "small": lambda: parts.small(scale, path(), write),
        "profile": lambda: parts.profile(scale, path(), folder),
        "loop": lambda: parts.loop(scale, path(), tuple(args.loops), write),
        "training": lambda: training.training(scale, write),
    }[name]()


def main() -> None:
    begun = time.monotonic()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)d %(name)s: %(message)s", stream=sys.stdout)
    args = parse_args()
    if not args.rehearse and not comfyui.has_gpu():
        log.warning("nothing was measured: this machine has no NVIDIA GPU; --rehearse runs small models on the CPU")
        return
    comfyui.start()
    import comfy.memory_management
    import torch
    from cogvideox_fun.benchmarks.gpu import models
    from comfy.model_management import get_torch_device

    device = get_torch_device()
    scale = (models.rehearsal if args.rehearse else models.real)(device)
    args.output.mkdir(parents=True, exist_ok=True)
    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    about = {"device": name, "torch": torch.__version__, "rehearsal": args.rehearse}
    about["dynamic VRAM"] = comfy.memory_management.aimdo_enabled

    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts:
            if time.monotonic() - begun > args.seconds:
                log.warning("%s was not started: it is later than %.0f seconds", part, args.seconds)
                continue
            started = time.monotonic()
            write = Writer(args.output / f"{part}.json", about)
            try:
                write(run_part(part, scale, Path(folder), args, write))
            except Exception as error:  # the next part may still run
                log.exception("%s failed", part)
                reason = traceback.format_exception_only(error)[-1].splitlines()[0]
                write(error=traceback.format_exc(), reason=reason)
                failed.append(part)
            log.info("%s took %.0f s", part, time.monotonic() - started)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; the errors are in the JSON files in {args.output}")


if __name__ == "__main__":
    main()

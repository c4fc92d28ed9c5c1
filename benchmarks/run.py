"""Measure speed and memory beside diffusers and ComfyUI's own model, and write docs/performance.md (make bench).

  page          write docs/performance.md again from the last results, benchmarks/results.json
  cached        print the speed of training from clips and from encoded clips
  paper         write docs/cost.md: what a video costs at least, computed and not measured

The commands load and comfyui are for processes that this command starts.
"""

import argparse
import json
import logging
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pack import ROOT, load_pack  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("page", help="write docs/performance.md again from the last results")
    commands.add_parser("paper", help="write docs/cost.md")
    cached = commands.add_parser("cached", help="measure training from clips and from encoded clips")
    cached.add_argument("config", type=Path, nargs="?", default=ROOT / "training" / "configs" / "nano_lora.toml")
    cached.add_argument("--model", type=Path, default=ROOT / "models" / "nano", help="a model folder")
    cached.add_argument("--steps", type=int, default=20, help="of each of three rounds")
    cached.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="processes that read clips")
    cached.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    load = commands.add_parser("load", help="load one model folder and print what it took, as JSON")
    load.add_argument("folder", type=Path)
    load.add_argument("dtype")
    comfyui = commands.add_parser("comfyui", help="measure inside the ComfyUI at PATH, and print it as JSON")
    comfyui.add_argument("path", type=Path)
    return parser.parse_args()


def main() -> None:
    load_pack()
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.command == "load":
        import torch
        from cogvideox_fun.benchmarks import timed

        sys.stdout.write(json.dumps(timed.measure_loading(args.folder, getattr(torch, args.dtype))))
    elif args.command == "comfyui":
        from cogvideox_fun.benchmarks import in_comfyui

        sys.stdout.write(json.dumps(in_comfyui.measure(args.path)) + "\n")
    elif args.command == "cached":
        from cogvideox_fun.benchmarks.cached import measure
        from cogvideox_fun.training.loop.config import read_phase

        phase = read_phase(args.config, model=str(args.model.resolve()))
        sys.stdout.write(measure(phase, tuple(args.workers), args.steps, args.cpu))
    elif args.command == "paper":
        from cogvideox_fun.benchmarks import paper

        (ROOT / "docs" / "cost.md").write_text(paper.page(), encoding="utf-8")
    else:
        from cogvideox_fun.benchmarks import performance

        if args.command is None:
            performance.save(performance.measure())
        performance.write(ROOT / "docs", json.loads(performance.RESULTS.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()

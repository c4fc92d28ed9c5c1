"""Measure speed and memory beside diffusers, as make bench does: a table, JSON and a picture in bench_output.

Timings are interleaved in one process: medians of the pairs' ratios, on one thread and on two. Bytes are traced on
meta tensors and exact.
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
    parser.add_argument("--output", type=Path, default=ROOT / "bench_output", help="folder for the results")
    commands.add_parser("paper", help="print what a step costs on paper, and what each card could do at best")
    load = commands.add_parser("load", help="load one model folder and print what it took, as JSON")
    load.add_argument("folder", type=Path)
    load.add_argument("dtype")
    host = commands.add_parser("host", help="measure inside a ComfyUI, run with its Python, and print it as JSON")
    host.add_argument("path", type=Path)
    return parser.parse_args()


def main() -> None:
    load_pack()
    args = parse_args()
    if args.command == "load":
        import torch
        from cogvideox_fun.benchmarks.loading import measure

        sys.stdout.write(json.dumps(measure(args.folder, getattr(torch, args.dtype))))
        return
    if args.command == "host":
        from cogvideox_fun.benchmarks import in_host

        sys.stdout.write(json.dumps(in_host.measure(args.path)) + "\n")
        return
    if args.command == "paper":
        from cogvideox_fun.benchmarks import paper

        sys.stdout.write(paper.tables())
        return
    from cogvideox_fun.benchmarks import table

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rows, curve = table.measure_all()
    table.write(args.output, rows, curve)
    sys.stdout.write(table.markdown(rows) + f"written to {args.output}: bench.md, bench.json and bench.png\n")


if __name__ == "__main__":
    main()

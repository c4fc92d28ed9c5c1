"""Train CogVideoX-Fun models by token length.

  init FOLDER       write the untrained nano model
  train CONFIG      run one phase, as a TOML file says; taken up again where it was broken off
  export FOLDER     store a trained model folder in float16
  curves FOLDER     draw the loss tables of a folder as one picture
  evaluate          measure what a model can do on held-out scenes
  positions CONFIG  train a phase with each position table, and measure each

Under accelerate, in one process or several, on one machine or several:

  accelerate launch training/run.py train training/configs/nano_lora.toml
"""

import argparse
import importlib.util
import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ALIAS = "cogvideox_fun"


def load_pack():
    """Import the repository's root as a package, without putting it on sys.path."""
    spec = importlib.util.spec_from_file_location(ALIAS, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[ALIAS] = module
    spec.loader.exec_module(module)


def parse_args() -> argparse.Namespace:
    from cogvideox_fun.training.evaluation.evaluate import ROWS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    init = commands.add_parser("init", help="write the untrained nano model")
    init.add_argument("folder", type=Path, help="where to")
    init.add_argument("--seed", type=int, default=0)
    train = commands.add_parser("train", help="run one phase")
    train.add_argument("config", type=Path, help="a TOML file; its fields are those of training/config.py")
    train.add_argument("--model", help="start from this folder instead of the configuration's")
    train.add_argument("--output", help="write to this folder instead of the configuration's")
    train.add_argument("--steps", type=int, help="of the whole phase, instead of the configuration's")
    train.add_argument("--until", type=int, help="stop after this step, to go on later")
    train.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    export = commands.add_parser("export", help="store a trained model folder in float16")
    export.add_argument("folder", type=Path, help="the folder to read")
    export.add_argument("output", type=Path, help="the folder to write")
    curves = commands.add_parser("curves", help="draw the loss tables of a folder as one picture")
    curves.add_argument("folder", type=Path, help="holds <phase>.csv; losses.png goes there, too")
    measure = commands.add_parser("evaluate", help="measure what a model can do on held-out scenes")
    measure.add_argument("--model", type=Path, default=ROOT / "models" / "nano", help="a model folder")
    measure.add_argument("--lora", type=Path, default=ROOT / "models" / "nano" / "lora" / "ring.safetensors")
    measure.add_argument("--output", type=Path, default=ROOT / "evaluation_output", help="folder for the results")
    measure.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which rows (default: all)")
    measure.add_argument("--count", type=int, default=64, help="clips in a row")
    measure.add_argument("--size", type=int, default=128, help="pixels, in rows that do not name their sizes")
    measure.add_argument("--steps", type=int, default=20)
    measure.add_argument("--cfg", type=float, default=4.0)
    tables = commands.add_parser("positions", help="train a phase with each position table, and measure each")
    tables.add_argument("config", type=Path, help="a TOML file; its output gets a folder for every table")
    tables.add_argument("output", type=Path, help="folder for the losses and the results")
    tables.add_argument("--count", type=int, default=64, help="clips in a row")
    return parser.parse_args()


def main() -> None:
    load_pack()
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    COMMANDS[args.command](args)


def init(args) -> None:
    from cogvideox_fun.training.nano import write_untrained

    write_untrained(args.folder, args.seed)


def train(args) -> None:
    from cogvideox_fun.training.config import read_phase
    from cogvideox_fun.training.phase import run_phase

    changes = {name: getattr(args, name) for name in ("model", "output", "steps") if getattr(args, name) is not None}
    run_phase(read_phase(args.config, **changes), args.until, args.cpu)


def export(args) -> None:
    from cogvideox_fun.training.parts import export_half

    export_half(args.folder, args.output)


def curves(args) -> None:
    from cogvideox_fun.training.progress import plot_losses, read_losses

    plot_losses(
        args.folder / "losses.png", {path.stem: read_losses(path) for path in sorted(args.folder.glob("*.csv"))}
    )


def evaluate(args) -> None:
    from cogvideox_fun.training.evaluation import evaluate, report, rows

    options = rows.Options(args.count, args.size, args.steps, args.cfg)
    results = evaluate.evaluate(
        args.model, args.lora if args.lora.is_file() else None, args.rows, options, args.output
    )
    print(report.markdown(results))
    print(f"written to {args.output}: evaluation.md, evaluation.json and evaluation.jpg")


def positions(args) -> None:
    from cogvideox_fun.training.config import read_phase
    from cogvideox_fun.training.evaluation import evaluate, positions, rows

    options = rows.Options(args.count)
    print(positions.compare_positions(read_phase(args.config), evaluate.POSITION_SIZES, options, args.output))


COMMANDS = {
    "init": init,
    "train": train,
    "export": export,
    "curves": curves,
    "evaluate": evaluate,
    "positions": positions,
}


if __name__ == "__main__":
    main()

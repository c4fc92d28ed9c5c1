"""Train CogVideoX-Fun models by token length.

  nano FOLDER       train the nano model from nothing, all phases in order, and store it in a folder
  init FOLDER       write the untrained nano model
  train CONFIG      run one phase of a TOML file; an interrupted run continues
  export FOLDER     store a trained model folder in float16, or the newest checkpoint of a run
  evaluate          measure what a model can do on held-out scenes
  positions CONFIG  train a phase with each position table, and measure each

With accelerate in several processes or on several machines:

  accelerate launch training/run.py train training/configs/nano_lora.toml
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pack import ROOT, load_pack  # noqa: E402


def parse_args() -> argparse.Namespace:
    from cogvideox_fun.training.evaluation.evaluate import ROWS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    whole = commands.add_parser("nano", help="train the nano model from nothing, and store it")
    whole.add_argument("output", type=Path, help="where to store it, in float16")
    init = commands.add_parser("init", help="write the untrained nano model")
    init.add_argument("folder", type=Path, help="where to")
    init.add_argument("--seed", type=int, default=0)
    train = commands.add_parser("train", help="run one phase")
    train.add_argument("config", type=Path, help="a TOML file; its fields are those of training/loop/config.py")
    train.add_argument("--model", type=Path, help="start from this folder instead of the configuration's")
    train.add_argument("--output", type=Path, help="write to this folder instead of the configuration's")
    train.add_argument("--steps", type=int, help="of the whole phase, instead of the configuration's")
    train.add_argument("--until", type=int, help="stop after this step, to continue later")
    train.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    export = commands.add_parser("export", help="store a trained model or the newest checkpoint of a run")
    export.add_argument("folder", type=Path, help="a model folder, stored in float16, or the output of a run")
    export.add_argument("output", type=Path, help="the folder to write")
    measure = commands.add_parser("evaluate", help="measure what a model can do on held-out scenes")
    measure.add_argument("--model", type=Path, default=ROOT / "models" / "nano", help="a model folder")
    measure.add_argument("--lora", type=Path, help="for the row lora (default: the nano model's own)")
    measure.add_argument("--output", type=Path, default=ROOT / "evaluation_output", help="folder for the results")
    measure.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which rows (default: all)")
    measure.add_argument("--count", type=int, default=64, help="clips in a row")
    measure.add_argument("--size", type=int, default=128, help="pixels, in rows that do not name their sizes")
    measure.add_argument("--steps", type=int, default=20)
    measure.add_argument("--cfg", type=float, default=2.0)
    tables = commands.add_parser("positions", help="train a phase with each position table, and measure each")
    tables.add_argument("config", type=Path, help="a TOML file; its output gets a folder for every table")
    tables.add_argument("output", type=Path, help="folder for the losses and the results")
    tables.add_argument("--count", type=int, default=64, help="clips in a row")
    return parser.parse_args()


def main() -> None:
    load_pack()
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    COMMANDS[args.command](args)


def nano(args) -> None:
    from cogvideox_fun.training.nano.make import train_nano

    train_nano(args.output)


def init(args) -> None:
    from cogvideox_fun.training.nano.make import write_untrained

    write_untrained(args.folder, args.seed)


def train(args) -> None:
    from cogvideox_fun.training.loop.config import read_phase
    from cogvideox_fun.training.loop.phase import processes, run_phase

    changes = {name: str(getattr(args, name).resolve()) for name in ("model", "output") if getattr(args, name)}
    if args.steps is not None:
        changes["steps"] = args.steps
    phase = read_phase(args.config, **changes)
    with processes(args.cpu):
        run_phase(phase, args.cpu, args.until)


def export(args) -> None:
    from cogvideox_fun.training.loop.phase import export_run
    from cogvideox_fun.training.tasks.parts import export_half

    if (args.folder / "run").is_dir():
        export_run(args.folder, args.output)
    else:
        export_half(args.folder, args.output)


def evaluate(args) -> None:
    from cogvideox_fun.training.evaluation import evaluate, report, rows

    options = rows.Options(args.count, args.size, args.steps, args.cfg)
    own = args.model / "lora" / "ring.safetensors"
    lora = args.lora or (own if own.is_file() else None)
    print(report.markdown(evaluate.evaluate(args.model, lora, args.rows, options, args.output)))
    print(f"written to {args.output}: the table as evaluation.md, .json and .png, and clips as evaluation.jpg")


def positions(args) -> None:
    from cogvideox_fun.training.evaluation import evaluate, positions, rows
    from cogvideox_fun.training.loop.config import read_phase
    from cogvideox_fun.training.loop.phase import processes

    options = rows.Options(args.count)
    phase = read_phase(args.config)
    with processes() as state:
        if state.num_processes > 1:
            raise SystemExit("positions runs in one process: call it without accelerate launch")
        print(positions.compare_positions(phase, evaluate.POSITION_SIZES, options, args.output))


COMMANDS = {
    "nano": nano,
    "init": init,
    "train": train,
    "export": export,
    "evaluate": evaluate,
    "positions": positions,
}


if __name__ == "__main__":
    main()

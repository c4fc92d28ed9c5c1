"""Train CogVideoX-Fun models by token length.

  nano FOLDER       train the nano model from nothing, all phases in order, and store it in a folder
  encode CONFIG     encode the clips of a phase once, to train from them
  init FOLDER       start an InP or Control model from a text model
  init-nano FOLDER  write the untrained nano model
  plan CONFIG...    what phases need: memory, operations, hours and disk, without a GPU and without the model
  train CONFIG      run one phase of a TOML file; an interrupted run continues
  export FOLDER     store a trained model folder in float16, or the newest checkpoint of a run
  average FOLDER... store the mean of several models that were trained on from the same one
  manifest FOLDER   list and measure the clips of a large data set once
  evaluate          measure what a model can do on held-out scenes
  drift             measure how colours and sharpness drift in a long video, with the nano model
  positions OUTPUT  train from one size to others with both position tables, and measure each

With accelerate in several processes or on several machines:

  accelerate launch training/run.py train training/configs/nano_lora.toml
"""

import argparse
import dataclasses
import logging
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tools"))
from pack import ROOT, load_pack  # noqa: E402

load_pack()  # not in main: a worker process that starts anew imports this file before anything else


def positive(text: str) -> int:
    """A whole number from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}, expected a whole number from 1")
    return int(text)


def pixels(text: str) -> int:
    """A width and height that models take."""
    if positive(text) % 16:
        raise argparse.ArgumentTypeError(f"{text}, expected a multiple of 16")
    return int(text)


def share(text: str) -> float:
    """A number above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text}, expected more than 0 and at most 1")
    return value


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        # training
        add_nano, add_init, add_plan, add_train, add_encode, add_export, add_average, add_manifest,
        # measuring
        add_evaluate, add_drift, add_positions,
    ):  # fmt: skip
        add(commands)
    return parser.parse_args()


def add_nano(commands) -> None:
    from cogvideox_fun.training.nano.make import PHASES

    whole = commands.add_parser("nano", help="train the nano model from nothing, and store it")
    whole.add_argument("output", type=Path, help="where to store it, in float16")
    whole.add_argument("--minutes", type=float, default=0.0, help="choose each phase's steps to take this time in all")
    whole.add_argument("--from", dest="source", type=Path, help="a model folder for the first phase to start from")
    whole.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES, help="some of them, in order")


def add_init(commands) -> None:
    init = commands.add_parser("init", help="start an InP or Control model from a text model")
    init.add_argument("folder", type=Path, help="where to")
    init.add_argument("--from", dest="source", type=Path, required=True, help="the folder of a text or InP model")
    init.add_argument(
        "--to", choices=["inpaint", "control"], default="inpaint", help="what to make (default: inpaint)"
    )
    init.add_argument(
        "--reference-noise", action="store_true", help="noise on known pixels, as V1.1's InP models have"
    )
    untrained = commands.add_parser("init-nano", help="write the untrained nano model")
    untrained.add_argument("folder", type=Path, help="where to")
    untrained.add_argument("--seed", type=int, default=0)


def add_train(commands) -> None:
    train = commands.add_parser("train", help="run one phase")
    train.add_argument("config", type=Path, help="a TOML file; its fields are those of training/loop/config.py")
    train.add_argument("--model", type=Path, help="start from this folder instead of the configuration's")
    train.add_argument("--output", type=Path, help="write to this folder instead of the configuration's")
    train.add_argument("--steps", type=positive, help="of the whole phase, instead of the configuration's")
    train.add_argument("--until", type=positive, help="stop after this step, to continue later")
    train.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")


def add_encode(commands) -> None:
    encode = commands.add_parser("encode", help="encode the clips of a phase once; an interrupted run continues")
    encode.add_argument("config", type=Path, help="a TOML file, as for train")
    encode.add_argument("--output", type=Path, required=True, help="the folder to write: the cache in [data]")
    encode.add_argument("--model", type=Path, help="encode with this folder's VAE and T5, not the configuration's")
    encode.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of what is stored")
    encode.add_argument("--shard-size", type=positive, default=256, help="the most clips in a file")
    encode.add_argument("--together", type=positive, default=1, help="clips of one size that are encoded at once")
    encode.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")
    amount = encode.add_mutually_exclusive_group(required=True)
    amount.add_argument("--count", type=positive, help="how many clips to encode")
    amount.add_argument("--epochs", type=positive, help="how many passes over all clips, each with masks of its own")


def add_export(commands) -> None:
    export = commands.add_parser("export", help="store a trained model or the newest checkpoint of a run")
    export.add_argument("folder", type=Path, help="a model folder, stored in float16, or the output of a run")
    export.add_argument("output", type=Path, help="the folder to write")
    export.add_argument(
        "--base",
        type=Path,
        help="of a LoRA's run: write a model folder that adds the LoRA to the model in this folder",
    )
    export.add_argument("--rank", type=positive, default=0, help="of a LoRA's run: store it with at most this rank")


def add_average(commands) -> None:
    average = commands.add_parser("average", help="store the mean of several models, in float16")
    average.add_argument("folders", type=Path, nargs="+", help="model folders; other parts are the first's")
    average.add_argument("--output", type=Path, required=True, help="the folder to write")


def add_manifest(commands) -> None:
    listed = commands.add_parser("manifest", help="list and measure the clips in folders once, for [data] manifest")
    listed.add_argument("folders", type=Path, nargs="+", help="of videos with captions, in any depth")
    listed.add_argument("--output", type=Path, required=True, help="a .jsonl file; clips that it has stay as they are")
    listed.add_argument("--workers", type=positive, help="processes (default: one for each CPU core)")
    listed.add_argument("--control", default="", help='what control videos add to a clip\'s name, such as "_depth"')


def add_evaluate(commands) -> None:
    from cogvideox_fun.training.evaluation.evaluate import ROWS

    measure = commands.add_parser("evaluate", help="measure what a model can do on held-out scenes")
    measure.add_argument("--model", type=Path, default=ROOT / "models" / "nano", help="a model folder")
    measure.add_argument("--lora", type=Path, help="for the row lora (default: the nano model's own)")
    measure.add_argument("--add-lora", type=Path, help="a LoRA to add to the model in all rows but control")
    measure.add_argument("--control", type=Path, help="for the row control (default: the nano model's own)")
    measure.add_argument("--output", type=Path, default=ROOT / "evaluation_output", help="folder for the results")
    measure.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), help="which rows (default: all)")
    measure.add_argument("--count", type=positive, default=64, help="clips in a row")
    measure.add_argument(
        "--goals",
        action="store_true",
        help="in the rows vae, start_end and control, only the clips that have goals",
    )
    measure.add_argument("--size", type=pixels, default=128, help="pixels, in rows that do not name their sizes")
    measure.add_argument("--steps", type=positive, default=20)
    measure.add_argument("--cfg", type=float, default=2.0)
    measure.add_argument(
        "--spacing",
        choices=["auto", "trailing", "linspace", "leading"],
        default="auto",
        help="trailing for a LoRA for few steps",
    )
    measure.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")


def add_drift(commands) -> None:
    drift = commands.add_parser("drift", help="measure how colours and sharpness drift in a long video")
    drift.add_argument("--seconds", type=float, default=600.0, help="of each video (default: ten minutes)")
    drift.add_argument("--model", type=Path, default=ROOT / "models" / "nano", help="the folder of an InP model")
    drift.add_argument("--output", type=Path, default=ROOT / "evaluation_output", help="folder for the results")
    drift.add_argument("--count", type=positive, default=1, help="scenes")
    drift.add_argument(
        "--methods",
        nargs="+",
        choices=("chain", "overlap", "matched"),
        default=["chain", "overlap", "matched"],
        help="plain chain, with overlap, and matched to the first round as Long Video does (default: all)",
    )
    drift.add_argument("--overlap", type=positive, default=9, help="frames, of all methods but the plain chain")
    drift.add_argument("--steps", type=positive, default=20)
    drift.add_argument("--cfg", type=float, default=2.0)
    drift.add_argument("--cpu", action="store_true", help="use the CPU even where there is a GPU")


def add_positions(commands) -> None:
    tables = commands.add_parser("positions", help="compare position tables, from training to held-out clips")
    tables.add_argument("output", type=Path, help="folder for the losses and the results")
    tables.add_argument("--count", type=positive, default=64, help="held-out clips of each of the four sizes")
    tables.add_argument("--seeds", type=int, nargs="+", default=[42, 43, 44])


def add_plan(commands) -> None:
    from cogvideox_fun.training.planning.plan import GPUS

    plan = commands.add_parser("plan", help="what phases need, without a GPU and without the model")
    plan.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="TOML files of phases")
    plan.add_argument("--gpus", type=positive, default=1, help="GPUs that train together (default: 1)")
    plan.add_argument("--gpu", choices=list(GPUS), default="h100", help="their kind (default: h100)")
    plan.add_argument("--utilisation", type=share, default=0.3, help="of the GPU's dense bf16 rate (default: 0.3)")
    plan.add_argument(
        "--clips", type=positive, default=1_200_000, help="clips whose latents are cached (default: 1.2 million)"
    )
    plan.add_argument("--output", type=Path, help="also write the plan to this file")


def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    logging.getLogger("accelerate").setLevel(logging.WARNING)
    from cogvideox_fun.model_loading.errors import CheckpointError
    from cogvideox_fun.training.loop.config import ConfigError

    try:
        COMMANDS[args.command](args)
    except (CheckpointError, ConfigError) as error:  # of the user's files: where the code raised it tells nothing more
        raise SystemExit(f"ERROR {error}") from None
    except (ValueError, OSError) as error:
        if args.command in ("train", "nano", "positions"):  # they train: the traceback may show a bug
            raise
        raise SystemExit(f"ERROR {error}") from None


def nano(args) -> None:
    from cogvideox_fun.training.nano.make import train_nano

    train_nano(args.output, args.phases, args.source, args.minutes)


def init(args) -> None:
    from cogvideox_fun.training.tasks.start import start_model

    start_model(args.source, args.folder, args.to, args.reference_noise)


def init_nano(args) -> None:
    from cogvideox_fun.training.nano.make import write_untrained

    write_untrained(args.folder, args.seed)


def plan(args) -> None:
    from cogvideox_fun.training.loop.config import read_phase
    from cogvideox_fun.training.planning.plan import Setup
    from cogvideox_fun.training.planning.report import report

    phases = {path.stem: read_phase(path) for path in args.configs}
    text = report(phases, Setup(args.gpu, args.gpus, args.utilisation, args.clips))
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")


def train(args) -> None:
    from cogvideox_fun.training.loop.breaks import explained
    from cogvideox_fun.training.loop.config import read_phase
    from cogvideox_fun.training.loop.phase import processes, run_phase

    changes = {name: str(getattr(args, name).resolve()) for name in ("model", "output") if getattr(args, name)}
    if args.steps is not None:
        changes["steps"] = args.steps
    phase = read_phase(args.config, **changes)
    with processes(args.cpu) as state, explained(phase, state.is_main_process):
        run_phase(phase, args.cpu, args.until)


def encode(args) -> None:
    from cogvideox_fun.training.loop.config import read_phase
    from cogvideox_fun.training.loop.encode import Amount, Encoding
    from cogvideox_fun.training.loop.phase import processes

    phase = read_phase(args.config, **({"model": str(args.model.resolve())} if args.model else {}))
    with processes(args.cpu) as state:
        amount = Amount(args.count or 0, args.epochs or 0)
        Encoding(phase, args.output, amount, state, args.dtype, args.shard_size, args.together).run()


def export(args) -> None:
    from cogvideox_fun.training.loop.phase import export_run
    from cogvideox_fun.training.tasks.parts import export_half

    if (args.folder / "run").is_dir():
        export_run(args.folder, args.output, args.base, args.rank)
    elif args.base or args.rank:
        raise SystemExit(f"ERROR {args.folder} has no run: --base and --rank are for the output of a LoRA's run")
    else:
        export_half(args.folder, args.output)


def average(args) -> None:
    from cogvideox_fun.training.tasks.parts import average_models

    average_models(args.folders, args.output)


def manifest(args) -> None:
    from cogvideox_fun.training.data.manifest import write_manifest

    added, left_out = write_manifest(args.folders, args.output, args.workers, args.control)
    print(f"{args.output}: {added} clips added, {left_out} left out" + (" (see above)" if left_out else ""))


def device_of(args) -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and not args.cpu else "cpu"


def evaluate(args) -> None:
    from cogvideox_fun.training.evaluation import evaluate, generate, report

    options = generate.Options(args.count, args.size, args.steps, args.cfg, args.spacing, args.goals)
    own_lora, own_control = args.model / "lora" / "ring.safetensors", args.model / "control"
    lora = args.lora or (own_lora if own_lora.is_file() else None)
    control = args.control or (own_control if own_control.is_dir() else None)
    if args.rows == ["control"] and control is None:
        raise SystemExit(f"ERROR {args.model} has no folder control: give a Control model's with --control")
    what, how = (args.model, lora, control, args.rows), (options, args.output, device_of(args), args.add_lora)
    print(report.markdown(evaluate.evaluate(*what, *how)))
    print(f"written to {args.output}: the table as evaluation.md, .json and .png, twelve clips as evaluation.jpg")


def drift(args) -> None:
    from cogvideox_fun.model_loading.standalone import Pipeline
    from cogvideox_fun.sampling.geometry import FRAMES_PER_SECOND
    from cogvideox_fun.training.evaluation.drift import compare_drift, methods_of, rounds_of
    from cogvideox_fun.training.evaluation.generate import Evaluation, Options
    from tqdm import tqdm

    pipeline = Pipeline.from_folder(args.model).to(device_of(args))
    options = Options(args.count, steps=args.steps, cfg=args.cfg)
    methods = [methods_of(args.overlap)[name] for name in args.methods]
    try:
        rounds = args.count * rounds_of(round(args.seconds * FRAMES_PER_SECOND), methods)
    except ValueError as error:
        raise SystemExit(f"ERROR --seconds {args.seconds:g} --overlap {args.overlap}: {error}") from None
    with tqdm(total=rounds, unit="round") as bar:
        print(compare_drift(Evaluation(pipeline, options, bar.update), args.seconds, args.output, methods))
    print(f"written to {args.output}: the table as drift.md and .json, frames as drift.jpg")


def positions(args) -> None:
    from cogvideox_fun.training.evaluation.generate import Options
    from cogvideox_fun.training.evaluation.positions import CACHED, compare_positions
    from cogvideox_fun.training.loop.config import read_phase
    from cogvideox_fun.training.loop.encode import Amount, Encoding
    from cogvideox_fun.training.loop.phase import processes, run_phase
    from cogvideox_fun.training.nano.make import CONFIGS, write_small

    first, second = (read_phase(CONFIGS / f"positions_{name}.toml") for name in ("64", "larger"))
    with processes() as state:
        if state.num_processes > 1:
            raise SystemExit("positions runs in one process: call it without accelerate launch")
        write_small(first.model, ROOT / "models" / "nano")
        same = dataclasses.replace(second, model=first.model)  # its VAE and T5
        Encoding(same, second.data.cache, Amount(CACHED), state).run()
        run_phase(first)
        print(compare_positions(second, args.seeds, Options(args.count, steps=10), args.output))


COMMANDS = {
    "nano": nano,
    "init": init,
    "encode": encode,
    "init-nano": init_nano,
    "plan": plan,
    "train": train,
    "export": export,
    "average": average,
    "manifest": manifest,
    "evaluate": evaluate,
    "drift": drift,
    "positions": positions,
}


if __name__ == "__main__":
    main()

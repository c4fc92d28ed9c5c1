"""Write what `run` measured as a page: ``python -m benchmarks.gpu.table FOLDER > docs/gpu.md``.

FOLDER holds the JSON files of a run. Those of docs/gpu.md are in benchmarks/gpu/results.
"""

import json
import sys
from functools import partial
from pathlib import Path

HEAD = """# Measured on a GPU

{device}, PyTorch {torch}, ComfyUI 0.33.0{dynamic}.

The models have their real size and random weights. Videos have 480 x 720 pixels and 49 frames unless a row says
otherwise. GB are 1e9 bytes. `make gpu` measured the files in `benchmarks/gpu/results`, and
`python -m benchmarks.gpu.table benchmarks/gpu/results > docs/gpu.md` writes this page from them.
"""


def read(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def rows(header: tuple[str, ...], lines: list[tuple]) -> str:
    every = [header, ("---",) * len(header), *lines]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in every)


def gb(value: float) -> str:
    return f"{value / 1e9:.2f}"


def runs(result: dict) -> str:
    lines = [
        (name, f"{value['seconds']:.1f}", f"{value['seconds'] / result['steps']:.2f}")
        for name, value in result.items()
        if isinstance(value, dict)
    ]
    return f"## {result['steps']} steps of the 5B, with guidance\n\n" + rows(("run", "seconds", "a step"), lines)


def calls(title: str, places: int, result: dict) -> str:
    lines = []
    for name, value in result.items():
        if isinstance(value, dict):
            ratio = f"{value['peak'] / value['declared']:.2f}" if "declared" in value else ""
            lines.append((name, f"{value['seconds']:.{places}f}", gb(value["peak"]), ratio))
    note = "Peak GB do not count the weights. The last column compares them with what ComfyUI is told.\n\n"
    return f"## {title}\n\n{note}" + rows(("", "seconds", "peak GB", "peak over declared"), lines)


def small(result: dict) -> str:
    lines = [
        (name, f"{value['seconds']:.2f}", gb(value["uploaded"])) if "seconds" in value else (name, value["error"], "")
        for name, value in result.items()
    ]
    return "## With less VRAM: one call of one prompt\n\n" + rows(("free VRAM", "seconds", "GB uploaded"), lines)


def profile(result: dict) -> str:
    text = "## Where the time goes\n\n"
    for name, found in result.items():
        title = {"call": "A guided call of the 5B", "decode": "Decoding"}[name]
        kinds = [
            (kind, f"{value['milliseconds']:.0f}", f"{100 * value['share']:.0f} %", value["launches"])
            for kind, value in found["kinds"].items()
        ]
        longest = [
            (f"`{kernel['kernel'][:90]}`", f"{kernel['milliseconds']:.1f}", kernel["launches"])
            for kernel in found["longest"]
            if kernel["milliseconds"] >= 0.5
        ]
        text += f"{title}, {found['milliseconds']:.0f} ms:\n\n" + rows(("", "ms", "share", "launches"), kinds) + "\n"
        text += rows(("kernel", "ms", "launches"), longest) + "\n"
    return text.rstrip() + "\n"


def kernels(result: dict) -> str:
    lines = [("copy on the device", f"{1e3 * result['copy']['seconds']:.2f}", f"{result['copy']['TB/s']:.2f} TB/s")]
    for group in ("products", "attention", "elementwise"):
        for name, value in result.get(group, {}).items():
            if "seconds" not in value:
                lines.append((name, "", value["error"][:80]))
                continue
            rate = f"{value['TFLOP/s']:.0f} TFLOP/s" if "TFLOP/s" in value else ""
            rate = f"{value['GB/s']:.0f} GB/s" if "GB/s" in value else rate
            lines.append((name, f"{1e3 * value['seconds']:.2f}", rate))
    text = f"## Single kernels, {result['tokens']} tokens\n\n"
    return text + rows(("", "ms", "rate"), lines)


def training(result: dict) -> str:
    lines = [
        (
            name,
            value["tokens"],
            f"{value['seconds']:.2f}",
            f"{value['tokens/s']:.0f}",
            gb(value["peak"]),
            gb(value["planned"]),
        )
        if "seconds" in value
        else (name, "", value["error"][:80], "", "", "")
        for name, value in result.items()
    ]
    note = "One clip, bfloat16 with float32 weights where they are trained. Peak GB count everything.\n\n"
    return f"## A step of training\n\n{note}" + rows(
        ("", "tokens", "seconds", "tokens/s", "peak GB", "planned GB"), lines
    )


def numbers(result: dict) -> str:
    lines = [(name, *(f"{value:.1e}" for value in found.values())) for name, found in result["calls"].items()]
    header = ("model", *next(iter(result["calls"].values())))
    text = "## The numbers\n\nOne call of small models against the CPU in float32, |difference| / |expected|. "
    text += "PyTorch runs the convolution that\nembeds the patches of the 2B and the 5B in TF32, also in float32:\n\n"
    text += rows(header, lines)
    nano = [tuple(f"{value:.1f}" for value in result["nano"].values())]
    text += "\nPSNR in dB of the nano model's video to the one made on the CPU in float32, by weight_dtype:\n\n"
    return text + rows(tuple(result["nano"]), nano)


SECTIONS = {
    "loop": runs,
    "calls": partial(calls, "One call", 3),
    "vae": partial(calls, "The VAE", 2),
    "small": small,
    "profile": profile,
    "kernels": kernels,
    "training": training,
    "numbers": numbers,
}


def section(name: str, part: dict) -> str:
    """What a part measured; of one that failed, what it measured before, and why."""
    make, result = SECTIONS[name], part["result"]
    if "error" not in part:
        return make(result)
    try:
        text = make(result)
    except KeyError:  # it failed before its first figure
        text = f"## {name}\n"
    return f"{text}\nThis part failed: `{part['reason']}`\n"


def page(folder: Path) -> str:
    """The page of a folder of results; parts that were not measured are left out."""
    found = read(folder)
    about = next(iter(found.values()))
    dynamic = " with dynamic VRAM" if about["dynamic VRAM"] else ""
    parts = [HEAD.format(device=about["device"], torch=about["torch"], dynamic=dynamic)]
    return "\n".join([*parts, *(section(name, found[name]) for name in SECTIONS if name in found)])


if __name__ == "__main__":
    sys.stdout.write(page(Path(sys.argv[1])))

"""The rows of make bench, and the page docs/performance.md, which they are written to."""

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ..model_loading.networks.vae import VAEConfig
from ..tools.pack import ROOT
from . import in_comfyui, timed, traced

log = logging.getLogger(__name__)

RESULTS = ROOT / "benchmarks" / "results.json"
CURVE = [(3, 60, 60), (7, 60, 90), (13, 60, 90), (13, 90, 90), (13, 128, 128)]  # latents of 3,000 to 53,000 tokens
PAGE = ROOT / "benchmarks" / "performance.md"


@dataclasses.dataclass(frozen=True)
class Row:
    what: str
    ours: str
    diffusers: str = ""
    native: str = ""  # ComfyUI's own CogVideoX
    goal: str = ""
    reached: bool | None = None


def gigabytes(value: int) -> str:
    return f"{value / 1e9:.2f} GB"


def transformer_rows(native: dict) -> Iterator[Row]:
    goals = {("5B", "480x720x49"): 1.0, ("5B", "1024x1024x49"): 2.8}
    for name in traced.CONFIGS:
        for size, latent in traced.SIZES.items():
            ours = traced.trace_transformer(name, latent)
            both = traced.trace_transformer(name, latent, batch=2)
            goal = goals.get((name, size))
            yield Row(
                f"{name} activations, {size}, bf16",
                f"{gigabytes(ours)}; {gigabytes(both)} with guidance in one call",
                gigabytes(traced.trace(traced.diffusers_call(traced.CONFIGS[name], latent))),
                gigabytes(native[size]) if native and name == "5B" else "",
                f"at most {goal} GB" if goal else "",
                ours <= goal * 1e9 if goal else None,
            )


def vae_rows(native: dict) -> Iterator[Row]:
    latent = traced.SIZES["480x720x49"]
    whole, tiled = traced.trace_decode(latent), traced.trace_decode(latent, traced.TILE)
    growth = whole - traced.trace_decode((5, *latent[1:]))
    z = torch.empty(1, 16, *latent, **traced.META)
    decode = traced.diffusers_decoder(VAEConfig())
    peer = gigabytes(traced.trace(lambda: decode(z)))
    theirs = f"{gigabytes(native['decode'])}, in other chunks" if native else ""
    encode = traced.trace_encode(49, 480, 720)
    yield Row("VAE decode, 480x720x49, bf16", gigabytes(whole), peer, theirs, "at most 7.5 GB", whole <= 7.5e9)
    yield Row("VAE decode in tiles of 256 pixels", gigabytes(tiled), goal="at most 4 GB", reached=tiled <= 4e9)
    yield Row("VAE decode, 49 frames over 17", f"+{gigabytes(growth)}", goal="+0 GB", reached=growth == 0)
    yield Row("VAE encode, 480x720x49, bf16", gigabytes(encode))


def timed_rows(native: dict) -> Iterator[Row]:
    beside = [f"{ratio:.2f} on {count}" for count, ratio in native["call"].items()] if native else []
    what = "transformer call, float32, 8 heads, 6 layers, 13x32x32 latents"
    theirs = f"ours takes {on_threads(beside)} of its time" if beside else ""
    yield timed_row(what, timed.time_transformer, 0.92, theirs)
    yield timed_row("VAE decode, float32, 9 frames of 96x128, same chunks", timed.time_decode, 0.85, "")


def timed_row(what: str, measure: Callable[[], tuple[timed.Pairs, float]], goal: float, native: str) -> Row:
    """Time over diffusers' on one thread and on two; the goal holds for both."""
    found, peers, worst, difference = [], [], 0.0, 0.0
    for count in timed.THREADS:
        with timed.threads(count):
            pairs, off = measure()
        low, high = min(pairs.ratios), max(pairs.ratios)
        found.append(f"{pairs.ratio:.2f} ({low:.2f} to {high:.2f}) on {count}")
        peers.append(f"{pairs.theirs:.1f} s on {count}")
        worst, difference = max(worst, pairs.ratio), max(difference, off)
    return Row(
        what,
        f"{on_threads(found)} of diffusers' time, within {difference:.0e}",
        on_threads(peers),
        native,
        f"at most {goal}, within 1e-5",
        worst <= goal and difference <= 1e-5,
    )


def on_threads(values: list[str]) -> str:
    """Values on one thread and on two, as words."""
    return f"{' and '.join(values)} threads"


def loading_rows() -> Iterator[Row]:
    shares = {"as it is": 0.1, "cast to fp8": 0.3}
    ratios = {"as it is": 1.2}  # a cast computes every number
    for what, found in timed.loading_apart(traced.CONFIGS["2B"]).items():
        for name, value, places, goal in (
            ("anonymous memory over the file's size", found["anonymous"], 3, shares.get(what)),
            ("time over reading the mapped file", found["seconds"], 2, ratios.get(what)),
        ):
            limit, reached = ("", None) if goal is None else (f"at most {goal}", value <= goal)
            yield Row(f"loading a bf16 2B, {what}: {name}", f"{value:.{places}f}", goal=limit, reached=reached)


def number_rows(numbers: dict) -> Iterator[Row]:
    """The errors that the tests allow ours, and those of ComfyUI's own model."""
    opens = f"no: {numbers['opens']}" if numbers["opens"] else "yes"
    yield Row("opens the nano model, a 2B InP in hub layout", "yes", native=opens)
    for size in ("480x720", "512x512"):
        off = f"{numbers[f'rope {size}']:.0%} (RMS)"
        yield Row(f"5B rotary positions at {size}, error against VideoX-Fun", "within 1e-5", native=off)
    off = f"up to {numbers['sigmas']:.0%}"
    yield Row("2B noise levels, error against VideoX-Fun", "within 1e-5", native=off)


def measure() -> dict:
    """All rows, those of a ComfyUI if one is found, and traced bytes of a 5B call by tokens."""
    comfyui = in_comfyui.measured_apart() or {}
    if not comfyui:
        log.warning("no ComfyUI found: its own model and its loop are left out")
    native = comfyui.get("native", {})
    rows = [*timed_rows(native), *transformer_rows(native), *vae_rows(native), *loading_rows()]
    if native:
        rows += number_rows(native["numbers"])
    if "loop" in comfyui:
        cost, what = comfyui["loop"] - 1, "cogvideox_ddim over ComfyUI's Euler, 50 steps without a transformer"
        rows.append(Row(what, f"{cost:+.1%}", goal="at most +5%", reached=cost <= 0.05))
    curve = [(traced.tokens_of(latent), traced.trace_transformer("5B", latent)) for latent in CURVE]
    machine = {"cores": os.cpu_count(), "torch": torch.__version__.split("+")[0]}
    return {**machine, "rows": [dataclasses.asdict(row) for row in rows], "bytes by tokens": curve}


def markdown(rows: list[dict]) -> str:
    lines = ["| what | ours | diffusers | ComfyUI's own | goal | reached |", "|---|---|---|---|---|---|"]
    for row in rows:
        reached = {True: "yes", False: "no", None: ""}[row["reached"]]
        cells = *(row[name] for name in ("what", "ours", "diffusers", "native", "goal")), reached
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def write(docs: Path, results: dict) -> None:
    """Write the page and its picture."""
    (docs / "pictures").mkdir(parents=True, exist_ok=True)
    page = PAGE.read_text(encoding="utf-8").format(**results, table=markdown(results["rows"]))
    (docs / "performance.md").write_text(page, encoding="utf-8")
    plot(docs / "pictures" / "growth.png", results["bytes by tokens"])


def save(results: dict) -> None:
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def plot(path: Path, curve: list[tuple[int, int]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot([tokens for tokens, _ in curve], [size / 1e9 for _, size in curve], marker="o")
    axes.set(xlabel="tokens", ylabel="GB", title="Activations of one 5B call, bf16, traced", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)

"""The rows of make bench, each beside its peer and its goal, and the files that they are written to."""

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from . import in_host, loading, timed, traced

log = logging.getLogger(__name__)

CURVE = [(3, 60, 60), (7, 60, 90), (13, 60, 90), (13, 90, 90), (13, 128, 128)]  # latents of 3,000 to 53,000 tokens


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
            ours = traced.trace_transformer(name, latent).peak
            both = traced.trace_transformer(name, latent, batch=2).peak
            peer = traced.trace_diffusers_transformer(name, latent).peak
            goal = goals.get((name, size))
            yield Row(
                f"{name} activations, {size}, bf16",
                f"{gigabytes(ours)}; {gigabytes(both)} with guidance in one call",
                gigabytes(peer),
                gigabytes(native[size]) if native and name == "5B" else "",
                f"at most {goal} GB" if goal else "",
                ours <= goal * 1e9 if goal else None,
            )


def vae_rows(native: dict) -> Iterator[Row]:
    latent = traced.SIZES["480x720x49"]
    whole, tiled = traced.trace_decode(latent).peak, traced.trace_decode(latent, traced.TILE).peak
    short = traced.trace_decode((5, *latent[1:])).peak
    peer = gigabytes(traced.trace_diffusers_decode(latent).peak)
    theirs = f"{gigabytes(native['decode'])}, in other chunks" if native else ""
    yield Row("VAE decode, 480x720x49, bf16", gigabytes(whole), peer, theirs, "at most 7.5 GB", whole <= 7.5e9)
    yield Row("the same in tiles of 256 pixels", gigabytes(tiled), goal="at most 4 GB", reached=tiled <= 4e9)
    growth = whole - short
    yield Row(
        "VAE decode, growth from 17 to 49 frames", gigabytes(growth), goal="nothing on the card", reached=growth == 0
    )
    encode = traced.trace_encode(49, 480, 720).peak
    yield Row("VAE encode, 480x720x49, bf16", gigabytes(encode))


def timed_rows(native: dict) -> Iterator[Row]:
    beside = [f"{ratio:.2f} on {count}" for count, ratio in native["call"].items()] if native else []
    for what, measure, goal, theirs in (
        (
            "transformer call, float32, 8 heads, 6 layers, 13x32x32 latents",
            timed.time_transformer, 0.92, f"ours is {and_(beside)} of it" if beside else "",
        ),
        ("VAE decode, float32, 9 frames of 96x128, same chunks", timed.time_decode, 0.85, ""),
    ):  # fmt: skip
        yield timed_row(what, measure, goal, theirs)


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
        f"{and_(found)} of diffusers' time, within {difference:.0e}",
        and_(peers),
        native,
        f"at most {goal}, within 1e-5",
        worst <= goal and difference <= 1e-5,
    )


def and_(threads: list[str]) -> str:
    """What was found on one thread and on two, as words."""
    return f"{' and '.join(threads)} threads"


def loading_rows() -> Iterator[Row]:
    goals = {"as it is": 0.1, "cast to fp8": 0.3}
    for what, found in loading.measured_apart(traced.CONFIGS["2B"]).items():
        share, ratio = found["anonymous"], found["seconds"]
        yield Row(
            f"loading a bf16 2B, {what}: anonymous memory over the file's size", f"{share:.3f}",
            goal=f"at most {goals[what]}", reached=share <= goals[what],
        )  # fmt: skip
        limit = 1.2 if what == "as it is" else None  # casting makes every number anew
        yield Row(
            f"loading a bf16 2B, {what}: time over reading the mapped file", f"{ratio:.2f}",
            goal=f"at most {limit}" if limit else "", reached=ratio <= limit if limit else None,
        )  # fmt: skip


def number_rows(numbers: dict) -> Iterator[Row]:
    """What the tests hold ours to, and what the native model gives."""
    opens = f"no: {numbers['opens']}" if numbers["opens"] else "yes"
    yield Row("opens the nano model, a 2B InP in hub layout", "yes", native=opens)
    for size in ("480x720", "512x512"):
        off = numbers[f"rope {size}"]
        yield Row(f"5B rotary positions at {size}, off the authors'", "within 1e-5", native=f"{off:.0%} (RMS)")
    yield Row("2B noise levels, off the authors'", "within 1e-5", native=f"up to {numbers['sigmas']:.0%}")


def loop_rows(ratio: float) -> Iterator[Row]:
    cost = ratio - 1
    yield Row(
        "cogvideox_ddim over the host's Euler, 50 steps of a transformer that does nothing", f"{cost:+.1%}",
        goal="at most +5%", reached=cost <= 0.05,
    )  # fmt: skip


def measure_all() -> tuple[list[Row], list[tuple[int, int]]]:
    """All rows, those of a ComfyUI where one is found, and traced bytes of a 5B call by tokens."""
    host = in_host.measured_apart() or {}
    if not host:
        log.warning("no ComfyUI found: its native model and its loop are left out")
    native = host.get("native", {})
    rows = [*timed_rows(native), *transformer_rows(native), *vae_rows(native), *loading_rows()]
    if native:
        rows += number_rows(native["numbers"])
    if "loop" in host:
        rows += loop_rows(host["loop"])
    curve = [(traced.tokens_of(latent), traced.trace_transformer("5B", latent).peak) for latent in CURVE]
    return rows, curve


def markdown(rows: list[Row]) -> str:
    lines = ["| what | ours | diffusers | ComfyUI's own | goal | reached |", "|---|---|---|---|---|---|"]
    words = {True: "yes", False: "no", None: ""}
    lines += [f"| {r.what} | {r.ours} | {r.diffusers} | {r.native} | {r.goal} | {words[r.reached]} |" for r in rows]
    return "\n".join(lines) + "\n"


def write(folder: Path, rows: list[Row], curve: list[tuple[int, int]]) -> None:
    """Write the table as Markdown and JSON, and the curve as a picture."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(markdown(rows), encoding="utf-8")
    value = {"rows": [dataclasses.asdict(row) for row in rows], "bytes by tokens": curve}
    (folder / "bench.json").write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    plot(folder / "bench.png", curve)


def plot(path: Path, curve: list[tuple[int, int]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    axes.plot([tokens for tokens, _ in curve], [size / 1e9 for _, size in curve], marker="o")
    axes.set(xlabel="tokens", ylabel="GB", title="Activations of one 5B call, bf16, traced", ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    plt.close(figure)

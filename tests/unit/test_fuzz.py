"""Files that lie: headers and configurations of real models, changed at random, from seeds.

Each must load, or give an error of the pack that names it: no other exception, no hang, no memory. The cases run in
processes of their own, whose memory is limited; ``python tests/unit/test_fuzz.py GROUP out.json KIND NUMBER`` runs
one.
"""

import copy
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[2] / "tools"), str(Path(__file__).parents[1] / "helpers")]
import pack  # noqa: E402
from lies import NASTY, change_header, change_json, change_values, parts_of, to_text, write_file  # noqa: E402

pack.load_pack()

WEIGHTS = "diffusion_pytorch_model.safetensors"
LIMIT = 200_000_000  # bytes above what an idle process with a model has
SECONDS = 20  # of computing that a case may take, whatever else runs; the slowest takes well below one

GROUPS = {
    "headers": {
        "transformer header": 3500,
        "VAE header": 700,
        "LoRA header": 1000,
        "saved file": 1000,
        "file without configuration": 300,
    },
    "configurations": {
        "transformer config": 1300,
        "VAE config": 700,
        "scheduler config": 800,
        "index": 700,
    },
    "GGUF": {"GGUF": 500},
}


class Cases:
    """Real files in a folder, and a method for every kind of case that changes one and opens it."""

    def __init__(self, folder: Path):
        import torch
        from cogvideox_fun.model_loading import standalone as pipeline
        from cogvideox_fun.model_loading.files import checkpoint
        from cogvideox_fun.model_loading.files import lora_keys as lora
        from cogvideox_fun.model_loading.networks.config import TransformerConfig
        from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
        from cogvideox_fun.model_loading.networks.vae import CogVideoXVAE, VAEConfig
        from cogvideox_fun.training.tasks import hub
        from quantised import write_gguf
        from safetensors.torch import save_file
        from tiny_model import TINY, random_weights

        self.folder, self.checkpoint, self.pipeline, self.lora = folder, checkpoint, pipeline, lora
        self.Transformer, self.loads = CogVideoXTransformer, 0
        config = TransformerConfig(**TINY, in_channels=33)
        vae = VAEConfig(block_out_channels=(8, 16, 16, 16), layers_per_block=1, norm_num_groups=4)
        hub.write_configs(folder, config, vae, config.default_schedule)
        transformer = random_weights(CogVideoXTransformer(config), 0)
        hub.save_weights(folder / "transformer" / WEIGHTS, transformer)
        hub.save_weights(folder / "vae" / WEIGHTS, random_weights(CogVideoXVAE(vae), 1))
        self.parameters = {name: tuple(value.shape) for name, value in transformer.items()}
        self.files = {p: (folder / p / WEIGHTS).read_bytes() for p in ("transformer", "vae")}
        self.headers = {part: parts_of(folder / part / WEIGHTS) for part in self.files}
        names = {"transformer": "config.json", "vae": "config.json", "scheduler": "scheduler_config.json"}
        self.configs = {part: folder / part / name for part, name in names.items()}
        self.values = {part: json.loads(path.read_text()) for part, path in self.configs.items()}
        self.values["vae"]["latent_rgb_factors"] = [[0.1, 0.2, 0.3]] * 16
        self.values["vae"]["latent_rgb_factors_bias"] = [0.1, 0.2, 0.3]

        state = {}
        for layer in ("0.attn1.to_q", "1.ff.net.2", "1.attn1.to_out.0"):
            layer = f"transformer_blocks.{layer}"
            out, ins = transformer[f"{layer}.weight"].shape
            state[f"transformer.{layer}.lora_A.weight"] = torch.ones(4, ins)
            state[f"transformer.{layer}.lora_B.weight"] = torch.ones(out, 4)
            state[f"transformer.{layer}.alpha"] = torch.tensor(4.0)
        save_file(state, folder / "lora.safetensors", {lora.PEFT_METADATA: json.dumps({"lora_alpha": 8})})
        self.headers["lora"] = parts_of(folder / "lora.safetensors")

        self.saved = checkpoint.open_checkpoint(folder).saved_config
        published = CogVideoXTransformer(TransformerConfig(in_channels=33), device="meta", dtype=torch.float16)
        header, at = {}, 0
        for name, value in published.state_dict().items():
            header[name] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [at, at + 2 * value.numel()]}
            at += 2 * value.numel()
        self.headers["published"] = header, at
        write_gguf(transformer | {checkpoint.SAVED_CONFIG: checkpoint.encode_config(self.saved)}, folder / "real.gguf")
        self.gguf = (folder / "real.gguf").read_bytes()
        sharded = folder / "sharded" / "transformer"
        sharded.mkdir(parents=True)
        (sharded / "a.safetensors").write_bytes(self.files["transformer"])
        (sharded / "config.json").write_text(json.dumps(self.values["transformer"]))

    def restore(self) -> None:
        """Undo what a kind of case changed."""
        for part in ("transformer", "vae"):
            (self.folder / part / WEIGHTS).write_bytes(self.files[part])
        for part, path in self.configs.items():
            path.write_text(json.dumps(self.values[part]))

    def load(self, opened, every: int = 8) -> None:
        """What follows opening: the tensors are what the header said, and now and then the whole model is made."""
        assert math.isfinite(opened.schedule.sigmas().sum()) and json.dumps(opened.saved_config)
        numbers = [v for v in vars(opened.config).values() if type(v) in (int, float)]
        assert all(0 < v < math.inf for v in numbers), opened.config
        loaded = opened.weights.load()
        assert {key: tuple(value.shape) for key, value in loaded.items()} == opened.weights.shapes
        self.loads += 1
        if self.loads % every == 0:
            self.pipeline.load_transformer(opened)

    def transformer_header(self, rng):
        header, payload = self.headers["transformer"]
        write_file(rng, self.folder / "transformer" / WEIGHTS, change_header(rng, header), payload)
        self.load(self.checkpoint.open_checkpoint(self.folder))

    def vae_header(self, rng):
        header, payload = self.headers["vae"]
        write_file(rng, self.folder / "vae" / WEIGHTS, change_header(rng, header), payload)
        self.configs["vae"].unlink(missing_ok=True)
        if rng.random() < 0.7:  # what a file without configuration is, only the header says
            self.configs["vae"].write_text(json.dumps(self.values["vae"]))
        self.pipeline.load_vae(self.folder / "vae")

    def lora_header(self, rng):
        header, payload = self.headers["lora"]
        if rng.random() < 0.3:
            about = change_json(rng, {"lora_alpha": 8, "transformer.alpha_pattern": {"ff.net.2": 1}})
            header = {**header, "__metadata__": {self.lora.PEFT_METADATA: about.decode("utf-8", "replace")}}
        path = self.folder / "lora.safetensors"
        write_file(rng, path, change_header(rng, header), payload)
        self.lora.read_lora(path, self.parameters)

    def saved_file(self, rng):
        """One file with its configuration in it, which is wrong."""
        header, payload = copy.deepcopy(self.headers["transformer"])
        saved = dict(self.saved)
        part = rng.choice(("transformer", "scheduler", None))
        if part:
            saved[part] = change_values(rng, saved[part])
        data = to_text(saved).encode() if part else change_json(rng, saved)
        name = self.checkpoint.SAVED_PREFIX + self.checkpoint.SAVED_CONFIG
        header = {f"{self.checkpoint.SAVED_PREFIX}{key}": entry for key, entry in header.items()}
        header[name] = {"dtype": "U8", "shape": [len(data)], "data_offsets": [payload, payload + len(data)]}
        head = change_header(rng, header) if rng.random() < 0.2 else json.dumps(header).encode()
        path = self.folder / "saved.safetensors"
        with path.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            file.seek(payload, os.SEEK_CUR)
            file.write(data)
        self.load(self.checkpoint.open_checkpoint(path))

    def file_without_configuration(self, rng):
        """A file as large as a published one, with holes: only its header is read, and the model laid out for it."""
        header, payload = self.headers["published"]
        path = self.folder / "published.safetensors"
        write_file(rng, path, change_header(rng, header), payload)
        try:
            opened = self.checkpoint.open_checkpoint(path)
            if rng.random() < 0.2:
                model = self.Transformer(opened.config, device="meta")
                opened.weights.check({key: tuple(value.shape) for key, value in model.state_dict().items()})
        finally:
            path.unlink()

    def transformer_config(self, rng):
        data = change_json(rng, self.values["transformer"])
        self.configs["transformer"].write_bytes(data)
        self.load(self.checkpoint.open_checkpoint(self.folder))

    def vae_config(self, rng):
        self.configs["vae"].write_bytes(change_json(rng, self.values["vae"]))
        opened = self.checkpoint.open_checkpoint(self.folder)
        assert 0 < opened.scale_factor < math.inf and 0 < opened.image_scale < math.inf
        if rng.random() < 0.5:
            self.pipeline.load_vae(self.folder / "vae")

    def scheduler_config(self, rng):
        self.configs["scheduler"].write_bytes(change_json(rng, self.values["scheduler"]))
        opened = self.checkpoint.open_checkpoint(self.folder)
        timesteps = opened.schedule.timesteps(2)
        assert all(0 <= t < opened.schedule.num_timesteps for t in timesteps)
        self.load(opened, every=50)

    def index(self, rng):
        folder = self.folder / "sharded" / "transformer"
        long = "x" * 300 + ".safetensors"
        shards = ("a.safetensors", "b.safetensors", "a.bin", "..", "/etc/passwd", long, "a:b", *NASTY)
        weight_map = {key: "a.safetensors" for key in self.parameters}
        if rng.random() < 0.7:
            weight_map = change_values(rng, weight_map)
            weight_map[rng.choice(list(weight_map) or ["x"])] = rng.choice(shards)
        index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
        data = to_text(index).encode() if rng.random() < 0.5 else change_json(rng, index)
        (folder / f"{WEIGHTS}.index.json").write_bytes(data)
        self.load(self.checkpoint.open_checkpoint(folder.parent), every=50)

    def gguf_head(self, rng):
        data = bytearray(self.gguf)
        head = len(data) - sum(4 * math.prod(shape) // 4 for shape in self.parameters.values())
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(4, 3000 if rng.random() < 0.6 else max(head, 3000))
            match rng.randrange(6):
                case 0 | 1:
                    data[at] ^= 1 << rng.randrange(8)
                case 2:
                    value = rng.choice((0, 1, 2**20, 2**31, 2**32 - 1, 2**63, 2**64 - 1))
                    data[at : at + 8] = value.to_bytes(8, "little")
                case 3:
                    data[at : at + 4] = rng.randrange(40).to_bytes(4, "little")
                case 4:
                    data[8:16] = rng.choice((0, 1, 1000, 10**9, 2**63, 2**64 - 1)).to_bytes(8, "little")
                case 5:  # a field more, an array as long as it likes to say
                    name, length = b"comfy.gguf.orig_shape.proj_out.weight", rng.choice((0, 1, 2, 10**6, 2**40, 2**63))
                    field = len(name).to_bytes(8, "little") + name + (9).to_bytes(4, "little")
                    field += rng.choice((0, 4, 5, 8, 9, 10, 77)).to_bytes(4, "little") + length.to_bytes(8, "little")
                    data[16:24] = (int.from_bytes(data[16:24], "little") + 1 & 2**64 - 1).to_bytes(8, "little")
                    data[24:24] = field + bytes(rng.choice((0, 8, 10_000)))
        path = self.folder / "changed.gguf"
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        path.write_bytes(data)
        opened = self.checkpoint.open_checkpoint(path)
        assert len(opened.weights.load()) == len(opened.weights)


METHODS = {
    "transformer header": Cases.transformer_header,
    "VAE header": Cases.vae_header,
    "LoRA header": Cases.lora_header,
    "saved file": Cases.saved_file,
    "file without configuration": Cases.file_without_configuration,
    "transformer config": Cases.transformer_config,
    "VAE config": Cases.vae_config,
    "scheduler config": Cases.scheduler_config,
    "index": Cases.index,
    "GGUF": Cases.gguf_head,
}


class HungError(BaseException):
    """Not an Exception, so that nothing swallows it."""


def status(name: str) -> int:
    """Bytes, from /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def run_case(cases: Cases, kind: str, number: int) -> tuple[str, str]:
    """(outcome, message) of one case: loaded, refused or failed."""
    from cogvideox_fun.model_loading.files.lora_keys import LoraError
    from cogvideox_fun.model_loading.networks.config import CheckpointError

    try:
        METHODS[kind](cases, random.Random(f"{kind} {number}"))
        return "loaded", ""
    except (CheckpointError, LoraError) as error:
        message = str(error)
        if str(cases.folder) not in message:
            return "failed", f"names no file: {message[:500]}"
        if len(message) > 2500 or any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for c in message):
            return "failed", f"unreadable, {len(message)} characters: {message[:200]!r}"
        return "refused", message.replace(str(cases.folder), "")
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return "failed", f"{type(error).__name__}: {str(error)[:300]} ({where.filename}:{where.lineno})"


def work(group: str, report: Path, only: tuple[str, int] | None = None) -> None:
    """Run a group's cases in this process and write what came out."""
    import resource
    import signal

    def hang(*_):
        raise HungError(f"still running after {SECONDS} seconds of computing")

    signal.signal(signal.SIGPROF, hang)
    with tempfile.TemporaryDirectory() as folder:
        cases = Cases(Path(folder))
        for kind in GROUPS[group]:  # what is imported or made once is no case's
            run_case(cases, kind, -1)
            cases.restore()
        before = status("RssAnon")
        allowed = status("VmData") + LIMIT
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
        Path("/proc/self/clear_refs").write_text("5")  # count the peak from here
        start = status("VmRSS")
        outcomes, messages, failures, slowest = Counter(), set(), [], (0.0, "")
        numbers = [only] if only else [(kind, n) for kind, count in GROUPS[group].items() for n in range(count)]
        for kind, number in numbers:
            if number == 0:
                cases.restore()
            began = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            outcome, message = run_case(cases, kind, number)
            signal.setitimer(signal.ITIMER_PROF, 0)
            slowest = max(slowest, (time.process_time() - began, f"{kind} {number}"))
            outcomes[outcome] += 1
            if outcome == "refused":
                messages.add(re.sub(r"[\d.]+|'[^']*'", "#", message)[:60])
            elif outcome == "failed":
                failures.append(f"{kind} {number}: {message}")
        found = {
            "outcomes": outcomes,
            "messages": sorted(messages),
            "failures": failures,
            "slowest": slowest,
            "peak": status("VmHWM") - start,
            "kept": status("RssAnon") - before,
        }
    report.write_text(json.dumps(found, indent=1))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits memory and reads it as Linux does")
@pytest.mark.parametrize("group", GROUPS)
def test_files_that_lie(group, tmp_path):
    report = tmp_path / "report.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    command = [sys.executable, __file__, group, str(report)]
    subprocess.run(command, env=environment, check=True, timeout=3600)  # ends a case that waits instead of computing
    found = json.loads(report.read_text())
    count = sum(GROUPS[group].values())
    assert not found["failures"], f"{len(found['failures'])} of {count}:\n" + "\n".join(found["failures"][:20])
    assert sum(found["outcomes"].values()) == count
    assert found["outcomes"]["loaded"] > count / 50, "hardly a case gets past the first check"
    assert len(found["messages"]) >= 10, found["messages"]
    assert found["peak"] < LIMIT and found["kept"] < LIMIT / 4, found


def test_there_are_as_many_cases_as_promised():
    assert sum(sum(kinds.values()) for kinds in list(GROUPS.values())[:2]) == 10_000
    assert {kind for kinds in GROUPS.values() for kind in kinds} == METHODS.keys()


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]), (sys.argv[3], int(sys.argv[4])) if len(sys.argv) > 4 else None)

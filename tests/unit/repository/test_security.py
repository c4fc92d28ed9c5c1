"""Model files can't run code, and a run opens no connection, starts no program and writes nothing."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cogvideox_fun.model_loading import standalone
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files import checkpoint, lora_keys
from pack import ROOT

NANO = ROOT / "models" / "nano"
OPENERS = {
    "model": checkpoint.open_checkpoint,
    "VAE": standalone.load_vae,
    "text encoder": lambda path: standalone.TextEncoder(path, NANO / "tokenizer"),
    "LoRA": lambda path: lora_keys.read_lora(path, {"proj_out.weight": (2, 2)}),
}


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def pickled(tmp_path) -> bytes:
    """A file of torch.save that makes a folder when it is read in full; the test fails if that folder is made."""
    made = tmp_path / "made"
    torch.save({"weight": Payload(made)}, tmp_path / "pickled")
    yield (tmp_path / "pickled").read_bytes()
    assert not made.exists(), "the pickle was run"


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.safetensors"])
@pytest.mark.parametrize("opener", OPENERS)
def test_a_pickle_is_refused(pickled, tmp_path, opener, name):
    (tmp_path / name).write_bytes(pickled)
    with pytest.raises(CheckpointError, match=name):
        OPENERS[opener](tmp_path / name)


SCRIPT = """
import json, os, sys, tempfile
from pathlib import Path
os.environ.pop("HF_HUB_OFFLINE", None)
sys.path.insert(0, TOOLS)
import torch
import pack
pack.load_pack()
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.model_loading.files.lora_keys import read_lora
from cogvideox_fun.sampling.masks import build_start_end
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ALLOWED = tuple(os.path.realpath(path) + os.sep for path in (tempfile.gettempdir(), "/dev", "/proc"))
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename",
             "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.", "ftplib.", "http.",
             "urllib.", "smtplib.", "webbrowser.", "pickle.find_class")
DATA = (".safetensors", ".json", ".model")
found, inside = [], []

def is_forbidden(name, args):
    if name == "open" and isinstance(args[0], (str, bytes)):
        path = os.path.realpath(os.fsdecode(args[0]))
        if path.startswith(MODEL + os.sep):
            return not path.endswith(DATA) or bool((args[2] or 0) & WRITES)
        return bool(set(args[1] or "") & set("wax+") or (args[2] or 0) & WRITES) and not path.startswith(ALLOWED)
    if name == "os.mkdir":
        return not os.path.realpath(args[0]).startswith(ALLOWED)
    return name.startswith(FORBIDDEN)

def hook(name, args):
    if not inside:
        inside.append(1)
        try:
            if is_forbidden(name, args):
                found.append(f"{name} {args}"[:300])
        finally:
            inside.clear()

def run(folder):
    pipe = Pipeline.from_folder(folder)
    image = torch.rand(1, 64, 64, 3)
    extra = pipe.condition(*build_start_end(64, 64, 5, image, image))
    texts = pipe.text_encoder("a red square moves right"), pipe.text_encoder("")
    video = pipe.decode(pipe.sample(pipe.noise(64, 64, 5, 0), *texts, extra, steps=1))
    shapes = {key: tuple(value.shape) for key, value in pipe.transformer.state_dict().items()}
    read_lora(Path(folder) / "lora" / "ring.safetensors", shapes)
    return bool(torch.isfinite(video).all())

run(NANO)  # a library's first import is its own affair
sys.addaudithook(hook)
finite = run(MODEL)
inside.append(1)
print(json.dumps([finite, found]))
"""


def test_a_run_only_reads_its_models_data(pickled, tmp_path):
    """From the files to the pixels, with code in every folder of the model."""
    model, made = tmp_path / "model", tmp_path / "made"
    shutil.copytree(NANO, model, ignore=shutil.ignore_patterns("training"))
    remote = {"auto_map": {"AutoModel": "code.Evil"}, "custom_pipeline": "code.py", "trust_remote_code": True}
    for folder in (model, *(path for path in model.iterdir() if path.is_dir())):
        for name in ("__init__.py", "code.py", "modeling.py"):
            (folder / name).write_text(f"import os\nos.makedirs({str(made)!r})\n")
        for name in ("pytorch_model.bin", "scheduler.pkl"):
            (folder / name).write_bytes(pickled)
        for config in folder.glob("*config.json"):
            config.write_text(json.dumps({**json.loads(config.read_text()), **remote}))
    paths = {"TOOLS": ROOT / "tools", "NANO": NANO, "MODEL": model.resolve()}
    script = "".join(f"{name} = {str(path)!r}\n" for name, path in paths.items()) + SCRIPT
    environment = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == [True, []]
    assert not made.exists()

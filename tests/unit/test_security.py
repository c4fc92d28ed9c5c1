"""Nothing of a model is executed: no call that could do so, no pickle read, nothing started or connected to."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pack
import pytest
import torch
from cogvideox_fun.model_loading import standalone as pipeline
from cogvideox_fun.model_loading.files import checkpoint
from cogvideox_fun.model_loading.files import lora_keys as lora
from cogvideox_fun.model_loading.files import safetensors_files as weights
from cogvideox_fun.model_loading.networks.config import CheckpointError
from cogvideox_fun.model_loading.standalone import TextEncoder

ROOT = pack.ROOT
NANO = ROOT / "models" / "nano"
FILES = [
    ROOT / "__init__.py",
    *(f for part in ("nodes", "model_loading", "sampling") for f in (ROOT / part).rglob("*.py")),
]
PARTS = ("transformer", "vae", "text_encoder")

# modules that run code, start processes, reach the network, or read formats that can do so
MODULES = set(
    "aiohttp asyncio bdb cffi code codeop ctypes dill ftplib http httpx huggingface_hub imaplib imp importlib joblib "
    "marshal multiprocessing pickle poplib pty requests runpy shelve smtplib socket socketserver ssl subprocess "
    "telnetlib torch.hub urllib urllib3 webbrowser websockets xmlrpc yaml zipimport".split()
)
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "globals", "locals", "vars"}
METHODS = {  # of any object, whatever it is called here
    *("system", "popen", "startfile", "execv", "execve", "execvp", "execl", "spawnv", "spawnl", "posix_spawn", "fork"),
    *("import_module", "load_module", "exec_module", "find_class", "load_state_dict_from_url", "urlopen"),
    *("download_url_to_file", "hf_hub_download", "snapshot_download", "get_attr_from_path"),
}
ALLOWED = {  # why: see the function
    ("gguf.py", "import importlib"),  # a module of ComfyUI-GGUF beside one that the host has already imported
    ("gguf.py", "import_module"),
    ("kernels.py", "import importlib.util"),  # whether Triton is installed, by its name
    ("kernels.py", "vars"),  # whether a layer's forward was replaced, by its name
    ("model.py", "vars"),  # the same
}


def dotted(node: ast.expr) -> str:
    """``a.b.c`` of an expression, with ? for what is no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def problems_of_call(node: ast.Call):
    name = dotted(node.func)
    options = {keyword.arg: keyword.value for keyword in node.keywords}
    last = name.split(".")[-1]
    if name in CALLS or (last in METHODS and "." in name):
        yield last
    if name in ("torch.load", "torch.jit.load", "torch.package.PackageImporter"):
        if not (name == "torch.load" and getattr(options.get("weights_only"), "value", False) is True):
            yield f"{name} without weights_only"
    if last == "load" and name.split(".")[0] in ("np", "numpy") and "allow_pickle" in options:
        yield "allow_pickle"
    if last in ("from_pretrained", "load_config", "get_config_dict"):
        if getattr(options.get("local_files_only"), "value", False) is not True:
            yield f"{last} without local_files_only"
    if "trust_remote_code" in options or None in options and last == "from_pretrained":
        yield "trust_remote_code"
    if last in ("getattr", "setattr") and node.args and dotted(node.args[0]) in ("builtins", "os", "sys", "torch"):
        yield f"{last} of {dotted(node.args[0])}"


def problems(source: str):
    """What a file's text imports and calls that it must not, whatever its comments say."""
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if {name, name.split(".")[0]} & MODULES or name in ("os.system", "os.popen"):
                yield f"import {name}"
        if isinstance(node, ast.Call):
            yield from problems_of_call(node)
        if isinstance(node, ast.Name) and node.id in CALLS - {"compile", "vars"}:
            yield node.id  # also where it is only handed on


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_nothing_runs_code_or_opens_the_network(path):
    found = {(path.name, what) for what in problems(path.read_text(encoding="utf-8"))}
    assert not found - ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        "eval(x)", "exec(x)", "run = exec", "__import__(x)", "import pickle", "from pickle import loads",
        "import os\nos.system(x)", "from os import system", "import subprocess as s", "def f():\n  import socket",
        "import urllib.request", "torch.load(p)", "torch.load(p, weights_only=False)", "import torch.hub",
        "T.from_pretrained(p)", "T.from_pretrained(p, trust_remote_code=True, local_files_only=True)", "compile(x)",
        "np.load(p, allow_pickle=True)", "getattr(builtins, name)(x)", "importlib.import_module(x)",
        "import huggingface_hub",
    ],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(source):
    assert list(problems(source))
    assert not list(
        problems("torch.load(p, weights_only=True)\nT.from_pretrained(p, local_files_only=True)\nf.compile()")
    )


def test_what_is_allowed_is_still_needed():
    found = {(path.name, what) for path in FILES for what in problems(path.read_text(encoding="utf-8"))}
    assert found >= ALLOWED


# pickles


class Payload:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


OPENERS = {
    "model": checkpoint.open_checkpoint,
    "VAE": pipeline.load_vae,
    "text encoder": lambda path: TextEncoder(path, path),
    "LoRA": lambda path: lora.read_lora(path, {"proj_out.weight": (2, 2)}),
    "weights": weights.open_weights,
}


@pytest.fixture
def bomb(tmp_path):
    """The bytes of a torch.save that would make a folder when it is read in full."""
    made = tmp_path / "made"
    torch.save({"weight": Payload(made)}, tmp_path / "bomb", pickle_protocol=2)
    data = (tmp_path / "bomb").read_bytes()
    torch.load(tmp_path / "bomb", weights_only=False)
    assert made.is_dir()
    made.rmdir()
    yield data
    assert not made.exists(), "the pickle was run"


@pytest.mark.parametrize("suffix", [".bin", ".ckpt", ".pkl", ".pt", ".pth"])
@pytest.mark.parametrize("opener", ["model", "VAE", "LoRA", "weights"])
def test_a_pickle_is_refused_everywhere(bomb, tmp_path, opener, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(bomb)
    with pytest.raises(CheckpointError, match=f"model\\{suffix} is no safetensors file: pickles .*can run code"):
        OPENERS[opener](path)


@pytest.mark.parametrize("opener", ["model", "VAE", "LoRA", "weights"])
@pytest.mark.parametrize("old", [False, True], ids=["zip", "before torch 1.6"])
def test_a_pickle_under_another_name_is_refused(bomb, tmp_path, opener, old):
    path = tmp_path / "model.safetensors"
    path.write_bytes(bomb)
    if old:
        torch.save({"weight": Payload(tmp_path / "made")}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="model.safetensors .*pickle.*(can run code|not read)"):
        OPENERS[opener](path)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "diffusion_pytorch_model.pt", "model.ckpt"])
def test_a_folder_of_a_pickle_says_why(bomb, tmp_path, part, name):
    folder = tmp_path / part
    shutil.copytree(NANO / part, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / name).write_bytes(bomb)
    with pytest.raises(CheckpointError, match=f"{part} holds no .safetensors file .only {name}, a pickle"):
        weights.open_weights(folder)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "shard, words",
    [
        ("shard.bin", "shard.bin is no safetensors file: pickles can run code"),
        ("../shard.safetensors", "'../shard.safetensors' outside its folder"),
        ("/etc/passwd", "'/etc/passwd' outside its folder"),
        ("..", "lacks the shard .. that"),
        ("..\\shard.safetensors", "outside its folder"),
        ("C:shard.safetensors", "outside its folder"),
    ],
)
def test_an_index_names_files_of_its_folder_only(bomb, tmp_path, part, shard, words):
    """Though a good file lies where it points."""
    folder = tmp_path / part
    shutil.copytree(NANO / part, folder)
    (file,) = folder.glob("*.safetensors")
    shutil.copy(file, tmp_path / "shard.safetensors")
    (folder / "shard.bin").write_bytes(bomb)
    index = {"weight_map": dict.fromkeys(weights.open_weights(file).tensors, shard)}
    (folder / f"{file.name}.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError) as error:
        weights.open_weights(folder)
    assert words in str(error.value).replace("\\\\", "\\")


# a whole model that would like to run code

SCRIPT = """
import builtins, json, sys
sys.path.insert(0, TOOLS)
import pack
pack.load_pack()
import torch
from pathlib import Path
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.model_loading.files.lora_keys import read_lora

def run(folder):
    model = Pipeline.from_folder(folder)
    noise, text = model.noise(32, 32, 5, 0), model.text_encoder("a red ball")
    video = model.decode(model.sample(noise, text, text, steps=1))
    assert torch.isfinite(video).all() and video.shape == (5, 32, 32, 3)
    shapes = {key: tuple(value.shape) for key, value in model.transformer.state_dict().items()}
    read_lora(Path(folder) / "lora" / "ring.safetensors", shapes)

run(SAFE)  # what the libraries import once is theirs
events, writes = [], []
NAMES = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pickle.",
         "exec", "compile", "import", "code.", "ctypes.dlopen", "urllib.", "http.", "ftplib.", "webbrowser.",
         "os.remove", "os.rename", "os.mkdir", "os.symlink", "os.link", "os.truncate", "os.chmod")

def hook(event, args):
    if event.startswith(NAMES):
        events.append(f"{event} {str(args)[:200]}")
    if event == "open" and (isinstance(args[1], str) and set(args[1]) & set("wax+")):
        writes.append(str(args[0]))

sys.addaudithook(hook)
run(MODEL)
found = list(events), list(writes)
import socket
socket.socket().close()  # the hook hears
print(json.dumps([*found, len(events) > len(found[0])]))
"""


def test_a_model_full_of_code_loads_and_runs_none_of_it(bomb, tmp_path):
    """Python, pickles and class names in every folder; the whole run imports, connects, starts and writes nothing."""
    model = tmp_path / "model"
    shutil.copytree(NANO, model)
    code = f"import os\nos.mkdir({str(tmp_path / 'made')!r})\n"
    remote = {"auto_map": {"AutoModel": "code.Evil"}, "custom_pipeline": "code.py", "trust_remote_code": True}
    for folder in (model, *(path for path in model.iterdir() if path.is_dir())):
        for name in ("__init__.py", "code.py", "modeling.py", "conftest.py", "sitecustomize.py"):
            (folder / name).write_text(code)
        for name in ("pytorch_model.bin", "training_args.bin", "scheduler.pkl"):
            (folder / name).write_bytes(bomb)
        for config in folder.glob("*config.json"):
            values = json.loads(config.read_text())
            config.write_text(json.dumps({**values, **remote}))
    names = {"TOOLS": ROOT / "tools", "SAFE": NANO, "MODEL": model}
    script = "".join(f"{name} = {str(path)!r}\n" for name, path in names.items()) + SCRIPT
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr[-3000:]
    events, writes, hears = json.loads(result.stdout.splitlines()[-1])
    assert hears and not writes
    assert not events, "\n".join(events[:20])

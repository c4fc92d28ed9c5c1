"""Folders of many models, links in circles, pipes, files of a size that no model has, and what a run touches."""

import ast
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pack
import pytest
import torch
from cogvideox_fun.model_loading.files import checkpoint
from cogvideox_fun.model_loading.files.checkpoint import CheckpointError
from cogvideox_fun.model_loading.files.lora_keys import LoraError, read_lora
from cogvideox_fun.model_loading.files.safetensors_files import open_weights
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from counted import calls
from safetensors.torch import save_file

ROOT = pack.ROOT
FILES = [ROOT / "__init__.py", *(p for d in ("nodes", "model_loading", "sampling") for p in (ROOT / d).rglob("*.py"))]


# What would change a disk: the end of a dotted name.
WRITING = {
    *(
        "write_text",
        "write_bytes",
        "mkdir",
        "makedirs",
        "touch",
        "symlink_to",
        "hardlink_to",
        "chmod",
        "rmdir",
        "unlink",
    ),
    *("rmtree", "copytree", "copyfile", "save_file", "os.remove", "os.rename", "os.replace", "torch.save", "np.save"),
}


def written(source: str) -> list[str]:
    """What a file's code writes, makes or removes on disk, with the lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if {node.attr, name} & WRITING:
                found.append(f"{node.lineno}: {name}")
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "open":
            named = [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
            mode = (named or node.args[0 if isinstance(node.func, ast.Attribute) else 1 :] or [ast.Constant("r")])[0]
            if not isinstance(mode, ast.Constant) or set(str(mode.value)) & set("wax+"):
                found.append(f"{node.lineno}: opens to write")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_code_writes_nothing(path):
    assert not written(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "source",
    [
        "open(p, 'w')",
        "p.open('wb')",
        "open(p, mode='a')",
        "open(p, m)",
        "p.write_text(x)",
        "os.remove(p)",
        "rm = p.unlink",
    ]
    + ["shutil.rmtree(p)", "torch.save(x, p)"],
)
def test_the_walk_finds_what_writes(source):
    assert written(source)
    assert not written("open(p)\nopen(p, 'rb')\np.open('rb')\np.open()\nx.replace(a, b)")


RUN = """
import json, os, sys, tempfile
os.environ.pop("HF_HUB_OFFLINE", None)
sys.path.insert(0, {tools!r})
import torch
import pack
pack.load_pack()
events = []
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ALLOWED = tuple(os.path.realpath(p) + os.sep for p in (tempfile.gettempdir(), "/dev", "/proc"))
NAMES = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename",
         "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "shutil.", "ftplib.", "http.",
         "urllib.", "smtplib.", "webbrowser.", "pickle.find_class")
inside = []

def hook(name, args):
    if inside:
        return
    inside.append(1)
    try:
        if name == "open" and isinstance(args[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(args[0])) + os.sep
            writes = set(args[1] or "") & set("wax+") or (args[2] or 0) & WRITING
            if writes and not path.startswith(ALLOWED):
                events.append(f"open {{args}}")
        elif name.startswith(NAMES) and not (name == "os.mkdir" and os.path.realpath(args[0]).startswith(ALLOWED)):
            events.append(f"{{name}} {{args}}"[:300])
    finally:
        inside.clear()

sys.addaudithook(hook)
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.sampling.masks import build_start_end
pipe = Pipeline.from_folder({folder!r})
image = torch.rand(1, 64, 64, 3)
extra = pipe.condition(*build_start_end(64, 64, 5, image, image))
positive, negative = pipe.text_encoder("a red square moves right"), pipe.text_encoder("")
latent = pipe.sample(pipe.noise(64, 64, 5, 0), positive, negative, extra, steps=1)
video = pipe.decode(latent)
found = list(events)
# the hook sees what it looks for, and nothing else
import pathlib, socket, subprocess
for attempt in (lambda: socket.socket(socket.AF_UNIX).connect("/nowhere"), lambda: os.open("/nowhere", os.O_RDWR)):
    try:
        attempt()
    except OSError:
        pass
subprocess.run(["true"])
os.system("true")
pathlib.Path("~/../allowed.txt").expanduser().write_text("x")
inside.append(1)
print(json.dumps([list(video.shape), bool(torch.isfinite(video).all()), found, events[len(found):]]))
"""


def test_a_run_opens_no_connection_starts_no_program_and_writes_nothing(tmp_path):
    """From the first import on, the nano model loaded, an image encoded, a step sampled and decoded."""
    script = RUN.format(tools=str(ROOT / "tools"), folder=str(ROOT / "models" / "nano"))
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["TMPDIR"] = str(tmp_path)
    environment.pop(
        "TORCHINDUCTOR_CACHE_DIR", None
    )  # a test of torch.compile leaves it, and importing makes the folder
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    shape, finite, events, control = json.loads(result.stdout.splitlines()[-1])
    assert shape == [5, 64, 64, 3] and finite
    assert events == [] and not list(home.iterdir())
    seen = " ".join(control)
    assert all(name in seen for name in ("socket.connect", "os.system", "subprocess.Popen", "open ('/nowhere'")), seen
    assert "allowed.txt" not in seen


def write_models(root: Path, count: int) -> None:
    """Folders in hub layout, with files of other families between them and beside them."""
    for i in range(count):
        folder = root / f"owner{i % 10}" / f"model{i:03}" / "transformer"
        folder.mkdir(parents=True)
        name = "CogVideoXTransformer3DModel" if i % 2 else "FluxTransformer2DModel"
        (folder / "config.json").write_text(json.dumps({"_class_name": name}))


class TestManyModels:
    def test_hundreds_are_listed_fast_and_right(self, tmp_path):
        """Fast: at most 400 function calls a model, 220 a folder and 60 a file today; 900 models take 0.05 seconds."""
        write_models(tmp_path / "hub", 600)
        files = {}
        for i in range(300):
            key = "patch_embed.text_proj.weight" if i % 3 == 0 else f"model.layers.{i}.weight"
            files[f"file{i:03}.safetensors"] = tmp_path / f"file{i:03}.safetensors"
            others = {f"blocks.{n}.weight": torch.zeros(1) for n in range(200)}
            save_file({key: torch.zeros(1), **others}, files[f"file{i:03}.safetensors"])
        found = {}
        cost = calls(lambda: found.update(checkpoint.find_models([tmp_path / "hub"], files)))
        expected = sorted(f"owner{i % 10}/model{i:03}" for i in range(1, 600, 2))
        assert list(found) == [*expected, *(f"file{i:03}.safetensors" for i in range(0, 300, 3))]
        assert cost <= 400 * 900

    def test_links_in_circles_name_each_model_once(self, tmp_path):
        write_models(tmp_path, 40)
        before = calls(lambda: checkpoint.find_models([tmp_path], {}))
        for i in range(10):
            (tmp_path / f"loop{i}").symlink_to(tmp_path)
            (tmp_path / f"owner{i}" / "up").symlink_to(tmp_path)
            (tmp_path / f"owner{i}" / "self").symlink_to("self")
        found = {}
        assert calls(lambda: found.update(checkpoint.find_models([tmp_path], {}))) <= 2 * before
        assert list(found) == sorted(f"owner{i % 10}/model{i:03}" for i in range(1, 40, 2))

    def test_two_folders_that_link_to_each_other(self, tmp_path):
        for here, there in (("a", "b"), ("b", "a")):
            (tmp_path / here).mkdir()
            (tmp_path / here / "other").symlink_to(tmp_path / there)
        assert checkpoint.find_models([tmp_path], {}) == {}

    def test_a_child_that_can_not_be_looked_at_hides_no_other(self, tmp_path):
        """A link with a name as long as no file's raises, as one into a folder of another user does."""
        write_models(tmp_path, 2)
        (tmp_path / "long").symlink_to("x" * 300)
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / "transformer").symlink_to("y" * 300)
        assert list(checkpoint.find_models([tmp_path], {})) == ["owner1/model001"]


@pytest.mark.parametrize("target", ["b.safetensors", "m.safetensors.index.json", "gone"])
def test_links_of_an_index_in_a_circle_or_to_nothing(tmp_path, target):
    (tmp_path / "b.safetensors").symlink_to(target)
    (tmp_path / "m.safetensors.index.json").symlink_to("m.safetensors.index.json")
    with pytest.raises(CheckpointError, match=re.escape(str(tmp_path))):
        open_weights(tmp_path)


def test_a_shard_that_links_to_a_file_elsewhere_is_read(tmp_path):
    """As the hub's own cache keeps them."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file({"a": torch.ones(1)}, tmp_path / "blob.safetensors")
    (folder / "b.safetensors").symlink_to(tmp_path / "blob.safetensors")
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    assert open_weights(folder)["a"] == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with a name are Unix's")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path):
    for name in ("x.safetensors", "x.gguf"):
        os.mkfifo(tmp_path / name)
    assert not checkpoint.is_transformer_file(tmp_path / "x.safetensors")
    assert not checkpoint.is_transformer_file(tmp_path / "x.gguf")
    with pytest.raises(CheckpointError):
        open_weights(tmp_path / "x.safetensors")


def header_file(path: Path, header: dict, payload: int) -> Path:
    data = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(data).to_bytes(8, "little") + data)
        file.truncate(8 + len(data) + payload)
    return path


def entry(begin: int, end: int, *shape, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


class TestHeaders:
    """What a header or configuration says is taken only where a model can be made of it."""

    @pytest.mark.parametrize("value", [math.inf, math.nan, 0, -1, 10**400])
    def test_numbers_of_a_configuration(self, value):
        for name in ("norm_eps", "spatial_interpolation_scale", "temporal_interpolation_scale"):
            with pytest.raises(CheckpointError, match=f"{name} is .* expected a number above 0"):
                TransformerConfig.from_dict({name: value})

    def test_a_lora_with_names_of_many_parts_is_read_in_time(self, tmp_path):
        """In a time that grows with the parts of all names and no faster: at most three function calls for each."""
        path = tmp_path / "lora.safetensors"
        names = [f"{i}_" + "a_" * 490 for i in range(300)]
        header_file(path, {name: entry(0, 0, 0) for name in names}, 0)

        def read() -> None:
            with pytest.raises(LoraError, match="none of its 300 keys"):
                read_lora(path, {"proj_out.weight": (8, 8)})

        assert calls(read) <= 3 * 490 * len(names)

"""What a run does in a real host beside computing: no connection, no process, no code of a model, no other file."""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from cogvideox_fun.tools import comfyui_server as comfy
from graph import Lab
from tiny_model import write_tiny_model

WEIGHTS = "diffusion_pytorch_model.safetensors"
KINDS = ("read", "write", "exec")


@pytest.fixture(scope="module")
def watched(host, tmp_path_factory):
    """A host of its own: once it listens, it does so for good."""
    base = tmp_path_factory.mktemp("watched")
    write_tiny_model(base / "models" / "CogVideoX_Fun" / "tiny-5b", "5b")
    (base / "custom_nodes").mkdir()
    for name in ("probe", "audit"):
        (base / "custom_nodes" / name).symlink_to(Path(__file__).parent / name, target_is_directory=True)
    with comfy.serve(host, base) as server:
        yield Lab(server, base)


def watch(lab, path: str = "", pause: str = "") -> None:
    graph = lab.graph()
    graph.node("ProbeWatch", path=path, pause=pause, number=next(lab.numbers))
    lab.run(graph.workflow)


def region(lab, model: str, seed: int):
    """Region inpainting from a model's files to its pixels: (graph, value)."""
    graph = lab.graph()
    loaded = graph.loader(model)
    positive, negative = graph.prompts(loaded[1], f"a red ball {seed}")
    pixels = graph.tensor("Image", torch.rand(9, 48, 80, 3, generator=torch.Generator().manual_seed(seed)))
    mask = graph.tensor("Mask", torch.ones(9, 48, 80))
    built = graph.inpaint(loaded, loaded[2], pixels, mask, positive, negative)
    value = graph.sampler(loaded, built[0], built[1], built[2], seed=seed, steps=2)
    return graph, graph.fun("VAEDecode", vae=loaded[2], latent=value, tile_size=0, overlap=64)


def copy_with_code(lab, name: str) -> Path:
    """A copy of the tiny model with code in all its folders that makes a folder if it is run; returns that one."""
    made = lab.base / f"made-{name}"
    models = lab.base / "models" / "CogVideoX_Fun"
    shutil.copytree(models / "tiny-5b", models / name)
    code = f"import os\nos.makedirs({str(made)!r}, exist_ok=True)\n"
    remote = {"auto_map": {"AutoModel": "evil.Evil"}, "custom_pipeline": "evil.py", "trust_remote_code": True}
    for folder in (models / name, *(path for path in (models / name).iterdir() if path.is_dir())):
        for file in ("__init__.py", "evil.py", "pipeline.py"):
            (folder / file).write_text(code)
        for config in folder.glob("*config.json"):
            config.write_text(json.dumps({**json.loads(config.read_text()), **remote}))
    return made


def test_a_run_opens_the_models_own_files_and_no_connection(watched):
    """From a fresh model with code in it to pixels, after a run of another one has imported all libraries."""
    graph, value = region(watched, "tiny-5b", 1)
    graph.get(value)
    made, path = copy_with_code(watched, "fresh"), watched.path(".txt")
    graph, value = region(watched, "fresh", 2)
    watch(watched, path)
    (video,) = graph.get(value)
    watch(watched)
    assert torch.isfinite(video).all() and not made.exists()
    lines = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    kinds = {kind: [line.split(" ", 1)[1] for line in lines if line.startswith(f"{kind} ")] for kind in KINDS}
    rest = [line for line in lines if line.split(" ")[0] not in KINDS]
    assert not rest, rest[:10]
    folder = str(watched.base / "models" / "CogVideoX_Fun" / "fresh")
    inside = [name.removeprefix(f"{folder}/") for name in kinds["read"] if name.startswith(folder)]
    assert f"transformer/{WEIGHTS}" in inside and "scheduler/scheduler_config.json" in inside, "the hook hears"
    assert all(name.endswith((".safetensors", ".json", ".model")) for name in inside), inside
    assert not [name for name in kinds["exec"] if name.startswith(str(watched.base))]
    elsewhere = [name for name in kinds["write"] if not name.startswith((str(watched.base), "/dev/"))]
    assert not elsewhere, elsewhere
    models = [name for name in kinds["write"] if name.startswith(str(watched.base / "models"))]
    assert not models, models


def test_an_interrupt_while_a_model_is_loaded(watched):
    """In the middle of the loader's files: no later node runs, and the same model loads and runs whole afterwards."""
    expected = region(watched, "tiny-5b", 3)
    (expected,) = expected[0].get(expected[1])
    copy_with_code(watched, "slow")
    graph, value = region(watched, "slow", 3)
    saved, path = watched.path(), watched.path(".txt")
    graph.node("ProbeSave", value=value, path=saved)
    watch(watched, path, pause=f"slow/transformer/{WEIGHTS}")
    prompt = watched.server.queue(graph.workflow)
    deadline = time.monotonic() + 60
    while not Path(path).exists() or f"slow/transformer/{WEIGHTS}" not in Path(path).read_text():
        assert time.monotonic() < deadline, watched.server.tail()
        time.sleep(0.02)
    watched.server.post("/interrupt", {})
    history = watched.server.wait(prompt, 60)
    assert "execution_interrupted" in [kind for kind, _ in history["status"]["messages"]]
    assert not Path(saved).exists()
    watch(watched)
    graph, value = region(watched, "slow", 3)
    assert torch.equal(graph.get(value)[0], expected)

"""What a run must not do in ComfyUI: connect, start a process, run a model's code, or touch other files."""

import json
import shutil
from pathlib import Path

import torch
from tiny_model import write_tiny_model

REMOTE = {"auto_map": {"AutoModel": "evil.Evil"}, "custom_pipeline": "evil.py", "trust_remote_code": True}


def test_a_run_opens_the_models_own_files_and_nothing_else(lab):
    """Region inpainting from a model's files to its pixels, with Python's audit hook listening.

    The model has code in all its folders, and configurations that name it. An earlier run has imported all libraries.
    """
    folder, made = lab.base / "models" / "CogVideoX_Fun" / "full-of-code", lab.base / "made"
    write_tiny_model(folder, "5b", seed=5)
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for file in ("__init__.py", "evil.py", "pipeline.py", "pytorch_model.bin", "scheduler.pkl"):
            (place / file).write_text(f"import os\nos.makedirs({str(made)!r}, exist_ok=True)\n")
        for config in place.glob("*config.json"):
            config.write_text(json.dumps({**json.loads(config.read_text()), **REMOTE}))

    region(lab, "tiny-5b", 1)
    path = lab.path(".txt")
    watch(lab, path)
    video = region(lab, folder.name, 2)
    watch(lab, "")
    shutil.rmtree(folder)

    assert torch.isfinite(video).all() and not made.exists()
    found = {"read": [], "write": [], "exec": []}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        kind, what = json.loads(line)
        assert kind in found, f"{kind} {what}"
        found[kind].append(what)
    read = {name.removeprefix(f"{folder}/") for name in found["read"] if name.startswith(str(folder))}
    assert "transformer/config.json" in read and "scheduler/scheduler_config.json" in read, "the hook hears"
    assert all(name.endswith((".safetensors", ".json", ".model")) for name in read), read
    assert not [name for name in found["exec"] if name.startswith(str(lab.base))]
    assert all(name.startswith((str(lab.base), "/dev/")) for name in found["write"]), found["write"]
    assert not [name for name in found["write"] if name.startswith(str(lab.base / "models"))]


def watch(lab, path: str) -> None:
    graph = lab.graph()
    graph.node("ProbeWatch", path=path, count=next(lab.numbers))
    lab.run(graph.workflow)


def region(lab, model: str, seed: int) -> torch.Tensor:
    graph = lab.graph()
    loaded = graph.loader(model)
    pixels = graph.tensor("Image", torch.rand(9, 48, 80, 3, generator=torch.Generator().manual_seed(seed)))
    mask = graph.tensor("Mask", torch.ones(9, 48, 80))
    built = graph.inpaint(loaded, loaded[2], pixels, mask, *graph.prompts(loaded[1], f"a red ball {seed}"))
    value = graph.sampler(loaded, built[0], built[1], built[2], seed=seed, steps=2)
    return graph.get(graph.fun("VAEDecode", vae=loaded[2], latent=value, tile_size=0, overlap=64))[0]

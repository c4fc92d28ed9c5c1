"""Failures, interrupts and changing files: each gets a clear error, and no run spoils a later one."""

import contextlib
import os
import random
import shutil
import time
from pathlib import Path

import pytest
import torch
from cogvideox_fun.tools import comfyui_server as comfy
from graph import ENCODE, Failed, Lab
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model

LOADERS = {  # node -> its input, and what its messages call what it loads
    "ModelLoader": ("model", "model"),
    "TextEncoderLoader": ("text_encoder", "text encoder"),
    "VAELoader": ("vae_name", "VAE"),
    "LoraLoader": ("lora_name", "LoRA"),
}
WEIGHTS = "diffusion_pytorch_model.safetensors"
LEFT = 128 * 1024  # bytes that ComfyUI's tensors may grow: less than a video or a latent has here


def sampled(lab, model: str, seed: int = 1, **options) -> torch.Tensor:
    graph, *rest = lab.setting(model)
    return graph.get(graph.sampler(*rest, seed=seed, steps=2, **options))[0]


def load(lab, loader: str, name, linked: bool = False) -> None:
    """Try to load something by its name, typed or from another node, and use it."""
    graph = lab.graph()
    given, _ = LOADERS[loader]
    inputs = {given: graph.node("ProbeText", text=name) if linked else name}
    if loader == "ModelLoader":
        inputs["weight_dtype"] = "default"
    if loader == "LoraLoader":
        inputs |= {"model": graph.loader("nano"), "strength": 1.0}
    value = graph.fun(loader, **inputs)
    if loader == "TextEncoderLoader":
        value = graph.prompts(value)[0]
    elif loader == "VAELoader":
        latent = graph.tensor("Latent", torch.zeros(1, 16, 1, 2, 2))
        value = graph.node("VAEDecode", samples=latent, vae=value)
    else:
        value = graph.fun("Scheduler", model=value, steps=1, spacing="auto", denoise=1.0)
    graph.get(value)


@pytest.mark.parametrize(
    "name, step, value",
    [
        ("cogvideox_ddim", 1, "nan"),
        ("cogvideox_ddim", 5, "-inf"),
        ("cogvideox_dpm++", 3, "nan"),
        ("euler", 3, "nan"),
        ("uni_pc", 3, "nan"),
    ],
)
def test_the_step_that_made_nan_is_named(lab, name, step, value):
    """The message names the step of five and the remedy, and no step is run after it."""
    graph, model, *rest = lab.setting("tiny-5b")
    path = lab.path(".txt")
    broken = graph.node("ProbeFail", model=model, step=step, value=value, path=path)
    with pytest.raises(
        Failed, match=f"step {step} of 5: the sampled latent holds NaN or infinity: if the model computes in"
    ):
        graph.get(graph.sampler(broken, *rest, steps=5, sampler_name=name))
    assert len(Path(path).read_text().splitlines()) == step


# names and files


@pytest.fixture(scope="module")
def outside(lab):
    """Files that could be loaded, but lie outside every models folder, and links to a folder beside them."""
    folder = lab.base / "outside"
    write_tiny_model(folder / "model", "5b")
    shutil.copy(comfy.ROOT / "models" / "nano" / "lora" / "ring.safetensors", folder / "ring.safetensors")
    shutil.copy(folder / "model" / "vae" / WEIGHTS, folder / "vae.safetensors")
    (folder / "beside").mkdir()
    links = [lab.base / "models" / kind / "link" for kind in ("CogVideoX_Fun", "vae", "text_encoders", "loras")]
    for link in links:
        link.symlink_to(folder / "beside", target_is_directory=True)
    yield folder
    for link in links:
        link.unlink()


@pytest.mark.parametrize("linked", [False, True], ids=["typed", "linked"])
@pytest.mark.parametrize(
    "loader, file, listed",
    [
        ("ModelLoader", "model", "tiny-5b"),
        ("TextEncoderLoader", "model/text_encoder", "tiny-5b/text_encoder"),
        ("VAELoader", "vae.safetensors", "tiny-5b/vae"),
        ("LoraLoader", "ring.safetensors", "ring.safetensors"),
    ],
)
def test_only_listed_names_are_loaded(lab, outside, loader, file, listed, linked):
    """No file outside the models folders, whether its name is typed or comes from another node."""
    for name in (f"../../outside/{file}", str(outside / file), f"link/../{file}"):
        with pytest.raises(Failed) as error:
            load(lab, loader, name, linked)
        assert f"the {LOADERS[loader][1]} {name} is not among those found" in str(error.value)
        refused = str(error.value).startswith("/prompt: 400 ")
        assert refused != linked, "what is typed is refused before anything runs"
    load(lab, loader, listed, linked)


@pytest.fixture
def changing(lab):
    folder = lab.base / "models" / "CogVideoX_Fun" / "changing"
    write_tiny_model(folder, "5b")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def video(lab, name: str, linked: bool = False) -> torch.Tensor:
    """What a model folder makes; its parts come from their own loaders, their names are typed or from another node."""
    graph = lab.graph()
    names = [name, f"{name}/text_encoder", f"{name}/vae"]
    name, text_encoder, vae = (graph.node("ProbeText", text=text) if linked else text for text in names)
    clip = graph.fun("TextEncoderLoader", text_encoder=text_encoder)
    vae = graph.fun("VAELoader", vae_name=vae)
    latent = graph.fun("EmptyLatent", width=80, height=48, length=5, batch_size=1)
    value = graph.sampler(graph.loader(name), *graph.prompts(clip), latent, steps=2)
    return graph.get(graph.fun("VAEDecode", vae=vae, latent=value, tile_size=0, overlap=64))[0]


@pytest.mark.parametrize(
    "part, how",
    [
        ("transformer", "overwritten"),
        ("transformer", "linked"),
        ("vae", "renamed"),
        ("vae", "linked"),
        ("text_encoder", "renamed"),
        ("text_encoder", "linked"),
    ],
)
def test_a_replaced_model_is_used(lab, changing, tmp_path, part, how):
    """Another file in its place, also where its name comes from another node; or other bytes in the same file."""
    linked = how == "linked"
    before = video(lab, "changing", linked)
    (old,) = (changing / part).glob("*.safetensors")
    new = write_tiny_model(tmp_path / "other", "5b", seed=7) / part / old.name
    if how == "overwritten":
        shutil.copyfile(new, old)
    else:
        os.replace(shutil.copy(new, old.with_suffix(".new")), old)
    assert not torch.allclose(video(lab, "changing", linked), before, atol=1e-3)


def test_a_replaced_lora_is_used(lab):
    """The file of the same name with other values."""
    path = lab.base / "models" / "loras" / "changing.safetensors"
    state, results = load_file(lab.base / "models" / "loras" / "ring.safetensors"), []
    for factor in (1, 2):
        save_file({key: value * factor for key, value in state.items()}, path)
        graph = lab.graph()
        model = graph.loader("nano")
        latent = graph.fun("EmptyLatent", width=64, height=64, length=1, batch_size=1)
        changed = graph.fun("LoraLoader", model=model, lora_name=path.name, strength=1.0)
        results += graph.get(graph.sampler(changed, *graph.prompts(model[1]), latent, steps=1))
    assert not torch.allclose(*results, atol=1e-3)
    path.unlink()


def test_without_room_for_it_a_mask_node_leaves_out_its_picture(lab):
    """They write a preview into ComfyUI's temporary folder; here a file is in its place."""

    def run(seed: int):
        graph = lab.graph()
        picture = graph.tensor("Image", torch.full((1, 48, 80, 3), 0.5))
        length = {"width": 80, "height": 48, "length": 9, "fit": "crop"}
        built = graph.fun("StartEndImage", start_image=graph.node("ProbeCollect", value=picture, count=seed), **length)
        return graph.get(built[0], built[1])

    expected, size = run(0), lab.log_size
    temp = lab.base / "temp"
    temp.rename(lab.base / "temp-away")
    temp.touch()
    try:
        assert all(torch.equal(a, b) for a, b in zip(run(1), expected, strict=True))
    finally:
        temp.unlink()
        (lab.base / "temp-away").rename(temp)
    assert "no preview of the mask" in lab.log_since(size)


# out of memory


@pytest.mark.long
@pytest.mark.parametrize("stock", [False, True], ids=["ours", "stock"])
@pytest.mark.parametrize("what", ["decoding", "encoding"])
def test_out_of_memory_is_tried_again_in_tiles_once(lab, what, stock):
    """In the middle of a video: in tiles of 256 pixels, with one line in the log; the next run is whole again.

    If tiles are too much as well, the error is ComfyUI's own.
    """
    whole, tiles = (out_of_memory(lab, what, 0, tile=tile) for tile in (0, 256))
    assert (whole - tiles).abs().max() > 1e-3
    size, path = lab.log_size, lab.path(".txt")
    first, second = (out_of_memory(lab, what, 1, path, stock=stock) for _ in range(2))  # ComfyUI keeps the VAE
    assert Path(path).read_text().split() == ["0", "256", "0"]
    for found, expected in ((first, tiles), (second, whole)):
        assert (found - expected).abs().max() <= 1e-5
    assert lab.log_since(size).count(f"out of memory while {what}: trying again in tiles of 256 pixels") == 1

    path = lab.path(".txt")
    with pytest.raises(Failed, match="out of memory"):
        out_of_memory(lab, what, 2, path)
    assert Path(path).read_text().split() == ["0", "256"]


def out_of_memory(lab, what: str, times: int, path: str = "", tile: int = 0, stock: bool = False) -> torch.Tensor:
    """Decode or encode with a VAE that runs out of memory the first times."""
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    if times:
        vae = graph.node("ProbeOutOfMemory", vae=vae, times=times, path=path)
    generator = torch.Generator().manual_seed(0)
    latent = graph.tensor("Latent", torch.randn(1, 16, 3, 6, 34, generator=generator))
    pixels = graph.tensor("Image", torch.rand(17, 48, 272, 3, generator=generator))
    options = {"vae": vae, "tile_size": tile, "overlap": 64}
    if what == "decoding":
        ours = graph.fun("VAEDecode", latent=latent, **options)
        return graph.get(graph.node("VAEDecode", samples=latent, vae=vae) if stock else ours)[0]
    ours = graph.fun("VAEEncode", video=pixels, **{**ENCODE, **options})
    return graph.get(graph.node("VAEEncode", pixels=pixels, vae=vae) if stock else ours)[0]


# one run after another


@pytest.fixture(scope="module")
def tidy(host, base, tmp_path_factory):
    """A ComfyUI that keeps no results of earlier runs, so that tensors that are left are a leak."""
    own = tmp_path_factory.mktemp("tidy")
    (own / "models").symlink_to(base / "models")
    (own / "custom_nodes").mkdir()
    (own / "custom_nodes" / "probe").symlink_to(Path(__file__).parent / "probe", target_is_directory=True)
    with comfy.serve(host, own, "--cache-classic") as server:
        yield Lab(server, own)


def held_tensors(lab) -> int:
    """Bytes of all tensors that ComfyUI holds after it has dropped the last run's results."""
    graph = lab.graph()
    trim = graph.node("ProbeTrim", count=next(lab.numbers))
    return int(lab.run(graph.workflow)["outputs"][trim.key]["text"][0])


def whole_run(lab, models=("tiny-5b",), stage: str | None = None, path: str = "", length: int = 29):
    """Video to video from VAE to VAE with each of the models, paused in a stage: (graph, values)."""
    graph = lab.graph()
    pixels = graph.tensor("Image", torch.rand(length, 64, 64, 3, generator=torch.Generator().manual_seed(0)))
    values = []
    for name in models:
        loaded = graph.loader(name)
        parts = {"model": loaded[0], "clip": loaded[1], "vae": loaded[2]}
        if stage:
            part, module, call = STAGES[stage]
            parts[part] = graph.node("ProbePause", value=parts[part], module=module, call=call, path=path)[0]
        latent = graph.fun("VAEEncode", vae=parts["vae"], video=pixels, **ENCODE)
        prompts = graph.prompts(parts["clip"])
        value = graph.sampler(parts["model"], *prompts, latent, steps=4, cfg=1.0, denoise=0.8)
        values.append(graph.fun("VAEDecode", vae=parts["vae"], latent=value, tile_size=0, overlap=64))
    return graph, values


def results(lab, *models: str, length: int = 29) -> list[torch.Tensor]:
    graph, values = whole_run(lab, models, length=length)
    return graph.get(*values)


STAGES = {  # stage -> what is paused, one of its modules, and at which of its calls; more would follow
    "text encoding": ("clip", "cond_stage_model.t5xxl.transformer.encoder.block.0", 1),
    "encoding": ("vae", "first_stage_model.encoder.conv_in", 2),
    "sampling": ("model", "model.diffusion_model.transformer_blocks.0", 3),
    "decoding": ("vae", "first_stage_model.decoder.conv_in", 2),
}


@pytest.mark.long
@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_stops_the_stage_and_leaves_nothing(tidy, stage):
    """No call of the stage follows, nothing later runs, no tensor stays, and the next run is as before."""
    (before,) = results(tidy, "tiny-5b")
    held = held_tensors(tidy)
    calls = Path(tidy.path(".txt"))
    graph, (value,) = whole_run(tidy, stage=stage, path=str(calls))
    saved = tidy.path()
    graph.node("ProbeSave", value=value, path=saved)
    prompt = tidy.server.queue(graph.workflow)
    _, _, call = STAGES[stage]
    deadline = time.monotonic() + 60
    while not calls.is_file() or len(calls.read_text().splitlines()) < call:
        assert time.monotonic() < deadline, tidy.server.tail()
        time.sleep(0.02)
    tidy.server.post("/interrupt", {})
    history = tidy.server.wait(prompt, 60)
    assert "execution_interrupted" in [kind for kind, _ in history["status"]["messages"]]
    assert len(calls.read_text().splitlines()) == call and not Path(saved).exists()
    assert held_tensors(tidy) - held <= LEFT
    assert torch.equal(results(tidy, "tiny-5b")[0], before)


def test_two_models_in_one_graph(tidy):
    alone = [*results(tidy, "tiny-2b"), *results(tidy, "tiny-5b")]
    together = results(tidy, "tiny-2b", "tiny-5b")
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


def random_graph(lab, name: str, choose: random.Random):
    """A graph that runs a model in one of many ways, or fails: (graph, value)."""
    graph = lab.graph()
    loaded = graph.loader(name, choose.choice(["default", "default", "fp8_e4m3fn"]))
    model, prompts = loaded[0], graph.prompts(loaded[1], choose.choice(["a dog", "(a cat:1.3)", ""]))
    size = {"width": 80, "height": 48, "length": choose.choice([9, 13, 17])}
    latent = graph.fun("EmptyLatent", batch_size=choose.choice([1, 1, 2]), **size)
    if choose.random() < 0.3:
        options = {"context_overlap": 4, "context_schedule": "standard_static", "fuse_method": "pyramid"}
        model = graph.fun("ContextWindows", model=model, context_length=9, **options)
    if name == "nano":
        model = graph.fun("LoraLoader", model=model, lora_name="ring.safetensors", strength=choose.uniform(-1, 1))
    if choose.random() < 0.3:
        cache = choose.choice(["EasyCache", "LazyCache"])
        model = graph.node(cache, model=model, reuse_threshold=3.0, start_percent=0.1, end_percent=0.9, verbose=False)
    if choose.random() < 0.2:
        step = choose.choice([1, 2])
        model = graph.node("ProbeFail", model=model, step=step, value="nan", path=lab.path(".txt"))
    vae = loaded[2]
    if choose.random() < 0.2:
        vae = graph.node("ProbeOutOfMemory", vae=vae, times=choose.choice([1, 2, 3]), path=lab.path(".txt"))
    if choose.random() < 0.7:
        picture = graph.tensor("Image", torch.full((1, 48, 80, 3), 0.5))
        built = graph.fun("StartEndImage", fit="crop", start_image=picture, **size)
        found = graph.inpaint(model, vae, built[0], built[1], *prompts)
        prompts, latent = (found[0], found[1]), choose.choice([latent, found[2]])
    options = {
        "seed": choose.randrange(2**32),
        "steps": choose.choice([1, 2, 3]),
        "cfg": choose.choice([1.0, 6.0]),
        "sampler_name": choose.choice(["cogvideox_ddim", "cogvideox_dpm++", "cogvideox_pndm", "euler", "uni_pc"]),
        "spacing": choose.choice(["auto", "trailing", "linspace"]),
        "denoise": choose.choice([1.0, 0.5, 0.0]),
        "dynamic_cfg": choose.random() < 0.3,
    }
    value = graph.sampler(model, *prompts, latent, **options)
    return graph, graph.fun("VAEDecode", vae=vae, latent=value, tile_size=choose.choice([0, 64]), overlap=16)


@pytest.mark.long
def test_random_graphs_never_spoil_a_later_run(tidy):
    """Whether they succeed or fail: a plain run of their model gives what it gave before, and no tensors are left."""
    choose = random.Random(0)
    models = ["tiny-2b", "tiny-5b", "tiny-v1.5", "nano"]
    expected = {name: results(tidy, name, length=13) for name in models}
    held = held_tensors(tidy)
    succeeded = 0
    for _ in range(6):
        for name in models:
            graph, value = random_graph(tidy, name, choose)
            with contextlib.suppress(Failed):
                graph.get(value)
                succeeded += 1
            assert torch.equal(results(tidy, name, length=13)[0], expected[name][0]), graph.workflow
    assert 6 < succeeded < 20, "some fail, some succeed"
    assert held_tensors(tidy) - held <= LEFT

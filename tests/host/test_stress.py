"""NaN named with its step, names that climb out, folders of hundreds, and models that change between two runs."""

import os
import shutil

import pytest
import torch
from cogvideox_fun.tools import comfyui_server as comfy
from graph import Failed
from safetensors.torch import load_file, save_file
from test_register import options_of
from tiny_model import write_tiny_model

MANY = 300  # models of each kind
LOADERS = {  # node -> its input, and what its messages call what it loads
    "ModelLoader": ("model", "model"),
    "TextEncoderLoader": ("text_encoder", "text encoder"),
    "VAELoader": ("vae_name", "VAE"),
    "LoraLoader": ("lora_name", "LoRA"),
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def sampled(lab, model: str, seed: int = 1, **options) -> torch.Tensor:
    graph, *rest = lab.setting(model)
    return graph.get(graph.sampler(*rest, seed=seed, steps=2, **options))[0]


# NaN in a step


@pytest.mark.parametrize("step", [1, 3, 5])
@pytest.mark.parametrize("value", ["nan", "-inf"])
def test_the_step_that_made_nan_is_named(lab, step, value):
    fails_at_a_step(lab, "cogvideox_ddim", step, value)


@pytest.mark.parametrize("name", ["cogvideox_euler", "cogvideox_dpm++", "euler", "ddim", "dpmpp_2m", "uni_pc"])
def test_every_kind_of_sampler_names_the_step(lab, name):
    fails_at_a_step(lab, name, 3, "nan")


def fails_at_a_step(lab, name: str, step: int, value: str) -> None:
    """The message names the step of five, the remedy follows, and no step is run after it."""
    graph, model, *rest = lab.setting("tiny-5b")
    path = lab.path(".txt")
    broken = graph.node("ProbeFail", model=model, step=step, value=value, path=path)
    with pytest.raises(Failed, match=f"step {step} of 5: the sampled latent holds NaN or infinity: if weight_dtype"):
        graph.get(graph.sampler(broken, *rest, steps=5, sampler_name=name))
    with open(path, encoding="utf-8") as file:
        assert len(file.readlines()) == step


def test_a_latent_that_comes_with_nan_is_not_the_models_fault(lab):
    graph, model, positive, negative, _ = lab.setting("tiny-5b")
    latent = graph.tensor("Latent", torch.full((1, 16, 3, 6, 10), torch.inf))
    with pytest.raises(Failed, match="the given latent holds NaN or infinity: check the node that made it"):
        graph.get(graph.sampler(model, positive, negative, latent, denoise=0.5))


# names that climb out


@pytest.fixture(scope="module")
def outside(lab):
    """Loadable files outside every models folder, and a link in each of them to a folder beside those files."""
    base = lab.base
    folder = base / "outside"
    write_tiny_model(folder / "model", "5b")
    shutil.copy(comfy.ROOT / "models" / "nano" / "lora" / "ring.safetensors", folder / "ring.safetensors")
    shutil.copy(folder / "model" / "vae" / WEIGHTS, folder / "vae.safetensors")
    (folder / "beside").mkdir()
    doors = [base / "models" / kind / "door" for kind in ("CogVideoX_Fun", "vae", "text_encoders", "loras")]
    for door in doors:
        door.symlink_to(folder / "beside", target_is_directory=True)
    yield folder
    for door in doors:
        door.unlink()


NAMES = {
    "ModelLoader": "model",
    "TextEncoderLoader": "model/text_encoder",
    "VAELoader": "vae.safetensors",
    "LoraLoader": "ring.safetensors",
}


def load(lab, loader: str, name, linked: bool = False) -> None:
    """Try to load something by a name that the loader does not list."""
    graph = lab.graph()
    given, _ = LOADERS[loader]
    inputs = {given: graph.node("ProbeText", text=name) if linked else name}
    if loader == "ModelLoader":
        inputs["weight_dtype"] = "default"
    if loader == "LoraLoader":
        inputs |= {"model": graph.loader("tiny-5b"), "strength": 1.0}
    value = graph.fun(loader, **inputs)
    if loader == "TextEncoderLoader":
        value = graph.prompts(value)[0]
    elif loader == "VAELoader":
        latent = graph.tensor("Latent", torch.zeros(1, 16, 1, 2, 2))
        value = graph.node("VAEDecode", samples=latent, vae=value)
    else:
        value = graph.fun("Scheduler", model=value, steps=1, spacing="auto", denoise=1.0)
    graph.get(value)


@pytest.mark.parametrize("linked", [False, True], ids=["typed", "linked"])
@pytest.mark.parametrize("loader", LOADERS)
def test_a_name_that_climbs_out_is_refused(lab, outside, loader, linked):
    """Also where a file of that name exists and could be loaded, and where the name comes from another node."""
    file = NAMES[loader]
    names = [
        "../../../../etc/passwd",
        f"../../outside/{file}",
        str(outside / file),
        f"door/../{file}",
        f"tiny-5b/../../../outside/{file}",
        "..\\..\\outside\\model",
    ]
    for name in names[1:4] if linked else names:
        with pytest.raises(Failed) as error:
            load(lab, loader, name, linked)
        message = str(error.value)
        assert ("400" in message) != linked  # what is typed is refused before anything runs
        if not linked:
            message = message.encode().decode("unicode_escape")  # it comes as JSON
        assert f"the {LOADERS[loader][1]} {name} is not among those found" in message


@pytest.mark.parametrize(
    "loader, name",
    [
        ("ModelLoader", "tiny-5b"),
        ("TextEncoderLoader", "tiny-5b/text_encoder"),
        ("VAELoader", "tiny-5b/vae"),
        ("LoraLoader", "fitting.safetensors"),
    ],
)
def test_a_listed_name_may_come_from_another_node(lab, loader, name):
    if loader == "LoraLoader":
        state = load_file(lab.base / "models" / "CogVideoX_Fun" / "tiny-5b" / "transformer" / WEIGHTS)
        key = "transformer_blocks.0.attn1.to_q"
        down, up = torch.ones(2, state[f"{key}.weight"].shape[1]), torch.ones(state[f"{key}.weight"].shape[0], 2)
        pair = {f"transformer.{key}.lora_A.weight": down, f"transformer.{key}.lora_B.weight": up}
        save_file(pair, lab.base / "models" / "loras" / name)
    load(lab, loader, name, linked=True)


# a folder of hundreds


@pytest.fixture
def many(lab):
    models = lab.base / "models"
    source = models / "CogVideoX_Fun" / "tiny-5b"
    folders = [models / "CogVideoX_Fun" / "many", models / "diffusion_models" / "many", models / "loras" / "many"]
    for folder in folders:
        folder.mkdir()
    for index in range(MANY):
        model = folders[0] / f"model-{index}"
        shutil.copytree(source, model, copy_function=os.link)
        os.link(models / "diffusion_models" / "no-config.safetensors", folders[1] / f"file-{index}.safetensors")
        (folders[2] / f"lora-{index}.safetensors").symlink_to(models / "loras" / "ring.safetensors")
    yield [f"many/model-{index}" for index in range(MANY)], [f"many/file-{index}.safetensors" for index in range(MANY)]
    for folder in folders:
        shutil.rmtree(folder)


def test_a_folder_with_hundreds_of_models(lab, many):
    """Listed once each; the last one runs; and a wrong name gets a message that can be read.

    How many function calls the list costs is counted in tests/unit/test_odd_folders.py.
    """
    info = lab.server.get("/object_info")
    folders, files = many
    listed = options_of(info, "ModelLoader", "model")
    assert len(listed) == len(set(listed)) and {*folders, *files, "tiny-5b"} <= set(listed)
    assert {f"{name}/vae" for name in folders} <= set(options_of(info, "VAELoader", "vae_name"))
    assert {f"{name}/text_encoder" for name in folders} <= set(options_of(info, "TextEncoderLoader", "text_encoder"))

    expected = sampled(lab, "tiny-5b")
    assert torch.equal(sampled(lab, folders[-1]), expected)
    with pytest.raises(Failed, match="the LoRA no.safetensors is not among those found .* more") as error:
        load(lab, "LoraLoader", "no.safetensors")
    assert len(str(error.value)) < 5000


# a model that changes between two runs


@pytest.fixture
def changing(lab):
    folder = lab.base / "models" / "CogVideoX_Fun" / "changing"
    write_tiny_model(folder, "5b")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def video(lab, name: str, linked: bool = False) -> torch.Tensor:
    """What a model folder makes, its parts taken by their own loaders, their names typed or from another node."""
    graph = lab.graph()
    names = [name, f"{name}/text_encoder", f"{name}/vae"]
    name, text_encoder, vae = (graph.node("ProbeText", text=text) if linked else text for text in names)
    clip = graph.fun("TextEncoderLoader", text_encoder=text_encoder)
    vae = graph.fun("VAELoader", vae_name=vae)
    latent = graph.fun("EmptyLatent", width=80, height=48, length=5, batch_size=1)
    value = graph.sampler(graph.loader(name), *graph.prompts(clip), latent, steps=2)
    return graph.get(graph.fun("VAEDecode", vae=vae, latent=value, tile_size=0, overlap=64))[0]


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
@pytest.mark.parametrize("how", ["renamed", "overwritten", "linked"])
def test_a_replaced_model_is_used(lab, changing, tmp_path, part, how):
    """By another file in its place, also where its name comes from another node, and by other bytes in the same file
    while the old ones are mapped."""
    linked = how == "linked"
    before = video(lab, "changing", linked)
    other = write_tiny_model(tmp_path / "other", "5b", seed=7)
    (old,) = (changing / part).glob("*.safetensors")
    new = other / part / old.name
    if how != "overwritten":
        shutil.copy(new, old.with_suffix(".new"))
        os.replace(old.with_suffix(".new"), old)
    else:
        shutil.copyfile(new, old)
    after = video(lab, "changing", linked)
    assert not torch.allclose(after, before, atol=1e-3)
    fresh = changing.with_name("fresh")
    shutil.copytree(changing, fresh)
    try:
        assert torch.equal(video(lab, "fresh"), after)
    finally:
        shutil.rmtree(fresh)


def test_a_replaced_lora_is_used(lab):
    """The file of the same name, made twice as strong."""
    state = {
        key: value.clone() for key, value in load_file(lab.base / "models" / "loras" / "ring.safetensors").items()
    }
    path = lab.base / "models" / "loras" / "changing.safetensors"

    def result() -> torch.Tensor:
        graph = lab.graph()
        model = graph.loader("nano")
        latent = graph.fun("EmptyLatent", width=64, height=64, length=1, batch_size=1)
        changed = graph.fun("LoraLoader", model=model, lora_name=path.name, strength=1.0)
        return graph.get(graph.sampler(changed, *graph.prompts(model[1]), latent, steps=1))[0]

    try:
        shutil.copy(lab.base / "models" / "loras" / "ring.safetensors", path)
        before = result()
        up = [key for key in state if "lora_B" in key or "lora_up" in key]
        assert up
        save_file({key: 2 * value if key in up else value for key, value in state.items()}, path)
        assert not torch.allclose(result(), before, atol=1e-3)
        path.unlink()
        with pytest.raises(Failed, match="the LoRA changing.safetensors is not among those found"):
            result()
    finally:
        path.unlink(missing_ok=True)


def test_a_deleted_model_says_so_and_comes_back(lab, changing):
    before = video(lab, "changing")
    hidden = changing.with_suffix(".away")
    away = lab.base / hidden.name
    shutil.move(changing, away)
    for loader, name in (
        ("ModelLoader", "changing"),
        ("VAELoader", "changing/vae"),
        ("TextEncoderLoader", "changing/text_encoder"),
    ):
        with pytest.raises(Failed, match=f"the {LOADERS[loader][1]} {name} is not among those found"):
            load(lab, loader, name)
    assert torch.isfinite(video(lab, "tiny-5b")).all()
    shutil.move(away, changing)
    assert torch.equal(video(lab, "changing"), before)


def test_a_file_deleted_from_a_model(lab, changing):
    """The folder is still listed; its weights are not there."""
    before = video(lab, "changing")
    weights = changing / "transformer" / WEIGHTS
    shutil.move(weights, lab.base / "weights.away")
    with pytest.raises(Failed, match="changing.transformer.*(no|missing|lacks|download)"):
        video(lab, "changing")
    shutil.move(lab.base / "weights.away", weights)
    assert torch.equal(video(lab, "changing"), before)

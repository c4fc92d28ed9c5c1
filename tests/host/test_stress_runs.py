"""A full disk, an interrupt in every stage, out of memory, fifty runs, two models in a graph, two graphs at once."""

import contextlib
import json
import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from cogvideox_fun.benchmarks.timed import anonymous_bytes
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.tools import comfyui_server as comfy
from graph import ENCODE, Failed, Graph, Lab
from safetensors.torch import load_file
from test_register import options_of
from test_stress import sampled
from websockets.sync.client import connect

RUNS, WARM = 50, 10
MARGIN = 40 * 2**20  # bytes that the host's memory may grow: it goes up and down by 33 MB whatever is run
LEFT = 128 * 1024  # bytes that its tensors may grow: less than a video or a latent has here


# a full disk


@contextlib.contextmanager
def full_disk(lab, folder):
    """A disk of 1 MB at a folder, or where nothing can be mounted, files of at most 1 MB more than the host's log."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = shutil.which("mount") and subprocess.run(command, capture_output=True).returncode == 0
    pid = lab.server.process.pid
    unlimited = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    if not mounted:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (lab.log_size + 2**20, unlimited[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_while_a_model_is_saved(lab):
    """The host's ModelSave fails; what it left behind is not taken for a model, and the next run works."""
    folder = lab.base / "output" / "diffusion_models" / "full"

    def save(prefix):
        graph = lab.graph()
        graph.node("ModelSave", model=graph.loader("nano"), filename_prefix=prefix)
        lab.run(graph.workflow)

    expected = sampled(lab, "tiny-5b")
    with full_disk(lab, folder):
        with pytest.raises(Failed, match="ModelSave: .*(No space left|too large|os error)"):
            save("diffusion_models/full/model")
        listed = options_of(lab.server.get("/object_info"), "ModelLoader", "model")
        left = [path.name for path in folder.glob("*.safetensors")]
        for name in (name for name in listed if name.startswith("full/")):
            with pytest.raises(Failed, match="truncated.*download it again"):
                sampled(lab, name)
        assert left or not any(name.startswith("full/") for name in listed)
        assert torch.equal(sampled(lab, "tiny-5b"), expected)
    shutil.rmtree(folder)
    save("diffusion_models/full/model")
    (saved,) = folder.glob("*.safetensors")
    open_checkpoint(saved).weights.load()
    shutil.rmtree(folder)


def test_a_full_disk_while_a_video_is_saved(lab):
    folder = lab.base / "output" / "full"
    noise = torch.rand(33, 384, 384, 3, generator=torch.Generator().manual_seed(0))

    def save():
        graph = lab.graph()
        saved = graph.node("CreateVideo", images=graph.tensor("Image", noise), fps=8.0)
        graph.node("SaveVideo", video=saved, filename_prefix="full/video", format="mp4", codec="h264")
        return lab.run(graph.workflow)

    expected = sampled(lab, "tiny-5b")
    with full_disk(lab, folder):
        with pytest.raises(Failed, match="SaveVideo: .*(No space left|too large)"):
            save()
        assert torch.equal(sampled(lab, "tiny-5b"), expected)
    (path,) = comfy.output_files(lab.server, save(), lab.base)
    assert path.stat().st_size > 2**20
    shutil.rmtree(folder)


def test_a_full_disk_costs_the_mask_nodes_their_picture_only(lab):
    """They write a preview into the host's temporary folder."""

    def run():
        graph = lab.graph()
        built = graph.fun("StartEndImage", width=80, height=48, length=9, fit="crop", start_image=picture(graph))
        return graph.get(built[0], built[1])

    def picture(graph):
        return graph.tensor("Image", torch.rand(1, 48, 80, 3, generator=torch.Generator().manual_seed(next(numbers))))

    numbers = iter((0, 0))
    expected, size = run(), lab.log_size
    folder = lab.base / "temp"
    probe = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if probe.returncode:
        pytest.skip(f"nothing can be mounted here: {probe.stderr.decode().strip()}")
    try:
        with contextlib.suppress(OSError), (folder / "filling").open("wb") as file:
            file.write(bytes(2**21))
        assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    assert "no preview of the mask" in lab.log_since(size)


# interrupt, and memory


@pytest.fixture(scope="module")
def tidy(host, lab, tmp_path_factory):
    """A host that keeps no results of earlier runs, as newer ones do by default, so that what is left is a leak."""
    base = tmp_path_factory.mktemp("tidy")
    (base / "models").symlink_to(lab.base / "models")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "probe").symlink_to(lab.base / "custom_nodes" / "probe")
    with comfy.serve(host, base, "--cache-classic") as server:
        yield Lab(server, base)


def held_tensors(lab) -> int:
    """Bytes of all tensors that the host holds once it has dropped the last run's results and given back memory."""
    graph = lab.graph()
    trim = graph.node("ProbeTrim", count=next(lab.numbers))
    return int(lab.run(graph.workflow)["outputs"][trim.key]["text"][0])


def held_bytes(lab) -> int:
    """RssAnon of the host once it has dropped the last run's results."""
    held_tensors(lab)
    return anonymous_bytes(lab.server.process.pid)


STAGES = {  # stage -> what is paused, one of its modules, at which call, and in how many calls that stage ends
    "text encoding": ("clip", "cond_stage_model.t5xxl.transformer.encoder.block.0", 1, 2),
    "encoding": ("vae", "first_stage_model.encoder.conv_in", 2, 4),
    "sampling": ("model", "model.diffusion_model.transformer_blocks.0", 3, 4),
    "decoding": ("vae", "first_stage_model.decoder.conv_in", 2, 5),
}


def whole_run(lab, stage: str | None = None, path: str = "") -> tuple[Graph, list[str]]:
    """Video to video of 33 frames of 64 x 64 with the tiny 5B, from its VAE to its VAE; paused in a stage."""
    graph = lab.graph()
    loaded = graph.loader("tiny-5b")
    parts = {"model": loaded[0], "clip": loaded[1], "vae": loaded[2]}
    if stage:
        part, module, call, _ = STAGES[stage]
        parts[part] = graph.node("ProbePause", value=parts[part], module=module, call=call, path=path)[0]
    pixels = graph.tensor("Image", torch.rand(33, 64, 64, 3, generator=torch.Generator().manual_seed(0)))
    latent = graph.fun("VAEEncode", vae=parts["vae"], video=pixels, **ENCODE)
    positive, negative = graph.prompts(parts["clip"])
    value = graph.sampler(parts["model"], positive, negative, latent, steps=4, cfg=1.0, denoise=0.8)
    return graph, graph.fun("VAEDecode", vae=parts["vae"], latent=value, tile_size=0, overlap=64)


@pytest.fixture(scope="module")
def undisturbed(tidy):
    """What the run gives, and what the host holds after it."""
    graph, value = whole_run(tidy)
    (video,) = graph.get(value)
    return video, held_tensors(tidy), held_bytes(tidy)


@pytest.mark.parametrize("stage", STAGES)
def test_an_interrupt_stops_the_stage_and_leaves_nothing(tidy, undisturbed, stage):
    """No call of the stage follows, nothing later runs, memory is back within 40 MB, the tensors within 128 kB."""
    video, tensors, before = undisturbed
    calls = Path(tidy.path(".txt"))
    graph, value = whole_run(tidy, stage, str(calls))
    saved = tidy.path()
    graph.node("ProbeSave", value=value, path=saved)
    prompt = tidy.server.queue(graph.workflow)
    _, _, call, of = STAGES[stage]
    deadline = time.monotonic() + 60
    while not calls.is_file() or len(calls.read_text().splitlines()) < call:
        assert time.monotonic() < deadline, tidy.server.tail()
        time.sleep(0.02)
    tidy.server.post("/interrupt", {})
    history = tidy.server.wait(prompt, 60)
    assert "execution_interrupted" in [kind for kind, _ in history["status"]["messages"]]
    assert len(calls.read_text().splitlines()) == call < of and not Path(saved).exists()
    grown = held_bytes(tidy) - before
    assert grown <= MARGIN, f"{grown / 2**20:.1f} MB after {stage}"
    assert held_tensors(tidy) - tensors <= LEFT
    graph, value = whole_run(tidy)
    assert torch.equal(graph.get(value)[0], video)


def test_fifty_queued_runs_do_not_grow(tidy):
    """Every stage runs anew each time. After the tenth run and after the last one the host's memory is the same within
    the 33 MB by which it goes up and down, and its tensors to less than one run's latent."""

    def queue(seed: int) -> str:
        graph = tidy.graph()
        loaded = graph.loader("tiny-2b")
        positive, negative = graph.prompts(loaded[1], "a red ball " * (1 + seed))
        video = graph.tensor("Image", pixels)
        encode = {**ENCODE, "noise_augmentation": 0.1, "noise_seed": seed}
        latent = graph.fun("VAEEncode", vae=loaded[2], video=video, **encode)
        value = graph.sampler(loaded, positive, negative, latent, seed=seed, steps=2, denoise=0.9)
        value = graph.fun("VAEDecode", vae=loaded[2], latent=value, tile_size=0, overlap=64)
        graph.node("ProbeSave", value=value, path=saved[seed])
        return tidy.server.queue(graph.workflow)

    def run(seeds) -> None:
        prompts = [queue(seed) for seed in seeds]
        for prompt in prompts:
            assert comfy.error_of(tidy.server.wait(prompt, 120)) is None

    pixels = torch.rand(5, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    saved = [tidy.path() for _ in range(RUNS)]
    run(range(WARM))
    tensors, before = held_tensors(tidy), held_bytes(tidy)
    run(range(WARM, RUNS))
    grown = held_bytes(tidy) - before
    assert grown <= MARGIN, f"{grown / 2**20:.1f} MB in {RUNS - WARM} runs"
    assert held_tensors(tidy) - tensors <= LEFT
    results = [load_file(path)["value"] for path in saved]
    assert len({float(result.double().sum()) for result in results}) == RUNS


# out of memory


@pytest.mark.parametrize("what", ["decoding", "encoding"])
def test_out_of_memory_comes_once_and_the_next_run_is_whole_again(lab, what):
    """In the middle of a video: whole, then in tiles, with one line in the log; then whole again, with none."""
    whole, tiles = (out_of_memory(lab, what, 0, tile) for tile in (0, 256))
    assert (whole - tiles).abs().max() > 1e-3
    size = lab.log_size
    path = lab.path(".txt")
    first, second = (out_of_memory(lab, what, 1, 0, path) for _ in range(2))  # the VAE stays in the host's cache
    assert Path(path).read_text().split() == ["0", "256", "0"]
    for found, expected in ((first, tiles), (second, whole)):
        assert (found - expected).abs().max() <= 1e-5
    assert lab.log_since(size).count(f"out of memory while {what}: trying again in tiles of 256 pixels") == 1


@pytest.mark.parametrize("what", ["decoding", "encoding"])
def test_tiles_that_do_not_fit_either_are_an_error(lab, what):
    """The host's own, after one try of each; a tile size that is small enough as given is not tried twice."""
    path = lab.path(".txt")
    with pytest.raises(Failed, match="out of memory"):
        out_of_memory(lab, what, 2, 0, path)
    with pytest.raises(Failed, match="out of memory"):
        out_of_memory(lab, what, 1, 128, path)
    assert Path(path).read_text().split() == ["0", "256", "128"]
    assert torch.isfinite(sampled(lab, "tiny-5b")).all()


def out_of_memory(lab, what: str, times: int, tile: int, path: str = "") -> torch.Tensor:
    """Decode or encode by the pack's node with a VAE that runs out of memory the first times."""
    graph = lab.graph()
    vae = graph.fun("VAELoader", vae_name="tiny-5b/vae")
    if times:
        vae = graph.node("ProbeOutOfMemory", vae=vae, times=times, path=path)
    generator = torch.Generator().manual_seed(0)
    options = {"vae": vae, "tile_size": tile, "overlap": 64}
    if what == "decoding":
        latent = graph.tensor("Latent", torch.randn(1, 16, 3, 6, 34, generator=generator))
        return graph.get(graph.fun("VAEDecode", latent=latent, **options))[0]
    video = graph.tensor("Image", torch.rand(17, 48, 272, 3, generator=generator))
    return graph.get(graph.fun("VAEEncode", video=video, **{**ENCODE, **options}))[0]


# two at once


def test_two_models_in_one_graph(lab):
    """Sampled by turns and decoded by each other's turn, each as it is alone."""

    def add(graph, name):
        loaded = graph.loader(name)
        latent = graph.fun("EmptyLatent", width=80, height=48, length=9, batch_size=1)
        value = graph.sampler(loaded, *graph.prompts(loaded[1]), latent, steps=2)
        again = graph.sampler(loaded, *graph.prompts(loaded[1], "a dog"), value, steps=2, denoise=0.5)
        return again, graph.fun("VAEDecode", vae=loaded[2], latent=again, tile_size=0, overlap=64)

    def alone(name):
        graph = lab.graph()
        return graph.get(*add(graph, name))

    expected = [*alone("tiny-2b"), *alone("tiny-5b")]
    lab.server.post("/free", {"unload_models": True, "free_memory": True})
    graph = lab.graph()
    found = graph.get(*add(graph, "tiny-2b"), *add(graph, "tiny-5b"))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert not torch.allclose(found[0], found[2], atol=0.1)


def test_two_clients_at_once(lab):
    """Queued together: each hears of its own run alone, and gets its own result."""
    names = "tiny-2b", "tiny-5b"
    expected = [sampled(lab, name, seed=3) for name in names]
    assert not torch.allclose(*expected, atol=0.1)
    lab.server.post("/free", {"unload_models": True, "free_memory": True})
    url = lab.server.url.replace("http", "ws")
    with (
        connect(f"{url}/ws?clientId=one", max_size=None) as one,
        connect(f"{url}/ws?clientId=two", max_size=None) as two,
    ):
        saved, prompts = [], []
        for client, name in zip(("one", "two"), names, strict=True):
            graph, *rest = lab.setting(name)
            saved.append(lab.path())
            graph.node("ProbeSave", value=graph.sampler(*rest, seed=3, steps=2), path=saved[-1])
            answer = lab.server.post("/prompt", {"prompt": graph.workflow, "client_id": client})
            prompts.append(answer["prompt_id"])
        for socket, prompt in ((one, prompts[0]), (two, prompts[1])):
            heard = messages_until_success(socket)
            assert {data["prompt_id"] for data in heard if "prompt_id" in data} == {prompt}
    assert all(torch.equal(load_file(path)["value"], value) for path, value in zip(saved, expected, strict=True))


def messages_until_success(socket) -> list[dict]:
    """The data of a client's messages up to the end of its run."""
    heard = []
    while True:
        message = socket.recv(timeout=120)
        if isinstance(message, str):
            message = json.loads(message)
            heard.append(message["data"])
            assert message["type"] != "execution_error", message
            if message["type"] == "execution_success":
                return heard

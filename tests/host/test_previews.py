"""Moving previews on the websocket, and drafts by a small decoder, in a running ComfyUI."""

import base64
import io
import re
import shutil
import time

import pytest
import torch
import torch.nn.functional as F
from cogvideox_fun.model_loading.files.tiny_decoder import load_tiny_decoder
from cogvideox_fun.model_loading.networks.tiny_decoder import TinyDecoder
from cogvideox_fun.sampling.preview import FRAMES_PER_SECOND
from cogvideox_fun.tools import comfyui_server as comfy
from graph import Failed, Lab, closest
from listener import Listener, listen
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_model import random_weights

EVENT = "cogvideox-fun.preview"
SIZE = {"width": 128, "height": 128, "length": 9, "batch_size": 1}
PROMPT = "a red circle moves right over the night"


def brightness() -> dict[str, torch.Tensor]:
    """A decoder that shows the first channel of a latent as grey, 0.5 + 0.3 z or a little less: it tells the scale."""
    state = {name: torch.zeros_like(value) for name, value in TinyDecoder((8, 8, 4, 4)).state_dict().items()}
    for place in (1, 8, 14, 20):
        state[f"decoder.{place}.weight"][0, 0, 1, 1] = 1
    state["decoder.7.conv.weight"][0, 0] = 1
    for place, second, weaker in ((13, 8, 0.8), (19, 4, 0.9)):  # all frames differ: WebP joins equal ones
        state[f"decoder.{place}.conv.weight"][0, 0], state[f"decoder.{place}.conv.weight"][second, 0] = 1, weaker
    state["decoder.1.bias"][0] = 2  # above 0, where ReLU changes nothing
    state["decoder.22.weight"][:, 0, 1, 1], state["decoder.22.bias"][:] = 0.3, -0.1
    return state


@pytest.fixture(scope="module")
def watched(host, base):
    """A ComfyUI whose page sees previews of the best kind, with small decoders in models/vae_approx."""
    approx = base / "models" / "vae_approx"
    approx.mkdir(exist_ok=True)
    save_file(brightness(), approx / "taecvx.safetensors")
    save_file(random_weights(TinyDecoder((8, 8, 4, 4)), seed=5), approx / "any.safetensors")
    with comfy.serve(host, base, "--preview-method", "auto") as server:
        yield Lab(server, base)
        assert "a preview failed" not in server.log.read_text(errors="replace")
    shutil.rmtree(approx)


def run(lab: Lab, workflow: dict, **extra) -> Listener:
    """Run a graph as a page does; what the page got."""
    with listen(lab.server.url, "a-page") as page:
        prompt = lab.server.post("/prompt", {"prompt": workflow, "client_id": page.client_id, "extra_data": extra})
        message = comfy.error_of(lab.server.wait(prompt["prompt_id"], 300))
        assert message is None, message
        for _ in range(50):  # the end of the run is told after it is in the history
            if any(data["node"] is None for data in page.of("executing")):
                return page
            time.sleep(0.1)
    raise AssertionError(f"the run's end did not arrive, only {[kind for kind, _ in page.events]}")


def clips(page: Listener) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(data["image"]))) for data in page.of(EVENT)]


def frames(clip: Image.Image) -> torch.Tensor:
    """F 3 H W of 0..1."""
    found = []
    for number in range(clip.n_frames):
        clip.seek(number)
        found.append(torch.frombuffer(bytearray(clip.convert("RGB").tobytes()), dtype=torch.uint8))
    return torch.stack(found).view(clip.n_frames, clip.height, clip.width, 3).movedim(-1, 1) / 255


def sampled(lab: Lab, model: str, sampler: str, steps: int = 12, share: float | None = None):
    """A graph that samples, the loader's node, the sampler's node, and the file for the latent.

    Args:
        share: of the time of sampling that previews may take; None: the pack's.
    """
    graph = lab.graph()
    loader = model = graph.loader(model)
    if share is not None:
        model = graph.node("ProbePreviewShare", share=share, model=loader)
    prompts, latent = graph.prompts(loader[1], PROMPT), graph.fun("EmptyLatent", **SIZE)
    if sampler == "ours":
        node = graph.sampler(model, *prompts, latent, steps=steps, cfg=2.0)
    elif sampler == "KSampler":
        options = {"seed": 1, "steps": steps, "cfg": 2.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1}
        positive, negative = prompts
        node = graph.node(
            "KSampler", model=model, positive=positive, negative=negative, latent_image=latent, **options
        )
    else:
        node = graph.node(
            "SamplerCustomAdvanced",
            noise=graph.node("RandomNoise", noise_seed=1),
            guider=graph.node("BasicGuider", model=model, conditioning=prompts[0]),
            sampler=graph.node("KSamplerSelect", sampler_name="euler"),
            sigmas=graph.fun("Scheduler", model=model, steps=steps, spacing="auto", denoise=1.0),
            latent_image=latent,
        )
    graph.node("ProbeSave", value=node, path=(path := lab.path()))
    return graph, loader, node, path


@pytest.mark.parametrize("sampler", ["ours", "KSampler", "SamplerCustomAdvanced"])
def test_every_sampler_shows_the_whole_clip(lab, sampler):
    """By RGB factors, which cost little: a picture for each latent frame, and the last one looks like the video."""
    run(lab, sampled(lab, "tiny-5b", "ours", steps=1)[0].workflow)  # the first preview of all takes longest
    graph, model, node, _ = sampled(lab, "nano", sampler)
    size = lab.log_size
    graph.node("PreviewImage", images=(video := graph.node("VAEDecode", samples=node, vae=model[2])))
    graph.node("ProbeSave", value=video, path=(path := lab.path()))
    page = run(lab, graph.workflow)
    shown = clips(page)
    assert {data["node"] for data in page.of(EVENT)} == {node.key}
    assert len(shown) >= 3 and {(clip.n_frames, clip.size) for clip in shown} == {(3, (16, 16))}
    first, last = frames(shown[0]), frames(shown[-1])
    assert (first - last).abs().mean() > 0.02, "it does not change over the steps"
    assert shown[-1].info["duration"] == 4 * 1000 // FRAMES_PER_SECOND
    video = load(path)[[0, 1, 5]].movedim(-1, 1)  # the first frame of each latent frame
    small = F.interpolate(video, (16, 16), mode="area")
    assert correlation(last, small) > max(0.8, correlation(first, small))
    assert re.search(rf"{len(shown)} previews took [\d.]+ of [\d.]+ seconds of sampling", lab.log_since(size))
    assert page.binary, "ComfyUI's own preview goes on for clients without our script"


def load(path: str) -> torch.Tensor:
    return load_file(path)["value"]


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


@pytest.mark.long
def test_a_decoder_shows_every_frame(watched):
    """20 steps of the nano model, whose folder has a decoder of its own: coarse until it was tried."""
    shown = clips(run(watched, sampled(watched, "nano", "ours", steps=20, share=1e9)[0].workflow))
    kinds = [(clip.n_frames, clip.size) for clip in shown]
    assert kinds == [(3, (16, 16))] * 6 + [(9, (128, 128))] * 14
    assert len(frames(shown[-1])) == 9 and shown[-1].info["duration"] == 1000 // FRAMES_PER_SECOND


@pytest.mark.parametrize("model, scale", [("tiny-2b", 1.15258426), ("tiny-5b", 0.7), ("nano", 1.424764)])
def test_each_model_takes_its_decoder_at_its_scale(watched, model, scale):
    """Three steps: what the last predicts is the result, so its preview is the decoder's picture of the latent.

    Published models take taecvx. The nano model has another latent space, and takes the decoder in its folder.
    """
    own = comfy.ROOT / "models" / "nano" / "tiny_decoder" / "model.safetensors"
    published = watched.base / "models" / "vae_approx" / "taecvx.safetensors"
    right, other = (own, published) if model == "nano" else (published, own)
    graph, *_, path = sampled(watched, model, "ours", steps=3, share=1e9)
    *coarse, clip = clips(run(watched, graph.workflow))
    assert [one.n_frames for one in (*coarse, clip)] == [3, 3, 9]
    latent = load(path)

    def error(decoder, latent: torch.Tensor) -> float:
        expected = load_tiny_decoder(decoder, dtype=torch.float32).decode(latent)[0].movedim(0, 1).clamp(0, 1)
        return float((frames(clip) - expected).abs().mean())

    found = error(right, latent)
    assert found < 0.03, "WebP at quality 70 loses a little"
    assert error(right, latent * scale) > 1.5 * found and error(other, latent) > 3 * found


def test_a_broken_decoder_is_named_and_the_previews_are_coarse(watched):
    path = watched.base / "models" / "vae_approx" / "taecvx.safetensors"
    kept, size = path.read_bytes(), watched.log_size
    path.write_bytes(kept[:1000])
    try:
        shown = clips(run(watched, sampled(watched, "tiny-5b", "ours", steps=2, share=1e9)[0].workflow))
    finally:
        path.write_bytes(kept)
    assert [(clip.n_frames, clip.size) for clip in shown] == [(3, (16, 16))] * 2
    log = watched.log_since(size)
    assert "the previews are coarse: " in log and f"{path} is truncated or broken" in log


def test_nothing_without_previews(host, base):
    with comfy.serve(host, base, "--preview-method", "none") as server:
        page = run(Lab(server, base), sampled(Lab(server, base), "tiny-5b", "ours", steps=2)[0].workflow)
    assert page.of(EVENT) == [] and page.binary == []


# ------------------------------------------------------------------ drafts


@pytest.mark.parametrize("latent_t", [3, 4])
def test_a_draft_by_the_vae_loader(watched, latent_t):
    """Stock and own nodes decode the unscaled latent, whole and in tiles."""
    latent = torch.randn(1, 16, latent_t, 8, 12, generator=torch.Generator().manual_seed(0))
    decoder = load_tiny_decoder(watched.base / "models" / "vae_approx" / "any.safetensors")
    expected = decoder.decode(latent)[0].movedim(0, -1).clamp(0, 1)
    graph = watched.graph()
    vae, given = graph.fun("VAELoader", vae_name="any.safetensors"), graph.tensor("Latent", latent)
    tiles = {"tile_size": 64, "overlap": 16}
    stock, ours, tiled, our_tiles = graph.get(
        graph.node("VAEDecode", samples=given, vae=vae),
        graph.fun("VAEDecode", vae=vae, latent=given, tile_size=0, overlap=64),
        graph.node("VAEDecodeTiled", samples=given, vae=vae, temporal_size=8, temporal_overlap=4, **tiles),
        graph.fun("VAEDecode", vae=vae, latent=given, **tiles),
    )
    assert expected.shape == (4 * latent_t - 3, 64, 96, 3)
    assert closest(stock, expected) <= 1e-4 and torch.equal(stock, ours)
    assert torch.equal(tiled, our_tiles) and correlation(tiled, stock) > 0.9


@pytest.mark.parametrize("node", ["VAEEncode", "VAEEncodeTiled", "CogVideoXFunVAEEncode"])
def test_a_draft_decoder_can_not_encode(watched, node):
    graph = watched.graph()
    vae = graph.fun("VAELoader", vae_name="taecvx.safetensors")
    given = {"video" if node.startswith("Cog") else "pixels": graph.tensor("Image", torch.rand(5, 64, 64, 3))}
    encoded = graph.with_defaults(node, vae=vae, **given)
    with pytest.raises(Failed, match="draft decoder, which can't encode: load the model's whole VAE"):
        graph.get(encoded)


def test_the_folders_that_are_listed(watched):
    """models/vae_approx, models/vae, and the pack's own model."""
    vae = watched.base / "models" / "vae" / "small"
    vae.mkdir()
    shutil.copy(watched.base / "models" / "vae_approx" / "taecvx.safetensors", vae / "draft.safetensors")
    (options,) = watched.server.get("/object_info")["CogVideoXFunVAELoader"]["input"]["required"].values()
    names = options[0] if isinstance(options[0], list) else options[1]["options"]
    shutil.rmtree(vae)
    assert {"taecvx.safetensors", "small/draft.safetensors", "nano/tiny_decoder", "nano/vae"} <= set(names)

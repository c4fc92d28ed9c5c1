"""Clips longer than the model takes, in ComfyUI's context windows."""

import re
from pathlib import Path

import measure_windows
import pytest
import torch
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.sampling.masks import build_start_end
from cogvideox_fun.tools import media
from cogvideox_fun.training.data.scenes import random_scene
from cogvideox_fun.training.evaluation.generate import Options
from cogvideox_fun.training.evaluation.measure import truth_of
from graph import Failed
from PIL import Image

PROMPTS = "a red ball moves right", "blurry"
SCHEDULES = ("standard_static", "standard_uniform", "looped_uniform")
FUSE_METHODS = ("pyramid", "flat", "overlap-linear")


def windowed(graph, model, **options):
    defaults = {
        "context_length": 49,
        "context_overlap": 16,
        "context_schedule": "standard_static",
        "fuse_method": "pyramid",
    }
    return graph.fun("ContextWindows", model=model, **{**defaults, **options})


def calls(path: str) -> list[list[int]]:
    return [[int(n) for n in line.strip("[]").split(", ")] for line in Path(path).read_text().split("\n") if line]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("variant, window, length", [("tiny-5b", 49, 97), ("tiny-v1.5", 45, 101)])
def test_every_call_has_the_windows_latent_frames(lab, variant, window, length, schedule):
    """On V1.5 too, which can't run with the one frame more of ComfyUI's causal anchor."""
    graph = lab.graph()
    model, path = graph.loader(variant), lab.path(".txt")
    counted = graph.node("ProbeCalls", model=model, path=path)
    longer = windowed(graph, counted, context_length=window, context_schedule=schedule)
    latent = graph.fun("EmptyLatent", width=32, height=32, length=length, batch_size=1, model=longer)
    (out,) = graph.get(graph.sampler(longer, *graph.prompts(model[1]), latent, steps=3))
    latent_t = (length - 1) // 4 + 1
    assert out.shape[2] == latent_t and torch.isfinite(out).all()
    seen = calls(path)
    assert {shape[2] for shape in seen} == {(window - 1) // 4 + 1}
    assert len(seen) >= 3 * 2, "several windows in each step"


@pytest.mark.parametrize("variant, length", [("tiny-5b", 9), ("tiny-v1.5", 25)])
def test_a_clip_that_is_shorter_than_a_window_has_none(lab, variant, length):
    """Its length is rounded as without windows."""
    graph = lab.graph()
    model = graph.loader(variant)
    models = windowed(graph, model, context_length=45), model
    latent = graph.fun("EmptyLatent", width=32, height=32, length=length, batch_size=2, model=models[0])
    texts = graph.prompts(model[1])
    in_windows, plain = graph.get(*(graph.sampler(one, *texts, latent, steps=2) for one in models))
    assert torch.equal(in_windows, plain) and plain.shape[2] == {9: 3, 25: 6}[length]


@pytest.mark.parametrize("length", [25, 21], ids=["seven latent frames", "as many latent frames as rows"])
def test_a_mask_on_a_conditioning_is_cut_to_each_window(lab, length):
    """A mask of one frame is that of every window; one of all latent frames is cut to each."""
    graph = lab.graph()
    model = graph.loader("tiny-5b")
    longer = windowed(graph, model, context_length=9, context_overlap=4)
    latent = graph.fun("EmptyLatent", width=80, height=48, length=length, batch_size=1)
    positive, negative = graph.prompts(model[1])

    def run(mask: torch.Tensor):
        options = {"strength": 1.0, "set_cond_area": "default", "mask": graph.tensor("Mask", mask)}
        masked = graph.node("ConditioningSetMask", conditioning=positive, **options)
        both = graph.node("ConditioningCombine", conditioning_1=masked, conditioning_2=negative)
        return graph.sampler(longer, both, negative, latent, steps=2, cfg=1.0)

    latent_t = (length - 1) // 4 + 1
    half = torch.zeros(6, 10)
    half[:, :5] = 1
    late = half.repeat(latent_t, 1, 1)
    late[: latent_t - 1] = 0
    one, whole, last, none = graph.get(run(half[None]), run(half.repeat(latent_t, 1, 1)), run(late), run(0 * late))
    assert torch.equal(one, whole)
    changed = (last - none).abs().amax((0, 1, 3, 4))
    assert changed[-1] > 1e-3 and changed[:2].max() < 1e-5 < (one - none).abs().amax((0, 1, 3, 4))[:2].min()


def test_conditioning_is_cut_to_each_window(lab, base):
    """One step with a start and an end image: the mean of what the model makes of each window alone."""
    pipeline = Pipeline.from_folder(base / "models" / "CogVideoX_Fun" / "tiny-5b")
    length, latent_t, width = 97, 25, 13
    generator = torch.Generator().manual_seed(0)
    start, end = torch.rand(1, 48, 80, 3, generator=generator), torch.rand(1, 48, 80, 3, generator=generator)

    graph = lab.graph()
    model = graph.loader("tiny-5b")
    images = {"start_image": graph.tensor("Image", start), "end_image": graph.tensor("Image", end)}
    built = graph.fun("StartEndImage", width=80, height=48, length=length, fit="crop", **images)
    found = graph.inpaint(model, model[2], built[0], built[1], *graph.prompts(model[1], *PROMPTS))
    longer = windowed(graph, model, fuse_method="flat")
    (ours,) = graph.get(graph.sampler(longer, found[0], found[1], found[2], seed=3, steps=1))

    extra = pipeline.condition(*build_start_end(80, 48, length, start, end))
    texts = [pipeline.text_encoder(prompt) for prompt in PROMPTS]
    noise = pipeline.noise(80, 48, length, seed=3)
    total, counts = torch.zeros_like(noise), torch.zeros(latent_t)
    for first in (0, 9, 12):  # a stride of 13 - 4, the last moved back to end with the clip
        part = slice(first, first + width)
        total[:, :, part] += pipeline.sample(noise[:, :, part], *texts, extra[:, :, part], steps=1)
        counts[part] += 1
    expected = total / counts[:, None, None]
    assert (ours * pipeline.checkpoint.scale_factor - expected).abs().max() <= 1e-3 * expected.abs().max()
    without = pipeline.sample(noise[:, :, :width], *texts, steps=1)
    assert (without - expected[:, :, :width]).abs().max() > 0.01 * expected.abs().max(), "the images count"


CLIP = {"length": 9, "batch_size": 1}


@pytest.mark.parametrize(
    "variant, options, clip, message",
    [
        ("5b", {"context_length": 48}, CLIP, "is 48 frames, but the VAE takes 4n . 1 frames: set it to 45"),
        ("5b", {"context_length": 53}, CLIP, "is 53 frames, but the model takes at most 49 frames: set it to 49"),
        ("v1.5", {"context_length": 49}, CLIP, "is 49 frames, but V1.5 takes a multiple of 2 .*: set it to 45"),
        (
            "v1.5",
            {"context_length": 1, "context_overlap": 0},
            CLIP,
            "but V1.5 takes an even .*: set it to 5",
        ),
        ("5b", {"context_overlap": 52}, CLIP, "context_overlap is 52 frames, expected less than the window of 49"),
        ("5b", {"context_overlap": 0, "fuse_method": "overlap-linear"}, CLIP, "is 0 frames, expected 4 or more with"),
        ("5b", {}, {"length": 97, "batch_size": 2}, "batch_size is 2, but context windows sample one clip at a time"),
    ],
)
def test_windows_that_cant_be(lab, variant, options, clip, message):
    graph = lab.graph()
    model = graph.loader(f"tiny-{variant}")
    latent = graph.fun("EmptyLatent", width=32, height=32, **clip)
    with pytest.raises(Failed, match=message):
        graph.get(graph.sampler(windowed(graph, model, **options), *graph.prompts(model[1]), latent, steps=1))


def test_a_clip_of_one_window_is_as_without(lab):
    graph, model, positive, negative, latent = lab.setting("tiny-5b")
    one = windowed(graph, model, context_length=9, context_overlap=4)
    plain, ours = graph.get(*(graph.sampler(m, positive, negative, latent) for m in (model, one)))
    assert torch.equal(plain, ours)


def test_no_way_to_fuse_makes_pytorch_warn(lab):
    """ComfyUI gives some of its weights as a list and some as a tensor, of which PyTorch warns once in a process."""
    graph, model, *prompts, _ = lab.setting("tiny-5b")
    latent = graph.fun("EmptyLatent", width=32, height=32, length=17, batch_size=1)
    models = [windowed(graph, model, context_length=9, context_overlap=4, fuse_method=name) for name in FUSE_METHODS]
    graph.get(*(graph.sampler(one, *prompts, latent, steps=1) for one in models))
    assert not re.search(r"comfyui/context_windows\.py:\d+: UserWarning", lab.log_since(0))


@pytest.mark.long
@pytest.mark.parametrize("row", measure_windows.DEFAULT)
def test_what_is_measured_of_a_long_video(lab, base, row):
    """It begins with the start image. A prompt for each window: the windows take them in their order."""
    try:
        measure_windows.check_host(lab.server, [row])
    except SystemExit as error:
        pytest.skip(str(error))
    scene, length = random_scene(0, 0, kinds=("move",)), 57
    image = truth_of(scene, 1, 64, 64).video
    Image.fromarray(media.to_uint8(image[0])).save(base / "input" / measure_windows.START)
    before = lab.log_size
    graph = measure_windows.workflow(row, scene, length, Options(size=64, steps=1))
    video = measure_windows.made(lab.server, base, graph)
    assert video.shape == (length, 64, 64, 3)
    assert (video[0] - image[0]).abs().mean() < 0.1 < (video[-1] - image[0]).abs().max()
    prompts = [int(number) for number in re.findall(r"using region (\d+)", lab.log_since(before))]
    assert prompts == ([0, 1, 2, 3, 4] if row == "back_and_forth" else [])

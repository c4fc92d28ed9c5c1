"""Every shipped workflow runs to a decoded video: with real photographs and a real clip from the tiny model, and those
of the nano model from what comes with the pack."""

import urllib.parse
import urllib.request

import pytest
import torch
from cogvideox_fun.tools import comfyui_server as comfy
from cogvideox_fun.tools import media
from cogvideox_fun.training.evaluation.measure import Seen, truth_of
from graph import read_workflow
from make_example import SCENE
from templates.document import name_of
from templates.kinds import LONG
from templates.tasks import EDITIONS

NAMES = {(task.title, nano): name_of(task, nano) for task, nano in EDITIONS}
REAL = [name for (_, nano), name in NAMES.items() if not nano]
NANO = [name for (_, nano), name in NAMES.items() if nano]
WIDTH, HEIGHT, LENGTH, OVERLAP = 80, 48, 9, 5
EXTEND, CONTROL, LONG_VIDEO = (NAMES[title, False] for title in ("Extend a Clip", "Control", "Long Video"))
START_END = NAMES["Start and End Image to Video", True]
BY_A_WORD = NAMES["Region by a Word", False]
TWO_ROUNDS = LENGTH + LENGTH - OVERLAP
LENGTHS = {EXTEND: TWO_ROUNDS, LONG_VIDEO: TWO_ROUNDS}
NANO_LENGTHS = {NAMES["Extend a Clip", True]: 17 + 17 - 5, NAMES["Long Video", True]: 17 + 12 + 12}
CONTROL_MODEL = "CogVideoX-Fun-V1.1-2b-Control"


def shrink(workflow: dict) -> None:
    """Small sizes and few steps; the inputs that the tests' base directory holds."""
    comfy.set_inputs(workflow, "CogVideoXFunSampler", steps=2)
    for node in ("CogVideoXFunStartEndImage", "CogVideoXFunEmptyLatent", "CogVideoXFunClipFrames"):
        comfy.set_inputs(workflow, node, width=WIDTH, height=HEIGHT, length=LENGTH)
    rounds = {"length": TWO_ROUNDS, "round_length": LENGTH, "overlap": OVERLAP, "steps": 2}
    comfy.set_inputs(workflow, LONG, width=WIDTH, height=HEIGHT, **rounds)
    comfy.set_inputs(workflow, "ImageScale", width=WIDTH, height=HEIGHT)
    comfy.set_inputs(workflow, "LoadVideo", file="bikes.mp4")
    comfy.set_inputs(workflow, "CogVideoXFunLoraLoader", lora_name="tiny-2b.safetensors")
    comfy.set_inputs(workflow, "CogVideoXFunJoinClips", overlap=OVERLAP)
    has_clip = any(node["class_type"] == "LoadVideo" for node in workflow.values())
    pictures = iter(["region.png"] if has_clip else ["start.png", "end.png"])
    for node in workflow.values():
        inputs = node["inputs"]
        if inputs.get("start_frames"):
            inputs["start_frames"] = OVERLAP
        if inputs.get("model") == CONTROL_MODEL:
            inputs["model"] = "tiny-2b-control"
        if node["class_type"] == "LoadImage":
            inputs["image"] = next(pictures)


def video_of(lab, workflow: dict) -> torch.Tensor:
    (path,) = comfy.output_files(lab.server, lab.run(workflow), lab.base)
    return media.read_video(path)


def run(lab, name: str, change=lambda workflow: None) -> torch.Tensor:
    """The video of a shipped workflow made small and changed."""
    workflow = read_workflow(name)
    shrink(workflow)
    change(workflow)
    return video_of(lab, workflow)


@pytest.mark.long
@pytest.mark.parametrize("name", NANO)
def test_the_nano_editions_run(lab, name):
    """From what comes with the pack, in a few steps; as it is, a start and an end give the square's true path.

    tests/browser runs all of them as they are.
    """
    workflow = read_workflow(name)
    if name != START_END:
        for node in ("CogVideoXFunSampler", LONG):
            comfy.set_inputs(workflow, node, steps=4)
    video = video_of(lab, workflow)
    assert video.shape == (NANO_LENGTHS.get(name, 17), 128, 128, 3)
    assert video.std() > 0.05, "there is something to see"
    if name == START_END:
        seen = Seen(video, truth_of(SCENE, *video.shape[:3]))
        assert (seen.shape, seen.colour, seen.direction) == ("square", "red", "right")
        assert seen.iou.mean() > 0.72, "it is half way when it should be, too"


@pytest.mark.parametrize("name", REAL)
def test_workflow_is_a_template_and_runs_to_a_video(lab, name):
    """And another picture in any LoadImage (for the region: one without a region) gives another video."""
    for suffix in ("json", "jpg"):
        url = f"{lab.server.url}/api/workflow_templates/cogvideox-fun/{urllib.parse.quote(name)}.{suffix}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == (comfy.ROOT / "workflows" / f"{name}.{suffix}").read_bytes()
    if name == BY_A_WORD:
        return  # test_video_masks.py runs it with what SAM3 would find
    video = run(lab, name)
    assert video.shape == (LENGTHS.get(name, LENGTH), HEIGHT, WIDTH, 3)
    assert video.std() > 0.01, "the video is not blank"
    for key, node in read_workflow(name).items():
        if node["class_type"] == "LoadImage":
            other = run(lab, name, lambda workflow, key=key: workflow[key]["inputs"].update(image="square.png"))
            assert (other - video).abs().mean() > 1e-3


def test_the_edges_matter(lab):
    """Canny of other thresholds gives another video; at strength 0 it gives the same."""

    def edges(strength: float, low: float, high: float):
        def change(workflow: dict) -> None:
            comfy.set_inputs(workflow, "Canny", low_threshold=low, high_threshold=high)
            comfy.set_inputs(workflow, "CogVideoXFunControlConditioning", strength=strength)

        return run(lab, CONTROL, change)

    assert (edges(1.0, 0.1, 0.2) - edges(1.0, 0.9, 0.95)).abs().mean() > 1e-3
    assert torch.equal(edges(0.0, 0.1, 0.2), edges(0.0, 0.9, 0.95))


def test_the_clip_comes_first_and_its_end_is_continued(lab):
    """The frames before the overlap are the clip's own; what they are decides how it goes on."""
    clip = run(lab, EXTEND)
    other = run(lab, EXTEND, lambda workflow: comfy.set_inputs(workflow, "LoadVideo", file="mirrored.mp4"))
    with_frames = read_workflow(EXTEND)
    shrink(with_frames)
    (frames,) = (key for key, node in with_frames.items() if node["class_type"] == "CogVideoXFunClipFrames")
    comfy.set_inputs(with_frames, "CreateVideo", images=[frames, 0])
    source = video_of(lab, with_frames)
    kept = LENGTH - OVERLAP
    assert (clip[:kept] - source[:kept]).abs().mean() < 0.02, "compressed with what follows"
    assert (clip[kept:] - other[kept:]).abs().mean() > 1e-3


@pytest.mark.parametrize("title", ["Video to Video", "Region Inpaint"])
def test_a_clip_keeps_its_speed_and_its_sound(lab, tmp_path, title):
    """24 frames a second with sound: the result lasts as long as the part that was used, and has its sound."""
    import av

    path = lab.base / "input" / "sound.mp4"
    write_clip_with_sound(path, seconds=3)
    workflow = read_workflow(NAMES[title, False])
    shrink(workflow)
    comfy.set_inputs(workflow, "LoadVideo", file=path.name)
    comfy.set_inputs(workflow, "CogVideoXFunClipFrames", start_seconds=0.5)
    (saved,) = comfy.output_files(lab.server, lab.run(workflow), lab.base)
    tone = 0.0
    with av.open(str(saved)) as container:
        video, (audio,) = container.streams.video[0], container.streams.audio
        assert float(video.duration * video.time_base) == pytest.approx(LENGTH / 8, abs=1 / 8)
        assert float(audio.duration * audio.time_base) == pytest.approx(LENGTH / 8, abs=1 / 8)
        tone = max(float(abs(frame.to_ndarray()).max()) for frame in container.decode(audio))
    assert tone > 0.5, "it can be heard"

    (frames,) = (key for key, node in workflow.items() if node["class_type"] == "CogVideoXFunClipFrames")
    comfy.set_inputs(workflow, "CreateVideo", images=[frames, 0])
    brightness = video_of(lab, workflow).mean((1, 2, 3))
    times = 0.5 + torch.arange(LENGTH) / 8
    assert (brightness - times / 3).abs().max() < 0.04, "not in slow motion"


def write_clip_with_sound(path, seconds: int, rate: int = 24, sample_rate: int = 24000) -> None:
    """A clip that becomes brighter, with a tone."""
    import av
    import numpy as np

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        audio = container.add_stream("aac", rate=sample_rate, layout="mono")
        for i in range(seconds * rate):
            picture = np.full((96, 160, 3), 255 * i // (seconds * rate), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
        tone = np.sin(np.arange(seconds * sample_rate) * 0.1).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate = sample_rate
        container.mux(audio.encode(frame))
        container.mux(audio.encode())

"""Every shipped workflow runs to a decoded video, with real photographs and a real clip, from the tiny model."""

import urllib.request

import pytest
import torch
from cogvideox_fun.tools import comfyui_server as comfy
from cogvideox_fun.tools import media
from cogvideox_fun.training.evaluation.measure import look
from graph import read_workflow

NANO = "try_it_without_a_download"
NAMES = sorted(path.stem for path in (comfy.ROOT / "workflows").glob("*.json"))
WIDTH, HEIGHT, LENGTH = 80, 48, 9
CONTROL_MODEL = "CogVideoX-Fun-V1.1-2b-Control"
# Frames of a clip, (first, how many), by those that the workflows take: all, the last of them, and those before.
PARTS = {(0, 49): (0, LENGTH), (40, 9): (4, 5), (0, 40): (0, 4)}
LENGTHS = {"extend_a_clip": LENGTH + 4}


def shrink(workflow: dict) -> None:
    """Small sizes and few steps; the inputs that the tests' base directory holds."""
    comfy.set_inputs(workflow, "CogVideoXFunSampler", steps=2)
    for node in ("CogVideoXFunStartEndImage", "CogVideoXFunEmptyLatent"):
        comfy.set_inputs(workflow, node, width=WIDTH, height=HEIGHT, length=LENGTH)
    comfy.set_inputs(workflow, "ImageScale", width=WIDTH, height=HEIGHT)
    comfy.set_inputs(workflow, "LoadVideo", file="bikes.mp4")
    has_clip = any(node["class_type"] == "LoadVideo" for node in workflow.values())
    pictures = iter(["region.png"] if has_clip else ["start.png", "end.png"])
    for node in workflow.values():
        inputs = node["inputs"]
        if node["class_type"] == "ImageFromBatch":
            inputs["batch_index"], inputs["length"] = PARTS[inputs["batch_index"], inputs["length"]]
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


def test_the_template_without_a_download_moves_the_square(lab):
    """As it is, but for fewer steps: the nano model takes the square from left to right."""
    workflow = read_workflow(NANO)
    comfy.set_inputs(workflow, "CogVideoXFunSampler", steps=10)
    video = video_of(lab, workflow)
    assert video.shape == (17, 128, 128, 3)
    seen = look(video)
    assert (seen.found, seen.colour, seen.direction) == (True, "red", "right")
    ends, middle = seen.centres[[0, -1]], seen.centres[8]
    assert torch.allclose(ends, torch.tensor([[0.26, 0.6], [0.74, 0.6]]), atol=0.04)
    assert float((middle - ends.mean(0)).norm()) < 0.1, "half way, the square is half way"


@pytest.mark.parametrize("name", NAMES)
def test_workflow_is_a_template_and_runs_to_a_video(lab, name):
    """And another picture in any LoadImage (for the region: one without a region) gives another video."""
    for suffix in ("json", "jpg"):
        url = f"{lab.server.url}/api/workflow_templates/cogvideox-fun/{name}.{suffix}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == (comfy.ROOT / "workflows" / f"{name}.{suffix}").read_bytes()
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

        return run(lab, "control_with_canny", change)

    assert (edges(1.0, 0.1, 0.2) - edges(1.0, 0.9, 0.95)).abs().mean() > 1e-3
    assert torch.equal(edges(0.0, 0.1, 0.2), edges(0.0, 0.9, 0.95))


def test_the_clip_comes_first_and_its_end_is_continued(lab):
    """The frames before the last ones are the clip's own; what they are decides how it goes on."""
    clip = run(lab, "extend_a_clip")
    other = run(lab, "extend_a_clip", lambda workflow: comfy.set_inputs(workflow, "LoadVideo", file="mirrored.mp4"))
    source = media.read_video(lab.base / "input" / "bikes.mp4")[:4]
    height, width = source.shape[1:3]
    cut = min(width, round(height * WIDTH / HEIGHT)), min(height, round(width * HEIGHT / WIDTH))
    left, top = (width - cut[0]) // 2, (height - cut[1]) // 2
    cropped = source[:, top : top + cut[1], left : left + cut[0]].movedim(-1, 1)
    small = torch.nn.functional.interpolate(cropped, (HEIGHT, WIDTH), mode="bilinear", antialias=True).movedim(1, -1)
    assert (clip[:4] - small).abs().mean() < 0.03, "scaled by another filter, and compressed"
    assert (clip[4:] - other[4:]).abs().mean() > 1e-3

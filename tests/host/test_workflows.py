"""Every shipped workflow runs to a decoded video, with real photographs and a real clip, from the tiny model."""

import urllib.request

import pytest
from cogvideox_fun.demo import comfy, media
from graph import read_workflow

NAMES = sorted(path.stem for path in (comfy.ROOT / "workflows").glob("*.json"))
WIDTH, HEIGHT, LENGTH = 80, 48, 9


def shrink(workflow: dict) -> None:
    """Small sizes and few steps; the inputs that the tests' base directory holds."""
    comfy.set_inputs(workflow, "CogVideoXFunSampler", steps=2)
    for node in ("CogVideoXFunStartEndImage", "CogVideoXFunEmptyLatent"):
        comfy.set_inputs(workflow, node, width=WIDTH, height=HEIGHT, length=LENGTH)
    comfy.set_inputs(workflow, "ImageScale", width=WIDTH, height=HEIGHT)
    comfy.set_inputs(workflow, "ImageFromBatch", length=LENGTH)
    comfy.set_inputs(workflow, "LoadVideo", file="bikes.mp4")
    has_clip = any(node["class_type"] == "LoadVideo" for node in workflow.values())
    pictures = iter(["region.png"] if has_clip else ["start.png", "end.png"])
    for node in workflow.values():
        if node["class_type"] == "LoadImage":
            node["inputs"]["image"] = next(pictures)


def test_there_are_five():
    assert len(NAMES) == 5


@pytest.mark.parametrize("name", NAMES)
def test_workflow_runs_to_a_video(lab, name):
    workflow = read_workflow(name)
    shrink(workflow)
    history = lab.run(workflow)
    (path,) = comfy.output_files(lab.server, history, lab.base)
    video = media.read_video(path)
    assert video.shape == (LENGTH, HEIGHT, WIDTH, 3)
    assert video.std() > 0.01, "the video is not blank"


@pytest.mark.parametrize("name", ["image_to_video", "start_end_image_to_video", "inpaint_region"])
def test_the_pictures_matter(lab, name):
    """Another picture in any LoadImage (for the region: one without a region) gives another video."""

    def run(changed: str | None):
        workflow = read_workflow(name)
        shrink(workflow)
        if changed is not None:
            workflow[changed]["inputs"]["image"] = "square.png"
        (path,) = comfy.output_files(lab.server, lab.run(workflow), lab.base)
        return media.read_video(path)

    pictures = [key for key, node in read_workflow(name).items() if node["class_type"] == "LoadImage"]
    first = run(None)
    for key in pictures:
        assert (run(key) - first).abs().mean() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_templates_are_listed(lab, name):
    """The host finds the workflows and their thumbnails as templates of the pack."""

    assert name in lab.server.get("/workflow_templates")["cogvideox-fun"]
    for suffix in ("json", "jpg"):
        url = f"{lab.server.url}/api/workflow_templates/cogvideox-fun/{name}.{suffix}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            assert answer.read() == (comfy.ROOT / "workflows" / f"{name}.{suffix}").read_bytes()

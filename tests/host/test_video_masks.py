"""Masks that follow a video: by optical flow, and by a word with what ComfyUI's SAM3 nodes give."""

import re
import shutil

import measure_masks
import pytest
import torch
from cogvideox_fun.sampling.follow import follow_mask
from cogvideox_fun.sampling.mask_edit import adjust_mask
from cogvideox_fun.sampling.optical_flow import lucas_kanade
from cogvideox_fun.tools import comfyui_server as comfy
from cogvideox_fun.tools import media
from graph import Failed, read_workflow
from make_example import EXAMPLES, NAME
from safetensors.torch import load_file, save_file
from templates.kinds import SAM3
from templates.notes import SAM3_FILE

SIZE, LENGTH = 128, 17
NO_RAFT = "no RAFT found, so a simpler optical flow is used"
BY_A_WORD = "CogVideoX-Fun Region by a Word"
LOST = slice(6, 9)  # frames in which SAM3 does not see the object


def moving_square(length: int = 5, step: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return measure_masks.moving_square(step, size=(SIZE, SIZE), side=40, length=length)


@pytest.fixture
def flow_folder(lab):
    """models/optical_flow, empty before and after."""
    folder = lab.base / "models" / "optical_flow"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def follow(lab, images: torch.Tensor, mask: torch.Tensor, **inputs) -> tuple[torch.Tensor, str]:
    """The mask that follows, and what the log says meanwhile."""
    graph, size = lab.graph(), lab.log_size
    tensors = {"images": graph.tensor("Image", images), "mask": graph.tensor("Mask", mask)}
    (found,) = graph.get(graph.fun("MaskFollow", **tensors, **inputs))
    return found, lab.log_since(size)


def test_without_raft_a_simpler_flow_is_used_and_said(lab, flow_folder):
    """Also with a mask of several frames, of which only the first counts, and of another size."""
    video, true = moving_square()
    found, log = follow(lab, video, true[:1])
    expected = follow_mask(true[0], len(video), lambda a, b: lucas_kanade(video[a], video[b]))
    assert (found - expected).abs().mean() < 1e-3, "but for rounding"
    assert NO_RAFT in log and "raft_large_C_T_SKHT_V2-ff5fadd5.safetensors into models/optical_flow" in log
    again, log = follow(lab, video, true[:3, ::2, ::2])
    assert torch.equal(again, found) and "the mask has 3 frames: only the first is used" in log


def test_images_in_half_precision(lab, flow_folder):
    """As with ``--fp16-intermediates``: flows are found and added up in float32."""
    video, true = moving_square()
    half = video.half()
    assert torch.equal(*(follow(lab, images, true[:1])[0] for images in (half, half.float())))


@pytest.mark.parametrize("size, ending", [("large", "pth"), ("small", "safetensors")])
def test_raft_is_found_by_its_weights_as_soon_as_it_is_there(lab, flow_folder, size, ending):
    """The same graph runs again when the file comes. Its flows are those of torchvision and its own preprocessing."""
    video, true = moving_square(3)
    (flow_folder / "a.pth").write_bytes(b"")
    with pytest.raises(Failed, match=r"a\.pth is no RAFT of torchvision"):
        follow(lab, video, true[:1])
    (flow_folder / "a.pth").unlink()
    save_file({"weight": torch.zeros(1)}, flow_folder / "another.safetensors")
    graph = lab.graph()
    tensors = {"images": graph.tensor("Image", video), "mask": graph.tensor("Mask", true[:1])}
    node = graph.fun("MaskFollow", **tensors)
    (before,) = graph.get(node)

    (flow_folder / "a.pth").write_bytes(b"")  # another file that can't be read is no reason to stop
    path, flows = str(flow_folder / f"weights.{ending}"), lab.path()
    graph.node("ProbeRaft", size=size, path=path, flows=flows, images=tensors["images"])
    lab.run(graph.workflow)
    size = lab.log_size
    (found,) = graph.get(node)
    assert NO_RAFT not in lab.log_since(size)
    there, back = load_file(flows)["value"].unbind(1)
    assert there.std() > 0.1, "it moves something"
    expected = follow_mask(true[0], 3, lambda a, b: there[a] if a < b else back[b])
    assert (found - expected).abs().mean() < 1e-3 and (found - before).abs().mean() > 1e-3


def test_comfyuis_own_optical_flow(lab, flow_folder):
    """What its loader gives is the same RAFT; anything else on this wire is named."""
    video, true = moving_square(3)
    if lab.has("OpticalFlowLoader"):
        graph = lab.graph()
        path = str(flow_folder / "raft.safetensors")
        graph.node("ProbeRaft", size="large", path=path, flows=lab.path(), images=graph.tensor("Image", video))
        lab.run(graph.workflow)
        graph = lab.graph()
        loaded = graph.node("OpticalFlowLoader", model_name="raft.safetensors")
        tensors = {"images": graph.tensor("Image", video), "mask": graph.tensor("Mask", true[:1])}
        ours, theirs = graph.get(
            graph.fun("MaskFollow", **tensors), graph.fun("MaskFollow", **tensors, optical_flow=loaded)
        )
        assert torch.equal(ours, theirs)
    graph = lab.graph()
    wrong = graph.node("ProbeCollect", value=graph.node("ProbeForeignModel"), count=1)
    tensors = {"images": graph.tensor("Image", video), "mask": graph.tensor("Mask", true[:1])}
    with pytest.raises(Failed, match="optical_flow is of another family .*Load Optical Flow Model"):
        graph.get(graph.fun("MaskFollow", **tensors, optical_flow=wrong))


def test_a_lost_object_is_named_with_its_frame(lab, flow_folder):
    """It leaves the picture."""
    video, true = moving_square(LENGTH, 8)
    found, log = follow(lab, video, true[:1])
    (frame,) = map(int, re.findall(r"of the mask is left from frame (\d+) on", log))
    areas = (found >= 0.5).sum((1, 2))
    assert areas[frame - 1] < areas[0] / 10 <= areas[frame - 2]
    assert 14 <= frame <= 16, "it is gone in frame 16"


def test_an_empty_mask_is_named(lab, flow_folder):
    log = follow(lab, moving_square(2, 8)[0], torch.zeros(1, SIZE, SIZE))[1]
    assert "the mask of the first frame is empty" in log and "of the mask is left" not in log


# a region by a word


def has_sam3(lab) -> bool:
    return lab.has(*SAM3)


def small(workflow: dict) -> None:
    """The nano model and its clip, and two steps."""
    comfy.set_inputs(workflow, "CogVideoXFunModelLoader", model="nano")
    comfy.set_inputs(workflow, "CogVideoXFunClipFrames", width=SIZE, height=SIZE, length=LENGTH)
    comfy.set_inputs(workflow, "CogVideoXFunSampler", steps=2, cfg=2.0)
    comfy.set_inputs(workflow, "LoadVideo", file=f"{NAME}.mp4")


@pytest.fixture(scope="module")
def clip(lab):
    """The frames of the nano model's clip, where SAM3 sees the square in it, and where it really is."""
    shutil.copy(EXAMPLES / f"{NAME}.mp4", lab.base / "input" / f"{NAME}.mp4")
    frames = media.read_video(EXAMPLES / f"{NAME}.mp4")
    return frames, (frames[..., 0] - frames[..., 1:].amax(-1) > 0.2).float()


def test_what_is_missing_is_said_by_comfyui(lab, clip):
    """The file of SAM3 and nothing else; without SAM3, its nodes."""
    workflow = read_workflow(BY_A_WORD)
    small(workflow)
    with pytest.raises(Failed) as error:
        lab.run(workflow)
    message = str(error.value)
    if not has_sam3(lab):
        assert re.search("SAM3_\\w+", message)
        return
    assert SAM3_FILE in message and "ckpt_name" in message and "not in" in message
    refused = set(re.findall(r'"class_type": "(\w+)"', message)) | set(re.findall(r"'class_type': '(\w+)'", message))
    assert refused == {"CheckpointLoaderSimple"}


def with_object(lab, found: torch.Tensor, size: int) -> dict:
    """The workflow with an object in the place of SAM3's: F 1 1008 1008, or F zeros where none was found.

    SAM3_TrackToMask is ComfyUI's own where there is one; its answer is made here for a ComfyUI without it.
    """
    workflow = read_workflow(BY_A_WORD)
    small(workflow)
    (key,) = (key for key, node in workflow.items() if node["class_type"] == "SAM3_TrackToMask")
    (track,) = (key for key, node in workflow.items() if node["class_type"] == "SAM3_VideoTrack")
    gone = {node for node, one in workflow.items() if one["class_type"] == "CheckpointLoaderSimple"}
    gone |= {node for node, one in workflow.items() if one["inputs"].get("clip", [""])[0] in gone}
    path = lab.path()
    if has_sam3(lab):
        save_file({"value": found}, path)
        inputs = {"path": path, "height": size, "width": size}
        workflow[track] = {"class_type": "ProbeTrack", "inputs": inputs}
    else:
        mask = torch.zeros(len(found), size, size)
        if found.ndim > 1:
            mask = torch.nn.functional.interpolate(found, (size, size), mode="bilinear")[:, 0]
        save_file({"value": mask}, path)
        workflow[key] = {"class_type": "ProbeTensor", "inputs": {"kind": "MASK", "path": path}}
        gone.add(track)
    return {node: one for node, one in workflow.items() if node not in gone}


def composited(lab, workflow: dict) -> tuple[torch.Tensor, ...]:
    """The finished frames, those of the clip, the mask of SAM3 and the soft one."""
    (last,) = (node["inputs"] for node in workflow.values() if node["class_type"] == "CogVideoXFunCompositeSource")
    (mask,) = (key for key in workflow if workflow[key]["class_type"] in ("SAM3_TrackToMask", "ProbeTensor"))
    (end,) = (key for key in workflow if workflow[key]["class_type"] == "CogVideoXFunCompositeSource")
    paths = [lab.path() for _ in range(4)]
    for i, (value, path) in enumerate(zip(([end, 0], last["source"], [mask, 0], last["mask"]), paths, strict=True)):
        workflow[f"saved {i}"] = {"class_type": "ProbeSave", "inputs": {"value": value, "path": path}}
    lab.run(workflow)
    return tuple(load_file(path)["value"] for path in paths)


@pytest.mark.long
@pytest.mark.parametrize("size", [SIZE, 200], ids=["as the clip", "of another size"])
def test_all_behind_sam3(lab, clip, size):
    """With an object that is lost for some frames: they stay, as do all pixels beyond the soft edge, bit by bit."""
    frames, square = clip
    found = torch.nn.functional.interpolate(square[:, None], (1008, 1008))
    found[LOST] = 0
    video, source, mask, soft = composited(lab, with_object(lab, found, size))
    assert mask.shape == (LENGTH, size, size) and mask.dtype == torch.float32 and 0 < mask.mean() < 1
    assert torch.equal(soft, adjust_mask(adjust_mask(mask, 16), 12, 4.0))
    assert video.shape == source.shape == frames.shape and (source - frames).abs().max() < 0.02
    soft = torch.nn.functional.interpolate(soft[:, None], (SIZE, SIZE))[:, 0]
    kept = soft == 0
    assert torch.equal(video[kept], source[kept]) and kept.float().mean() > 0.3
    assert torch.equal(video[LOST], source[LOST])
    inside = square.bool()
    inside[LOST] = False
    assert (video - source).abs()[inside].mean() > 0.02, "the region is new"


def test_a_word_that_is_not_in_the_clip(lab, clip):
    """SAM3 finds nothing: its mask is black. VAE Encode says so, and the video is the clip."""
    size = lab.log_size
    video, source, mask, _ = composited(lab, with_object(lab, torch.zeros(LENGTH), SIZE))
    assert torch.equal(mask, torch.zeros(LENGTH, SIZE, SIZE)) and torch.equal(video, source)
    assert "the mask keeps everything: nothing will be generated" in lab.log_since(size)

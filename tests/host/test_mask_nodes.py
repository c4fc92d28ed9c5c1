"""The pictures under the mask nodes, and the nodes that adjust a mask and put a video back into its source."""

import numpy as np
import torch
from cogvideox_fun.sampling.composite import composite
from cogvideox_fun.sampling.mask_edit import adjust_mask
from cogvideox_fun.sampling.masks import build_start_end, mask_to_latent
from cogvideox_fun.sampling.sheets import mask_sheet, video_sheet
from cogvideox_fun.tools.media import photographs
from PIL import Image


def shown(lab, history: dict, node) -> torch.Tensor:
    """The picture that ComfyUI shows under a node."""
    (entry,) = history["outputs"][node.key]["images"]
    assert entry["type"] == "temp"
    picture = Image.open(lab.base / "temp" / entry["subfolder"] / entry["filename"])
    return torch.from_numpy(np.array(picture)).float()[None] / 255


def test_the_pictures_under_the_mask_nodes(lab):
    graph, (start, end) = lab.graph(), photographs()
    images = {"start_image": graph.tensor("Image", start), "end_image": graph.tensor("Image", end)}
    builder = graph.fun("StartEndImage", width=80, height=48, length=9, fit="crop", **images)
    latent = graph.fun("EmptyLatent", width=80, height=48, length=9, batch_size=1)
    resizer = graph.fun("MaskResize3D", mask=builder[1], latent=latent, soft=False)
    graph.node("ProbeSave", value=resizer, path=lab.path())
    history = lab.run(graph.workflow)
    video, mask = build_start_end(80, 48, 9, start, end)
    assert (shown(lab, history, builder) - video_sheet(video, mask)).abs().max() < 0.01
    assert (shown(lab, history, resizer) - mask_sheet(mask_to_latent(mask, 3, 6, 10))).abs().max() < 0.01


def test_adjusting_a_mask(lab):
    mask = torch.zeros(3, 48, 80)
    for i, frame in enumerate(mask):
        frame[10:30, 10 + i : 40 + i] = 1
    graph = lab.graph()
    adjusted = graph.fun("MaskAdjust", mask=graph.tensor("Mask", mask), grow=4, blur=1.5, invert=True)
    (found,) = graph.get(adjusted)
    assert torch.equal(found, adjust_mask(mask, 4, 1.5, True))


def test_putting_a_video_back_into_its_source(lab):
    generator = torch.Generator().manual_seed(0)
    video, source = torch.rand(5, 48, 80, 3, generator=generator), torch.rand(6, 48, 80, 3, generator=generator)
    mask = torch.zeros(1, 48, 80)
    mask[:, :, 40:] = 1
    graph = lab.graph()
    tensors = {"video": graph.tensor("Image", video), "source": graph.tensor("Image", source)}
    options = {"match_colors": 1.0, "paste_known": True}
    pasted = graph.fun("CompositeSource", **tensors, mask=graph.tensor("Mask", mask), **options)
    plain = graph.fun("CompositeSource", **tensors, **options)
    ours, unpasted = graph.get(pasted, plain)
    assert torch.equal(ours, composite(video, source, mask)) and torch.equal(unpasted, composite(video, source))
    assert torch.equal(ours[:, :, :40], source[:5, :, :40])

"""Nodes for masks over videos: RAFT with random weights, and objects as SAM3 gives them."""

import torch
from safetensors.torch import load_file, save_file

from . import node


@node(size="STRING", path="STRING", flows="STRING", images="IMAGE")
def raft(size, path, flows, images):
    """Write a RAFT of torchvision with random weights to a file, and its flows between neighbouring frames to another.

    The flows are F-1 2 2 H W, there and back, without any code of the pack.
    """
    from torchvision.models import optical_flow
    from torchvision.transforms._presets import OpticalFlow

    torch.manual_seed(0)
    made = getattr(optical_flow, f"raft_{size}")(weights=None).eval()
    if path.endswith(".pth"):
        torch.save(made.state_dict(), path)
    else:
        save_file(made.state_dict(), path)
    found = []
    for pair in zip(images[:-1].movedim(-1, 1), images[1:].movedim(-1, 1), strict=True):
        first, second = OpticalFlow()(*(image[None] for image in pair))
        found.append(torch.cat([made(first, second)[-1], made(second, first)[-1]]))
    save_file({"value": torch.stack(found)}, flows)
    return {"ui": {"text": [path]}}


@node("SAM3_TRACK_DATA", path="STRING", height="INT", width="INT")
def track(path, height, width):
    """What Run SAM3 Video Track gives for objects of F N 1008 1008, packed by ComfyUI; for no frames, none was found.

    Args:
        height, width: of the images that SAM3 saw.
    """
    from comfy.ldm.sam3.tracker import pack_masks

    value = load_file(path)["value"]
    found = None if value.ndim == 1 else pack_masks(value)
    return ({"packed_masks": found, "n_frames": len(value), "scores": [], "orig_size": (height, width)},)

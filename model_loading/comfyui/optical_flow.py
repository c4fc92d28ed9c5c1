"""torchvision's RAFT: from a file of models/optical_flow, or as ComfyUI's own loader gives it."""

import os
from collections.abc import Callable
from pathlib import Path

import comfy.model_management
import comfy.model_patcher
import comfy.utils
import folder_paths
from torch import Tensor

from ...sampling.optical_flow import lucas_kanade, raft_flow
from ..errors import CheckpointError

FOLDER = "optical_flow"
ENDINGS = (".safetensors", ".pth", ".pt")
PARTS = ("feature_encoder.", "context_encoder.", "update_block.")  # of RAFT's parameters
ONLY_LARGE = "mask_predictor."

Flow = Callable[[Tensor, Tensor], Tensor]  # two frames, H W 3 -> 2 H W


def weight_files() -> list[Path]:
    """The files of models/optical_flow. ComfyUI 0.33.0 has this folder; in older versions it is only looked into."""
    folders = [os.path.join(folder_paths.models_dir, FOLDER)]
    if FOLDER in folder_paths.folder_names_and_paths:  # also by extra_model_paths.yaml
        folders += folder_paths.get_folder_paths(FOLDER)
    found = {path for folder in folders for path in Path(folder).rglob("*") if path.suffix in ENDINGS}
    return sorted(path for path in found if path.is_file())


def find_raft() -> comfy.model_patcher.ModelPatcher | None:
    """The first file of models/optical_flow that is torchvision's RAFT, large or small; None without one.

    Raises:
        CheckpointError: there is none, and a file can't be read, or is another network whose parameters have the same
            names.
    """
    unreadable = None
    for path in weight_files():
        try:
            if (raft := load_raft(path)) is not None:
                return raft
        except CheckpointError as error:
            unreadable = unreadable or error
    if unreadable is not None:
        raise unreadable
    return None


def load_raft(path: Path) -> comfy.model_patcher.ModelPatcher | None:
    """torchvision's RAFT from a file; None if the file holds something else."""
    from torchvision.models import optical_flow  # comes with ComfyUI

    try:
        state = comfy.utils.load_torch_file(str(path), safe_load=True)
        if not all(any(key.startswith(part) for key in state) for part in PARTS):
            return None
        is_large = any(key.startswith(ONLY_LARGE) for key in state)
        raft = (optical_flow.raft_large if is_large else optical_flow.raft_small)(weights=None)
        raft.load_state_dict(state)
    except Exception as error:  # those of torch, pickle and safetensors have nothing in common
        raise CheckpointError(f"is no RAFT of torchvision ({error}): download it again", path) from error
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(raft.float().eval(), load_device=device, offload_device=offload)


def flow_of(patcher: comfy.model_patcher.ModelPatcher | None, height: int, width: int) -> Flow:
    """The flow of a RAFT that is on the device then, or of Lucas and Kanade without one.

    Raises:
        ValueError: it is another network.
    """
    device = comfy.model_management.get_torch_device()
    if patcher is None:
        return lambda first, second: lucas_kanade(first.float().to(device), second.float().to(device))
    from torchvision.models.optical_flow import RAFT

    raft = getattr(patcher, "model", None)
    if not isinstance(raft, RAFT):
        name = type(patcher if raft is None else raft).__name__
        raise ValueError(
            f"optical_flow is of another family ({name}): load torchvision's RAFT with Load Optical Flow Model"
        )
    correlations = (-(-height // 8) * -(-width // 8)) ** 2 * 4  # bytes: every pixel of an eighth with every other
    comfy.model_management.load_models_gpu([patcher], memory_required=2 * correlations)
    return lambda first, second: raft_flow(raft, first.float().to(device), second.float().to(device))

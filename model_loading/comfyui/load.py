"""From a checkpoint on disk to ComfyUI's MODEL: which dtypes, which operations, which patcher."""

import logging
import math
from pathlib import Path

import comfy.model_management
import comfy.patcher_extension
import torch

from ..errors import CheckpointError, naming, shown
from ..files.checkpoint import SAVED_PREFIX, Checkpoint, open_checkpoint
from ..files.detect import hub_name
from ..files.safetensors_files import SCALED_FP8, is_quantization
from ..networks.config import goes_to_fp8
from ..networks.transformer import CogVideoXTransformer
from . import gguf
from .compat import is_dynamic, load_weights
from .files import read_file
from .model import CogVideoXFun, CogVideoXFunConfig
from .patcher import patcher_class
from .previews import add_previews
from .quantized import read_quantization, renamed_layers

log = logging.getLogger(__name__)

WEIGHT_DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
IGNORED = {"patch_embed.pos_embedding", "v_pred"}  # tensors that some files have and nothing here reads


def choose_dtypes(checkpoint: Checkpoint, config: CogVideoXFunConfig, weight_dtype: str) -> tuple:
    """The dtype that weights are stored in and, if it is another, the one that is computed in; the log says why.

    The matrices of a quantised file stay as they are: the dtypes are those of the rest, which is never stored in fp8.
    """
    management = comfy.model_management
    load_device = management.get_torch_device()
    infos = checkpoint.weights.tensors.values()
    packed, supported = checkpoint.weights.is_quantised, config.supported_inference_dtypes
    stored, why = WEIGHT_DTYPES[weight_dtype], "as chosen"
    if stored is None or (packed and stored.itemsize == 1):
        on_disk = [info.dtype for info in infos if len(info.shape) > 1]
        common = None if packed else max(set(on_disk), key=on_disk.count)
        stored = management.unet_dtype(
            model_params=sum(math.prod(info.shape) for info in infos), supported_dtypes=supported, weight_dtype=common
        )
        why = "as in the file" if stored == common else f"ComfyUI's choice for {load_device}"
    compute = management.unet_manual_cast(None if packed else stored, load_device, supported)
    reason = "the same" if compute in (None, stored) else f"ComfyUI's choice for {stored} on {load_device}"
    if (compute or stored) not in supported:
        refused = compute or stored
        compute = torch.bfloat16 if management.should_use_bf16(load_device) else torch.float32
        reason = f"{refused} overflows in the {checkpoint.config.family} models"
    log.info("weights in %s: %s; computing in %s: %s", stored, why, compute or stored, reason)
    return stored, compute


def read_state(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint as ComfyUI reads them: the transformer's, and those about their quantisation.

    Raises:
        CheckpointError: a tensor is missing, of another shape, or of no known transformer.
    """
    weights = checkpoint.weights
    with torch.device("meta"):
        expected = CogVideoXTransformer(checkpoint.config).state_dict()
    weights.check(expected)
    unexpected = sorted(weights.tensors.keys() - expected.keys() - IGNORED)
    unexpected = [key for key in unexpected if not is_quantization(key)]
    if unexpected:
        raise CheckpointError(
            f"can't be loaded: {len(unexpected)} tensors belong to no known CogVideoX transformer, first "
            f"{unexpected[0]}: take a file of the CogVideoX or CogVideoX-Fun families",
            checkpoint.path,
        )
    return {key: value for key, value in weights.load().items() if key in expected or is_quantization(key)}


def new_patcher(
    checkpoint: Checkpoint, config: CogVideoXFunConfig, weight_dtype: str, device, disable_dynamic: bool
) -> tuple:
    """A patcher whose model has no weights yet, and the dtype that each of its parameters is stored in."""
    stored, compute = choose_dtypes(checkpoint, config, weight_dtype)
    config.set_inference_dtype(stored, compute)
    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    model = CogVideoXFun(config, device=device)
    model.device = offload_device
    dtypes = dict.fromkeys(checkpoint.weights.tensors, stored)
    if stored.itemsize == 1 or config.scaled_fp8 is not None:  # 0.3.64 stores all linear layers in it
        kept = kept_dtypes(checkpoint, compute)
        keep_dtypes(model.diffusion_model, kept)
        dtypes |= kept
    patcher = patcher_class(load_device, disable_dynamic)(
        model, load_device=load_device, offload_device=offload_device
    )
    return patcher, dtypes


def kept_dtypes(checkpoint: Checkpoint, compute: torch.dtype) -> dict[str, torch.dtype]:
    """The parameters that are not stored in fp8: in the file's dtype, or in that to compute in if it is smaller."""
    weights, kept = checkpoint.weights, {}
    for name, info in weights.tensors.items():
        small = info.dtype.itemsize == 1 if weights.is_quantised else goes_to_fp8(name, info.shape, checkpoint.config)
        if not small and not is_quantization(name):
            kept[name] = info.dtype if 2 <= info.dtype.itemsize < compute.itemsize else compute
    return kept


def keep_dtypes(model: torch.nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Give parameters dtypes of their own, before they are loaded. A dynamic patcher casts to those it finds noted."""
    for name, dtype in dtypes.items():
        path, _, attribute = name.rpartition(".")
        layer = model.get_submodule(path)
        setattr(layer, f"{attribute}_comfy_model_dtype", dtype)
        parameter = getattr(layer, attribute, None)
        if parameter is not None:  # with dynamic VRAM, ComfyUI's linear layers make theirs when they are loaded
            setattr(layer, attribute, torch.nn.Parameter(parameter.to(dtype), requires_grad=False))


def load_plain(checkpoint: Checkpoint, weight_dtype: str, disable_dynamic: bool):
    """A patcher with the file's own tensors as parameters: without a cast they are read from the mapped file."""
    state = read_state(checkpoint)
    patcher, dtypes = new_patcher(checkpoint, CogVideoXFunConfig(checkpoint), weight_dtype, "meta", disable_dynamic)
    # A dynamic patcher casts when it loads a layer. To fp8 it is done here: half as much is uploaded then, and
    # ComfyUI's --fast fp8_matrix_mult looks at the weights as they are.
    if not is_dynamic(patcher) or patcher.model.get_dtype().itemsize == 1:
        state = {key: tensor.to(dtypes[key]) for key, tensor in state.items()}
    patcher.model.diffusion_model.load_state_dict(state, assign=True)
    return patcher


def load_quantized(checkpoint: Checkpoint, weight_dtype: str, disable_dynamic: bool, operations):
    """A patcher whose layers read the tensors in their own way: of a quantised file, or made of ``operations``."""
    config = CogVideoXFunConfig(checkpoint)
    with naming(checkpoint.path):
        metadata = renamed_layers(checkpoint.weights.metadata, lambda key: hub_name(key.removeprefix(SAVED_PREFIX)))
        state, found = read_quantization(read_state(checkpoint), metadata)
    state.pop(SCALED_FP8, None)
    for name, value in {**found, "custom_operations": operations}.items():
        setattr(config, name, value)
    patcher, _ = new_patcher(checkpoint, config, weight_dtype, None, disable_dynamic)
    load_weights(patcher, state)
    return patcher


def load_gguf(checkpoint: Checkpoint, weight_dtype: str, operations):
    """ComfyUI-GGUF's patcher, which unpacks the tensors when a layer runs."""
    pack, ops = gguf.find_pack(checkpoint.path)
    state = gguf.as_ggml(read_state(checkpoint), checkpoint.weights, ops)
    config = CogVideoXFunConfig(checkpoint)
    config.custom_operations = operations or ops.GGMLOps()
    patcher, _ = new_patcher(checkpoint, config, weight_dtype, None, disable_dynamic=True)
    load_weights(patcher, state)
    return pack.GGUFModelPatcher.clone(patcher)


def forget_positions(patcher, unpatch_all: bool) -> None:
    """On unloading. A dynamic patcher moves the weights off the GPU one by one, but not what else the model keeps."""
    if unpatch_all:
        patcher.model.diffusion_model.forget_positions()


def load_model(
    path: str | Path,
    weight_dtype: str = "default",
    model_options: dict | None = None,
    disable_dynamic: bool = False,
):
    """Load a transformer as ComfyUI's MODEL.

    Args:
        path: a folder in hub layout or a single file (safetensors; GGUF if ComfyUI-GGUF is installed).
        weight_dtype: how weights are stored, a key of `WEIGHT_DTYPES`; quantised matrices stay as they are.
        model_options: as ComfyUI's own loaders take them; ``custom_operations`` are the layers to build it of.
        disable_dynamic: set by ComfyUI when it makes an independent copy.

    Raises:
        CheckpointError: what is wrong with the files, and what to do.
    """
    checkpoint = open_checkpoint(path, read_file)
    operations = (model_options or {}).get("custom_operations")
    if checkpoint.weights.is_gguf:
        patcher = load_gguf(checkpoint, weight_dtype, operations)
    elif checkpoint.weights.is_quantised or operations is not None:
        patcher = load_quantized(checkpoint, weight_dtype, disable_dynamic, operations)
    else:
        patcher = load_plain(checkpoint, weight_dtype, disable_dynamic)
    patcher.model.to(patcher.offload_device)
    patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_DETACH, forget_positions)
    add_previews(patcher)
    patcher.cached_patcher_init = (load_model, (str(path), weight_dtype, model_options))
    log.info(
        "%s: CogVideoX-Fun %s, %s, %d channels", shown(path), checkpoint.config.family,
        checkpoint.config.conditioning, checkpoint.config.in_channels,
    )  # fmt: skip
    return patcher

"""From a checkpoint on disk to the host's MODEL: which dtypes, which operations, which patcher."""

import logging
import math
from pathlib import Path

import comfy.model_management
import comfy.patcher_extension
import torch

from ..errors import CheckpointError, shown
from ..files.checkpoint import SAVED_PREFIX, Checkpoint, naming, open_checkpoint
from ..files.safetensors_files import SCALED_FP8, is_quantization
from ..networks.config import TransformerConfig, goes_to_fp8, hub_name
from ..networks.transformer import CogVideoXTransformer
from . import gguf as host_gguf
from .compat import accepts
from .files import read_file
from .model import CogVideoXFun, CogVideoXFunConfig
from .patcher import patcher_class
from .quantized import check_format, read_quantization, renamed_layers

log = logging.getLogger(__name__)

WEIGHT_DTYPES = {
    "default": None,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
}
IGNORED = {"patch_embed.pos_embedding", "v_pred"}  # tensors that some files have and nothing here reads


def choose_dtypes(checkpoint: Checkpoint, config: CogVideoXFunConfig, weight_dtype: str, load_device, packed: bool):
    """The dtype that weights are stored in and, where it differs, the one that is computed in; the log says why.

    Args:
        packed: the file's matrices are quantised and stay as they are, so the rest takes what the host prefers.
    """
    management = comfy.model_management
    infos = checkpoint.weights.tensors.values()
    supported = config.supported_inference_dtypes
    stored, why = WEIGHT_DTYPES[weight_dtype], "as chosen"
    if stored is None:
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


def read_state(checkpoint: Checkpoint, config: CogVideoXFunConfig) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint, checked; what the host must know of their quantisation goes into ``config``.

    Raises:
        CheckpointError: a tensor is missing, broken, of another shape, or of no known transformer.
    """
    weights = checkpoint.weights
    with torch.device("meta"):
        expected = CogVideoXTransformer(checkpoint.config)
    about = {key: weights[key] for key in weights if is_quantization(key)}
    with naming(checkpoint.path):
        check_format(about)
    state = weights.load_for(expected)
    unexpected = sorted(set(weights) - set(state) - set(about) - IGNORED)
    if unexpected:
        raise CheckpointError(
            f"{checkpoint.path}: {len(unexpected)} tensors belong to no known CogVideoX transformer, first "
            f"{unexpected[0]}: take a file of the CogVideoX or CogVideoX-Fun families"
        )
    with naming(checkpoint.path):
        metadata = renamed_layers(weights.metadata, lambda key: hub_name(key.removeprefix(SAVED_PREFIX)))
        state, found = read_quantization({**state, **about}, metadata)
    for name, value in found.items():
        setattr(config, name, value)
    state.pop(SCALED_FP8, None)
    return state


def kept_dtypes(state: dict[str, torch.Tensor], config: TransformerConfig, stored, compute) -> dict[str, torch.dtype]:
    """The parameters that stay out of fp8 storage, and their dtypes: the file's, or that to compute in if smaller."""
    if stored.itemsize > 1:
        return {}
    kept = {name: tensor.dtype for name, tensor in state.items() if not goes_to_fp8(name, tensor.shape, config)}
    return {name: dtype if 2 <= dtype.itemsize < compute.itemsize else compute for name, dtype in kept.items()}


def retype(model: torch.nn.Module, dtypes: dict[str, torch.dtype]) -> None:
    """Give parameters that are not loaded yet dtypes of their own; a dynamic patcher casts to those it finds noted."""
    for name, dtype in dtypes.items():
        path, _, attribute = name.rpartition(".")
        layer = model.get_submodule(path)
        setattr(layer, f"{attribute}_comfy_model_dtype", dtype)
        parameter = getattr(layer, attribute)
        if parameter is not None:
            setattr(layer, attribute, torch.nn.Parameter(parameter.to(dtype), requires_grad=False))


def fill(patcher, state: dict[str, torch.Tensor], mapped: bool, kept: dict[str, torch.dtype]) -> None:
    """Give a patcher's model its weights.

    Args:
        mapped: the model lies on the meta device, and the file's own tensors become its parameters: what is not cast
            costs no memory. Otherwise the layers read the tensors in their own way.
        kept: parameters with a dtype of their own, see `kept_dtypes`.
    """
    model = patcher.model
    retype(model.diffusion_model, kept)
    dynamic = accepts(model.load_model_weights, "assign") and patcher.is_dynamic()
    if not mapped:
        model.load_model_weights(state, "", **({"assign": True} if dynamic else {}))
        return
    # A dynamic patcher casts when it loads a layer. To fp8 it is done here: half as much is uploaded then, and
    # ComfyUI's --fast fp8_matrix_mult looks at the weights as they are.
    if not dynamic or model.get_dtype().itemsize == 1:
        state = {key: tensor.to(kept.get(key, model.get_dtype())) for key, tensor in state.items()}
    model.diffusion_model.load_state_dict(state, assign=True)


def forget_positions(patcher, unpatch_all: bool) -> None:
    """On unloading: a dynamic patcher moves weights off the GPU one by one, and knows nothing else of the model."""
    if unpatch_all:
        patcher.model.diffusion_model.forget_positions()


def load_model(
    path: str | Path,
    weight_dtype: str = "default",
    model_options: dict | None = None,
    disable_dynamic: bool = False,
):
    """Load a transformer as the host's MODEL.

    Args:
        path: a folder in hub layout or a single file (safetensors; GGUF where ComfyUI-GGUF is installed).
        weight_dtype: how weights are stored, a key of `WEIGHT_DTYPES`; quantised matrices stay as they are.
        model_options: as the host's own loaders take them; ``custom_operations`` are the layers to build it of.
        disable_dynamic: for the host, when it makes an independent copy.

    Raises:
        CheckpointError: what is wrong with the files, and what to do.
    """
    checkpoint = open_checkpoint(path, read_file)
    config = CogVideoXFunConfig(checkpoint)
    operations, gguf_nodes = (model_options or {}).get("custom_operations"), None
    if checkpoint.weights.is_gguf:
        gguf_nodes, ops = host_gguf.find_pack(str(path))
        operations = operations or ops.GGMLOps()
    state = read_state(checkpoint, config)
    if gguf_nodes is not None:
        state = host_gguf.as_ggml(state, checkpoint.weights, ops)
    config.custom_operations = operations

    load_device = comfy.model_management.get_torch_device()
    offload_device = comfy.model_management.unet_offload_device()
    packed = checkpoint.weights.is_gguf or any(map(is_quantization, checkpoint.weights))
    stored, compute = choose_dtypes(checkpoint, config, weight_dtype, load_device, packed)
    config.set_inference_dtype(stored, compute)
    mapped = not packed and operations is None
    model = CogVideoXFun(config, device="meta" if mapped else None)
    model.device = offload_device
    Patcher = patcher_class(load_device, disable_dynamic or gguf_nodes is not None)
    patcher = Patcher(model, load_device=load_device, offload_device=offload_device)
    fill(patcher, state, mapped, kept_dtypes(state, checkpoint.config, stored, compute))
    model.to(offload_device)
    if gguf_nodes is not None:
        patcher = gguf_nodes.GGUFModelPatcher.clone(patcher)
    patcher.add_callback(comfy.patcher_extension.CallbacksMP.ON_DETACH, forget_positions)
    patcher.cached_patcher_init = (load_model, (str(path), weight_dtype, model_options))
    log.info(
        "%s: CogVideoX-Fun %s, %s, %d channels", shown(path), checkpoint.config.family,
        checkpoint.config.conditioning, checkpoint.config.in_channels,
    )  # fmt: skip
    return patcher

"""Bytes of the real 2B and 5B configurations, traced on meta tensors: exact, and without a GPU or a checkpoint.

`MetaBytes` counts what is allocated at once, `MovedBytes` what every operation reads and writes. Tensors on the meta
device have sizes and no data. GB are 1e9 bytes. Weights do not count, and attention counts by its output only.
"""

import contextlib
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..model_loading.networks.config import TEXT_TOKENS, TransformerConfig
from ..model_loading.networks.transformer import CogVideoXTransformer
from ..model_loading.networks.vae import CogVideoXVAE, VAEConfig
from ..training.planning.plan import PUBLISHED
from ..training.planning.trace import LiveBytes

META = {"device": "meta", "dtype": torch.bfloat16}
CONFIGS = {"2B": PUBLISHED["2b"], "5B": PUBLISHED["5b"]}
SIZES = {"480x720x49": (13, 60, 90), "1024x1024x49": (13, 128, 128)}  # T h w of the latent
TILE = 32  # latents: 256 pixels

LINEAR = {"addmm", "mm", "bmm", "baddbmm"}
KINDS = ("linear layers", "attention", "norms and elementwise")
ALLOCATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
WRITE_ONLY = {"copy_", "fill_", "zero_"}  # the other operations in place read what they overwrite


class MetaBytes(LiveBytes):
    """The live bytes on the meta device. What moves to the CPU leaves it: ComfyUI's own VAE moves its chunks there."""

    def __init__(self):
        super().__init__(device="meta")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and torch.device(kwargs.get("device") or "meta").type == "cpu":
            return torch.empty(args[0].shape, device="cpu")
        return super().__torch_dispatch__(function, types, args, kwargs)


def tensors_of(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.is_meta]


@contextlib.contextmanager
def attention_as_its_output(seen: Callable[..., None] | None = None) -> Iterator[None]:
    """Count attention by its output alone, laid out as fused kernels do (B N heads d).

    What a kernel needs inside differs from GPU to GPU.

    Args:
        seen: called with q, k, v and the output of every attention.
    """
    kept = F.scaled_dot_product_attention

    def output(query, key, value, *_args, **_options):
        batch, heads, length, _ = query.shape
        result = query.new_empty(batch, length, heads, value.shape[-1]).transpose(1, 2)
        if seen is not None:
            seen(query, key, value, result)
        return result

    F.scaled_dot_product_attention = output
    try:
        yield
    finally:
        F.scaled_dot_product_attention = kept


def trace(run: Callable[[], object]) -> int:
    """The most live bytes of a call; what it returns is held until its end. What existed before does not count."""
    mode = MetaBytes()
    with torch.no_grad(), attention_as_its_output(), mode:
        result = run()
    del result
    return mode.peak()


class MovedBytes(TorchDispatchMode):
    """Counts what every operation reads and writes, without weights.

    Attributes:
        moved: bytes by kind of operation, see `KINDS`.
    """

    def __init__(self):
        super().__init__()
        self.moved = Counter()
        self._weights = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        given = tensors_of((args, kwargs))
        self._weights |= {storage_of(tensor) for tensor in given if isinstance(tensor, torch.nn.Parameter)}
        name = function._schema.name.removeprefix("aten::")
        views = not function._schema.is_mutable and {storage_of(tensor) for tensor in given} & {
            storage_of(tensor) for tensor in tensors_of(result)
        }
        if not views and name not in ALLOCATE:
            kind = KINDS[0] if name in LINEAR else KINDS[2]
            self.count(kind, *accesses(function._schema, name, args, kwargs, result))
        return result

    def attend(self, query, key, value, output) -> None:
        """Count an attention that reads q, k and v once, as fused kernels do."""
        self.count(KINDS[1], query, key, value, output)

    def count(self, kind: str, *tensors: torch.Tensor) -> None:
        self.moved[kind] += sum(size_of(tensor) for tensor in tensors if storage_of(tensor) not in self._weights)


def storage_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def accesses(schema, name: str, args: tuple, kwargs: dict, result) -> list[torch.Tensor]:
    """The tensors that an operation reads, and then those that it writes."""
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    overwritten = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    unread = {a.name for a in overwritten if a.kwarg_only or name in WRITE_ONLY}  # kwarg_only: out=
    reads = [value for key, value in given.items() if key not in unread]
    writes = [given[a.name] for a in overwritten if a.name in given] or [result]
    return [*tensors_of(reads), *tensors_of(writes)]


def size_of(tensor: torch.Tensor) -> int:
    """Bytes in memory; an expanded axis counts once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size for size, stride in sizes if stride)


def moved_by(call: Callable[[], object]) -> Counter:
    """Bytes of one call, by kind."""
    mode = MovedBytes()
    with torch.no_grad(), attention_as_its_output(mode.attend), mode:
        call()
    return mode.moved


def shared_options(config: TransformerConfig) -> dict:
    """The options of diffusers' and ComfyUI's transformers, which have the same names as ours."""
    names = ("num_attention_heads", "num_layers", "in_channels", "text_embed_dim", "use_rotary_positional_embeddings")
    return {name: getattr(config, name) for name in names}


def diffusers_transformer(config: TransformerConfig, latent_h: int, latent_w: int):
    """diffusers' transformer of a configuration, for latents of one size."""
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        **shared_options(config), sample_height=latent_h, sample_width=latent_w
    ).requires_grad_(False)


def diffusers_vae(config: VAEConfig):
    """diffusers' VAE of a configuration."""
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * len(config.block_out_channels),
        up_block_types=("CogVideoXUpBlock3D",) * len(config.block_out_channels),
        block_out_channels=config.block_out_channels,
        latent_channels=config.latent_channels,
        layers_per_block=config.layers_per_block,
    ).requires_grad_(False)


def bf16_on(device, model: torch.nn.Module) -> torch.nn.Module:
    """A model of the meta device on a device, in bf16, with random weights; buffers become zeros."""
    if torch.device(device).type != "meta":
        model.load_state_dict(random_state(model, device, torch.bfloat16), assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:
                module.register_buffer(name, torch.zeros_like(buffer, device=device), persistent=False)
    return model.to(device=device, dtype=torch.bfloat16).requires_grad_(False)


def random_state(module: torch.nn.Module, device="cpu", dtype=torch.float32) -> dict[str, torch.Tensor]:
    """Weights for a module, made on a device, of a size that keeps activations near one."""
    generator = torch.Generator(device).manual_seed(0)
    state = {}
    for name, value in module.state_dict().items():
        scale = value[0].numel() ** -0.5 if value.ndim > 1 else 0.1
        tensor = torch.randn(value.shape, generator=generator, device=device, dtype=torch.float32) * scale
        state[name] = (tensor + 1 if value.ndim == 1 and name.endswith("weight") else tensor).to(dtype)
    return state


def tokens_of(latent: tuple[int, int, int]) -> int:
    t, h, w = latent
    return t * h * w // 4 + TEXT_TOKENS


def call_inputs(config: TransformerConfig, latent: tuple[int, int, int], batch: int, device="meta"):
    """(latents with their conditioning B C T h w, timestep, text) of one call, bf16."""
    options = {"device": device, "dtype": torch.bfloat16}
    x = torch.randn(batch, config.in_channels, *latent, **options)
    timestep = torch.full((batch,), 500.0, device=device)
    return x, timestep, torch.randn(batch, TEXT_TOKENS, config.text_embed_dim, **options)


def config_of(name: str, layers: int | None) -> TransformerConfig:
    return dataclasses.replace(CONFIGS[name], num_layers=layers or CONFIGS[name].num_layers)


def transformer_call(
    config: TransformerConfig, latent: tuple[int, int, int], batch: int = 1, **options
) -> Callable[[], torch.Tensor]:
    """One call of ours; guidance is two calls of batch 1 where memory is short.

    Args:
        options: of `CogVideoXTransformer`.
    """
    model = CogVideoXTransformer(config, **META, **options).requires_grad_(False)
    x, timestep, text = call_inputs(config, latent, batch)
    noise, extra = x.split([16, config.in_channels - 16], dim=1)
    return lambda: model(noise, timestep, text, concat_latents=extra)


def diffusers_call(
    config: TransformerConfig, latent: tuple[int, int, int], batch: int = 2, device="meta"
) -> Callable[[], tuple]:
    """One call of diffusers' transformer; its pipeline runs both prompts of guidance at once."""
    with torch.device("meta"):
        model = diffusers_transformer(config, *latent[1:])
    model = bf16_on(device, model)
    rope = None
    if config.use_rotary_positional_embeddings:
        angles = torch.rand(tokens_of(latent) - TEXT_TOKENS, config.attention_head_dim, device=device)
        rope = angles.cos(), angles.sin()
    x, timestep, text = call_inputs(config, latent, batch, device)
    x = x.movedim(1, 2).contiguous()  # BCTHW -> BTCHW
    return lambda: model(x, text, timestep, image_rotary_emb=rope, return_dict=False)


def trace_transformer(name: str, latent: tuple[int, int, int], batch: int = 1, layers: int | None = None) -> int:
    """The most live bytes of `transformer_call`.

    Args:
        layers: fewer than the model has, for what does not depend on them.
    """
    return trace(transformer_call(config_of(name, layers), latent, batch))


def vae_on_meta() -> CogVideoXVAE:
    return CogVideoXVAE(VAEConfig(), **META).requires_grad_(False)


def decode_call(latent: tuple[int, int, int]) -> Callable[[], None]:
    """Decoding a latent in VideoX-Fun's chunks, each of which leaves the GPU at once."""
    z, vae = torch.empty(1, 16, *latent, **META), vae_on_meta()

    def run() -> None:
        for chunk in vae.decode_stream(z):
            del chunk

    return run


def trace_decode(latent: tuple[int, int, int], tile: int = 0) -> int:
    """The most live bytes of `decode_call`.

    Args:
        tile: latents, 0 = whole frames. One tile is as large as all.
    """
    t, h, w = latent
    return trace(decode_call((t, min(h, tile or h), min(w, tile or w))))


def trace_encode(frames: int, height: int, width: int) -> int:
    """Encoding a video of F H W pixels likewise."""
    pixels = torch.empty(1, 3, frames, height, width, **META)
    vae = vae_on_meta()

    def run() -> None:
        for chunk in vae.encode_stream(pixels):
            del chunk

    return trace(run)


def diffusers_decoder(config: VAEConfig, device="meta") -> Callable:
    """Decoding with diffusers' VAE."""
    with torch.device("meta"):
        vae = diffusers_vae(config)
    vae = bf16_on(device, vae)
    return lambda z: vae.decode(z).sample


def copies_of_a_block(make: Callable[..., Callable], name: str, batch: int = 1, **options) -> dict[str, float]:
    """Copies of the token stream that one more block moves, by kind, at 480x720x49.

    Args:
        make: `transformer_call` or `diffusers_call`.
        options: of `make`.
    """
    latent = SIZES["480x720x49"]
    one, two = (moved_by(make(config_of(name, layers), latent, batch, **options)) for layers in (1, 2))
    stream = batch * tokens_of(latent) * CONFIGS[name].dim * torch.bfloat16.itemsize
    return {kind: (two[kind] - one[kind]) / stream for kind in KINDS}

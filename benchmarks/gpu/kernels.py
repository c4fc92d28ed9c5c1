"""What this machine's kernels can do at the 5B's shapes: the ceilings, and the choices that the blocks could make."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...model_loading.comfyui.kernels import comfy_attention, comfy_norms, comfy_rotation
from ...model_loading.networks import blocks
from ...model_loading.networks.config import TEXT_TOKENS
from .. import traced
from .models import Scale, seconds

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def bench(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a kernel or a few, by events around each of many runs."""
    if device.type == "cpu":
        return seconds(run, device)
    from triton.testing import do_bench

    return do_bench(run, warmup=20, rep=60, return_mode="median") / 1e3


def measure(scale: Scale, write: Callable[[dict], None]) -> dict:
    """All of it, by group; ``write`` takes what there is after each."""
    config = scale.configs["5B"]
    tokens = traced.tokens_of(scale.first)
    found = {"tokens": tokens, "copy": copy(scale), "products": products(scale, tokens, config.dim)}
    write(found)
    found["attention"] = attention(scale, tokens, config.num_attention_heads)
    write(found)
    found["elementwise"] = elementwise(scale, tokens, config)
    return found


def make(scale: Scale, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=scale.device, dtype=torch.bfloat16)


def copy(scale: Scale) -> dict:
    """A copy on the device; TB/s count bytes read and written."""
    source = torch.empty(2**30 if scale.device.type != "cpu" else 2**20, dtype=torch.uint8, device=scale.device)
    target = torch.empty_like(source)
    taken = bench(lambda: target.copy_(source), scale.device)
    return {"seconds": taken, "TB/s": 2 * source.numel() / taken / 1e12}


def products(scale: Scale, tokens: int, dim: int) -> dict:
    """The feed-forward's first linear and a square one, with bias, in bf16, and the first in fp8."""
    found = {}
    for batch in (1, 2):
        for name, width in {"feed-forward": 4 * dim, "square": dim}.items():
            x, weight, bias = make(scale, batch, tokens, dim), make(scale, width, dim), make(scale, width)
            taken = bench(lambda x=x, weight=weight, bias=bias: F.linear(x, weight, bias), scale.device)
            flops = 2 * batch * tokens * dim * width
            found[f"{name}, batch {batch}"] = {"seconds": taken, "TFLOP/s": flops / taken / 1e12}
    if scale.device.type != "cpu":
        try:
            found["feed-forward, fp8"] = fp8_product(scale, 2 * tokens, dim, 4 * dim)
        except RuntimeError as error:  # a GPU that has no fp8 products, such as an A100
            found["feed-forward, fp8"] = {"error": str(error)[:200]}
    return found


def fp8_product(scale: Scale, tokens: int, dim: int, width: int) -> dict:
    """The same in fp8 with float32 scales of one, and what casting the input to fp8 costs."""
    x, weight = make(scale, tokens, dim), make(scale, width, dim).to(torch.float8_e4m3fn)
    one = torch.ones((), device=scale.device)
    x8 = x.to(torch.float8_e4m3fn)
    taken = bench(
        lambda: torch._scaled_mm(x8, weight.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16), scale.device
    )
    cast = bench(lambda: x.clamp(-448, 448).to(torch.float8_e4m3fn), scale.device)
    return {"seconds": taken, "TFLOP/s": 2 * tokens * dim * width / taken / 1e12, "cast": cast}


def attention(scale: Scale, tokens: int, heads: int) -> dict:
    """PyTorch's kernels, with q, k, v laid out as the blocks have them (B N heads d) and as B heads N d."""
    found = {}
    for batch in (1, 2):
        parts = [make(scale, batch, tokens, heads, 64).transpose(1, 2) for _ in range(3)]
        layouts = {"B N heads d": parts, "B heads N d": [part.contiguous() for part in parts]}
        flops = 4 * batch * tokens**2 * heads * 64
        for backend, kernel in BACKENDS.items():
            for layout, (q, k, v) in layouts.items():
                try:
                    with sdpa_kernel(kernel):
                        taken = bench(lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v), scale.device)
                except RuntimeError as error:
                    found[f"{backend}, {layout}, batch {batch}"] = {"error": str(error)[:200]}
                    continue
                found[f"{backend}, {layout}, batch {batch}"] = {"seconds": taken, "TFLOP/s": flops / taken / 1e12}
        q, k, v = parts

        taken = bench(lambda q=q, k=k, v=v: comfy_attention(q, k, v, heads, {}), scale.device)
        found[f"as the blocks run it, batch {batch}"] = {"seconds": taken, "TFLOP/s": flops / taken / 1e12}
    return found


def elementwise(scale: Scale, tokens: int, config) -> dict:
    """Seconds at batch 2 of what lies between the products, and of other ways to do it.

    GB/s count what must move: the stream read and written once.
    """
    dim, heads, batch = config.dim, config.num_attention_heads, 2
    x, shift, scale_ = make(scale, batch, tokens, dim), make(scale, batch, 1, dim), make(scale, batch, 1, dim)
    q = x.unflatten(-1, (heads, -1))
    weight, bias = make(scale, q.shape[-1]), make(scale, q.shape[-1])
    turned, norm = q.transpose(1, 2), torch.nn.LayerNorm(q.shape[-1], eps=1e-6, device=scale.device, dtype=q.dtype)
    norm.requires_grad_(False)
    norms = comfy_norms(scale.device, torch.bfloat16)
    stream_norm = torch.nn.LayerNorm(dim, device=scale.device, dtype=x.dtype).requires_grad_(False)
    modulation = make(scale, batch, 6 * dim)
    angles = torch.rand(tokens - TEXT_TOKENS, q.shape[-1] // 2)
    rope = blocks.rotation_matrices(torch.polar(torch.ones_like(angles), angles)).to(scale.device)
    rope = blocks.after_text(rope, tokens - len(angles))
    hidden = make(scale, batch, tokens, 4 * dim)

    runs = {
        "q/k LayerNorm": lambda: F.layer_norm(q, q.shape[-1:], weight, bias, 1e-6),
        "LayerNorm of the stream": lambda: F.layer_norm(x, (dim,), None, None, 1e-5),
        "modulation by addcmul": lambda: torch.addcmul(shift, x, 1 + scale_, out=x),
        "rotation, real arithmetic": lambda: blocks.rotate(turned, rope),
        "rotation, ComfyUI's": lambda: comfy_rotation()(turned, rope),
        "q/k LayerNorm and rotation, as the blocks run them": lambda: norms["norm_rotate"](q, norm, rope),
        "LayerNorm and modulation, as the blocks run them": lambda: norms["norm_modulate"](
            x, stream_norm, modulation, TEXT_TOKENS
        ),
        "gated add": lambda: x.addcmul_(x, scale_),
        "GELU in place": lambda: torch.ops.aten.gelu_(hidden, approximate="tanh"),
    }
    moved = {"GELU in place": 8}
    stream = x.numel() * x.element_size()
    found = {}
    with torch.no_grad():
        for name, run in runs.items():
            taken = bench(run, scale.device)
            found[name] = {"seconds": taken, "GB/s": moved.get(name, 2) * stream / taken / 1e9}
    return found

"""What the pack chooses of a ComfyUI's kernels, with stand-ins for what needs a GPU.

``python chosen_kernels.py COMFYUI``, with the ComfyUI's own Python; prints JSON.
"""

import json
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[2] / "tools"), str(Path(__file__).parents[1] / "helpers")]
from pretended import start  # noqa: E402

CPU = torch.device("cpu")


class Stub:
    """In place of `host_triton` and of ComfyUI's ``model_prefetch``: notes its calls."""

    def __init__(self):
        self.calls = []

    def norm_rotate_(self, x, *_rest):
        self.calls.append("norm_rotate_")
        return x

    def norm_modulate(self, x, *_rest):
        self.calls.append("norm_modulate")
        return x

    def make_prefetch_queue(self, queue, device, options):
        self.calls.append(len(queue))
        self.streamed = queue
        return queue

    def prefetch_queue_pop(self, queue, device, block):
        self.calls.append(block)


def norms() -> dict[str, bool]:
    """For each case whether Triton's kernels were used; where not, the numbers are those of `blocks`."""
    from cogvideox_fun.model_loading.comfyui import kernels as host_kernels
    from cogvideox_fun.model_loading.networks import blocks

    stub = Stub()
    host_kernels.triton_kernels = lambda *_: stub
    chosen = host_kernels.comfy_norms(CPU, torch.float32)
    x, modulation = torch.randn(2, 5, 4, 64), torch.randn(2, 6 * 256)
    rope = blocks.rotation_matrices(torch.polar(torch.ones(5, 32), torch.rand(5, 32)))

    def norm(width: int, **attributes):
        made = torch.nn.LayerNorm(width).requires_grad_(False)
        torch.nn.init.normal_(made.weight)
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    cases = {
        "plain": (x, {}),
        "not contiguous": (torch.randn(2, 4, 5, 64).transpose(1, 2), {}),
        "with a gradient": (x.clone().requires_grad_(), {}),
        "patched": (x, {"weight_function": [lambda weight: weight]}),
        "patched in parts": (x, {"weight_lowvram_function": lambda weight: weight}),
        "forward replaced": (x, {"forward": lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:])}),
    }
    found = {}
    for name, (given, attributes) in cases.items():
        stub.calls.clear()
        small, wide, tokens = norm(64, **attributes), norm(256, **attributes), given.flatten(2)
        rotated = chosen["norm_rotate"](given.clone(memory_format=torch.preserve_format), small, rope)
        if not given.is_contiguous():
            tokens = tokens.transpose(0, 1).contiguous().transpose(0, 1)
        modulated = chosen["norm_modulate"](tokens, wide, modulation, 2)
        found[name] = stub.calls == ["norm_rotate_", "norm_modulate"]
        if not stub.calls:
            torch.testing.assert_close(rotated, blocks.norm_rotate(given.clone(), small, rope))
            torch.testing.assert_close(modulated, blocks.norm_modulate(tokens.clone(), wide, modulation, 2))
        else:
            assert found[name], stub.calls
    packed = norm(64)
    packed.weight.data = packed.weight.data.to(torch.float8_e4m3fn)
    found["packed"] = host_kernels.is_at_hand(packed, CPU)
    found["on another device"] = host_kernels.is_at_hand(norm(64).to("meta"), CPU)
    return found


def kitchen() -> float | None:
    """The largest difference of comfy-kitchen's rotation from ours, or None where this ComfyUI has none."""
    from cogvideox_fun.model_loading.comfyui import kernels as host_kernels
    from cogvideox_fun.model_loading.networks import blocks

    rotate = getattr(getattr(host_kernels.quant_ops, "ck", None), "apply_rope1_", None)
    if rotate is None:
        return None
    x = torch.randn(2, 4, 5, 64)
    rope = blocks.rotation_matrices(torch.polar(torch.ones(5, 32), torch.rand(5, 32)))
    return (rotate(x.clone(), rope) - blocks.rotate(x.clone(), rope)).abs().max().item()


def fetched() -> dict:
    """The order in which ComfyUI's queue of weights is asked, and whether the modulations are in it."""
    from cogvideox_fun.model_loading.comfyui import model as host_model
    from cogvideox_fun.model_loading.networks.config import TransformerConfig
    from tiny_model import TINY, VARIANTS, random_weights

    config = TransformerConfig(**{**TINY, "num_layers": 3}, **VARIANTS["5b"])
    model = host_model.ComfyTransformer(config, operations=torch.nn).requires_grad_(False)
    model.load_state_dict(random_weights(model, seed=0))
    stub = host_model.model_prefetch = Stub()
    inputs = torch.randn(1, 16, 3, 6, 10), torch.tensor([500]), torch.randn(1, 9, 32)
    model(*inputs, transformer_options={})
    unasked = len(stub.calls)
    model(*inputs, transformer_options={"prefetch_dynamic_vbars": True})
    order = [stub.calls[0], *(None if b is None else list(model.transformer_blocks).index(b) for b in stub.calls[1:])]
    inside = {parameter for modules in stub.streamed for parameter in modules.parameters()}
    of_blocks = {p for block in model.transformer_blocks for p in block.parameters()}
    modulations = {p for linear in model.modulations() for p in linear.parameters()}
    return {"unasked": unasked, "order": order, "all but the modulations": inside == of_blocks - modulations}


if __name__ == "__main__":
    start(sys.argv[1])
    sys.stdout.write("\n" + json.dumps({"norms": norms(), "kitchen": kitchen(), "fetched": fetched()}) + "\n")

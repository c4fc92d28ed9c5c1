"""A LoRA of every kind that ComfyUI knows, for one layer."""

import math

import torch

RANK = 4


def shapes_of_kinds(shape: tuple[int, ...]) -> dict[str, dict[str, tuple[int, ...]]]:
    """Kind -> the shapes of the parts of a LoRA that changes a weight of this shape, and in some kinds its bias."""
    out, inputs = shape[0], math.prod(shape[1:])
    ones = [1] * (len(shape) - 2)
    hada = {f"hada_w{n}_{end}": size for n in (1, 2) for end, size in (("a", (out, RANK)), ("b", (RANK, inputs)))}
    return {
        "lora": {"lora_up.weight": (out, RANK), "lora_down.weight": (RANK, *shape[1:]), "alpha": ()},
        "dora": {"lora_up.weight": (out, RANK), "lora_down.weight": (RANK, inputs), "dora_scale": (out, 1, *ones)},
        "lokr": {"lokr_w1": (2, 1), "lokr_w2": (out // 2, inputs)},
        "lokr of products": {
            **{"lokr_w1_a": (2, RANK), "lokr_w1_b": (RANK, 1)},
            **{"lokr_w2_a": (out // 2, RANK), "lokr_w2_b": (RANK, inputs), "alpha": ()},
        },
        "hada": hada,
        "oft": {"oft_blocks": (2, out // 2, out // 2)},
        "diff": {"diff": shape, "diff_b": (out,)},
        "norm": {"w_norm": shape, "b_norm": (out,)},
        "set": {"set_weight": shape},
        "bias": {"diff_b": (out,)},
    }


def linear_shapes(out: int, inputs: int) -> dict[str, dict[str, tuple[int, ...]]]:
    factors = {"a1": (inputs, RANK), "a2": (RANK, inputs), "b1": (out, RANK), "b2": (RANK, inputs)}
    older = {"a1": (RANK, inputs), "a2": (inputs, RANK), "b1": (RANK, inputs), "b2": (out, RANK)}
    return {
        **shapes_of_kinds((out, inputs)),
        "glora": {f"{name}.weight": size for name, size in factors.items()},
        "older glora": {f"{name}.weight": size for name, size in older.items()},
    }


def convolution_shapes(out: int, inputs: int, *kernel: int) -> dict[str, dict[str, tuple[int, ...]]]:
    core = (RANK, RANK, *kernel)
    factors = {"a": (RANK, out), "b": (RANK, inputs)}
    return {
        **shapes_of_kinds((out, inputs, *kernel)),
        "lora with a middle": {
            "lora_up.weight": (out, RANK),
            "lora_down.weight": (RANK, inputs),
            "lora_mid.weight": core,
        },
        "hada with cores": {
            **{f"hada_t{n}": core for n in (1, 2)},
            **{f"hada_w{n}_{end}": size for n in (1, 2) for end, size in factors.items()},
        },
        "lokr with a core": {
            "lokr_w1": (1, 1),  # with more, torch.kron fails in ComfyUI, as it does here
            "lokr_t2": core,
            **{f"lokr_w2_{end}": size for end, size in factors.items()},
        },
        "glora": {
            **{"a1.weight": (inputs, RANK), "a2.weight": (RANK, inputs)},
            **{"b1.weight": (out, RANK), "b2.weight": (RANK, inputs * math.prod(kernel))},
        },
    }


def parts_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Random parts of these shapes."""
    generator = torch.Generator().manual_seed(0)
    return {
        part: torch.tensor(2.0) if part == "alpha" else 0.3 * torch.randn(size, generator=generator)
        for part, size in shapes.items()
    }


LINEAR = {kind: parts_of(shapes) for kind, shapes in linear_shapes(128, 128).items()}
CONVOLUTION = {kind: parts_of(shapes) for kind, shapes in convolution_shapes(128, 33, 2, 2).items()}

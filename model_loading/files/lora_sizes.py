"""Whether the parts of a LoRA fit a layer: ComfyUI's formulas on the meta device, where tensors are shapes alone.

ComfyUI leaves out a part that does not fit and only logs it, so every part is checked here.
"""

from collections.abc import Mapping

import torch

Parts = Mapping[str, torch.Tensor]  # of one layer: what follows its name -> the tensor

# The part that tells each kind of change. ComfyUI uses one kind for a layer.
KINDS = (
    *("lora_up.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a", "a1.weight", "oft_blocks"),
    *("diff", "w_norm", "set_weight"),
)


def factor(parts: Parts, name: str) -> torch.Tensor:
    """A factor of a LoHa or LoKr: stored whole, or as a product, which for convolutions may have a core."""
    if name in parts:
        return parts[name]
    a, b, core = parts[f"{name}_a"], parts[f"{name}_b"], parts.get(name.replace("_w", "_t"))
    return a @ b if core is None else torch.einsum("ijkl,jr,ip->prkl", core, b, a)


def change_of(parts: Parts, weight: torch.Tensor) -> torch.Tensor | None:
    """What an adapter adds to a weight, all axes but the first may be one; None without an adapter.

    Raises:
        KeyError: a part is missing.
        RuntimeError: the parts do not fit together.
    """
    names = parts.keys()
    if names & {"lora_up.weight", "lora_down.weight"}:
        down = parts["lora_down.weight"]
        if "lora_mid.weight" in parts:
            down = torch.einsum("rs...,si->ri...", parts["lora_mid.weight"], down.flatten(1))
        return parts["lora_up.weight"].flatten(1) @ down.flatten(1)
    if "hada_w1_a" in parts:
        return torch.stack([factor(parts, "hada_w1"), factor(parts, "hada_w2")]).prod(dim=0)  # of one shape
    if names & {"lokr_w1", "lokr_w1_a", "lokr_w2", "lokr_w2_a"}:
        first, second = factor(parts, "lokr_w1"), factor(parts, "lokr_w2")
        return torch.kron(first[(...,) + (None,) * (second.ndim - 2)], second)
    if "a1.weight" in parts:
        a1, a2, b1, b2 = (parts[f"{name}.weight"].flatten(1) for name in ("a1", "a2", "b1", "b2"))
        if len(a1) != weight.shape[1]:  # the older layout has the factors the other way round
            return weight.flatten(1) @ a2 @ a1 + b2 @ b1
        return torch.einsum("oi...,ij,jk->ok...", weight, a1, a2).flatten(1) + b1 @ b2
    if "oft_blocks" in parts:
        blocks = parts["oft_blocks"] @ parts["oft_blocks"]  # square
        if blocks.ndim == 4 and "alpha" not in parts:  # BOFT
            raise KeyError("alpha")
        return weight.new_empty(blocks.shape[-3] * blocks.shape[-1], *weight.shape[1:])
    return None


def changes(parts: Parts, weight: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """Whether the parts of a layer change it.

    Args:
        weight, bias: the layer's, on the meta device.

    Raises:
        ValueError: the parts do not fit; the message goes on from the layer's name.
    """
    parts = {name: torch.empty(value.shape, device="meta") for name, value in parts.items()}
    kinds = [name for name in KINDS if name in parts]
    if len(kinds) > 1:
        raise ValueError(f"is changed in two ways, {kinds[0]} and {kinds[1]}: ComfyUI would use one, use another file")
    if "alpha" in parts and parts["alpha"].numel() != 1:
        raise ValueError(f"has an alpha of {parts['alpha'].numel()} numbers, expected one: download the file again")
    try:
        change = change_of(parts, weight)
        for name in parts.keys() & {"dora_scale", "rescale"}:
            parts[name].expand_as(weight)
    except KeyError as error:
        raise ValueError(f"has no {error.args[0]}: the file is incomplete, download it again") from error
    except (RuntimeError, IndexError) as error:
        sizes = ", ".join(f"{name} {list(value.shape)}" for name, value in parts.items())
        raise ValueError(f"has parts that do not fit together ({sizes}): download the file again") from error
    pairs = [] if change is None else [(change.flatten(1), weight.reshape(len(weight), -1))]
    pairs += [(parts[name], weight) for name in ("diff", "w_norm", "set_weight") if name in parts]
    pairs += [(parts["diff_b"], bias)] if "diff_b" in parts else []
    pairs += [(parts["b_norm"], bias)] if parts.keys() >= {"w_norm", "b_norm"} else []  # alone it changes nothing
    for found, expected in pairs:
        if expected is None or found.shape != expected.shape:
            raise ValueError(f"is {sized(found)}, but the model's is {sized(expected)}: {belongs_to(found)}")
    return bool(pairs)


def sized(tensor: torch.Tensor | None) -> str:
    return "not there" if tensor is None else " x ".join(map(str, tensor.shape))


def belongs_to(change: torch.Tensor) -> str:
    """The remedy for a layer of another size, and the family that it comes from if its width tells."""
    widths = {"2B": 30 * 64, "5B": 48 * 64}
    families = [family for family, width in widths.items() if any(n % width == 0 for n in change.shape)]
    origin = f"this LoRA belongs to a {families[0]} model, " if len(families) == 1 else ""
    return f"{origin}choose a LoRA of the model that is loaded"

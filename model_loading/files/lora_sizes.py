"""What sizes the parts of a LoRA must have, for each kind that ComfyUI knows. No host.

ComfyUI leaves out a part that does not fit and writes that to its log; some parts end the run without a layer's name.
So every part is checked here, by the shapes alone, in ComfyUI's own order of axes.
"""

import math
from collections.abc import Mapping

Shape = tuple[int, ...]
Parts = Mapping[str, Shape]  # of one layer: what follows its name -> the tensor's shape

LEADING = {  # a part that only one kind has -> its kind
    "lora_up.weight": "lora",
    "lora_down.weight": "lora",
    "hada_w1_a": "hada",
    "lokr_w1": "lokr",
    "lokr_w1_a": "lokr",
    "lokr_w2": "lokr",
    "lokr_w2_a": "lokr",
    "a1.weight": "glora",
    "oft_blocks": "oft",
    "diff": "diff",
    "w_norm": "w_norm",
    "set_weight": "set_weight",
}
BIAS = ("diff_b", "b_norm")


class SizeError(ValueError):
    """Parts that do not fit; the message goes on from the layer's name."""


def kind_of(parts: Parts) -> str | None:
    """The kind of change that a layer's parts make to its weight, or None if they only change its bias, or nothing.

    Raises:
        SizeError: they are of two kinds, of which ComfyUI takes one.
    """
    kinds = sorted({LEADING[part] for part in parts if part in LEADING})
    if len(kinds) > 1:
        raise SizeError(f"holds {' and '.join(kinds)} at once, of which only one would count: take another file")
    return kinds[0] if kinds else None


def check(parts: Parts, weight: Shape, bias: Shape | None) -> None:
    """Raise a SizeError unless a layer's parts are complete and as large as its weight and bias."""
    kind = kind_of(parts)
    if kind is not None:
        made, wanted = by_inputs(MADE[kind](parts, weight)), by_inputs(weight)
        if made != wanted:
            raise SizeError(
                f"is {made[0]} x {made[1]}, but the model's is {wanted[0]} x {wanted[1]}: {belongs_to(made)}choose a "
                "LoRA of the model that is loaded"
            )
    for part in BIAS:
        if part in parts and parts[part] != bias:
            raise SizeError(
                f"has {part} of {list(parts[part])}, but the model's bias is {list(bias or ())}: choose a LoRA of the "
                "model that is loaded"
            )
    if "alpha" in parts and math.prod(parts["alpha"]) != 1:
        raise SizeError(f"has an alpha of {list(parts['alpha'])}, expected one number")
    ones = (1,) * (len(weight) - 2)
    outputs, inputs = (weight[0], 1, *ones), (1, *weight[1:2], *ones)
    if "dora_scale" in parts and parts["dora_scale"] not in ((weight[0],), outputs, inputs):
        raise SizeError(f"has dora_scale of {list(parts['dora_scale'])}, expected {list(outputs)} or {list(inputs)}")
    if "rescale" in parts and parts["rescale"] != outputs:
        raise SizeError(f"has rescale of {list(parts['rescale'])}, expected {list(outputs)}")


def belongs_to(made: tuple[int, int]) -> str:
    """What a layer's outputs and inputs say of its model, as the beginning of a remedy; empty if nothing."""
    families = {30 * 64: "2B", 48 * 64: "5B"}
    found = {family for width, family in families.items() if any(n % width == 0 for n in made)}
    return f"this LoRA belongs to a {found.pop()} model, " if len(found) == 1 else ""


def by_inputs(shape: Shape) -> tuple[int, int]:
    """A weight's outputs and inputs, a convolution's kernel counted among the inputs."""
    return shape[0], math.prod(shape[1:])


def need(parts: Parts, *names: str) -> list[Shape]:
    for name in names:
        if name not in parts:
            raise SizeError(f"has no {name.removesuffix('.weight')}: the file is incomplete, download it again")
    return [parts[name] for name in names]


def fit(parts: Parts, *names: str) -> SizeError:
    sizes = " and ".join(f"{name.removesuffix('.weight')} of {list(parts[name])}" for name in names)
    return SizeError(f"has {sizes}, which do not fit together: download it again")


def product(parts: Parts, first: str, second: str, flat: bool = False) -> Shape:
    """The shape of the matrix product of two parts.

    Args:
        flat: all axes but the first are taken as one.
    """
    a, b = need(parts, first, second)
    if len(a) < 2 or len(b) < 2 or not math.prod(a) or not math.prod(b) or math.prod(a[1:]) != b[0]:
        raise fit(parts, first, second)
    if not flat and (len(a) > 2 or len(b) > 2):
        raise fit(parts, first, second)
    return a[0], math.prod(b[1:])


def tucker(parts: Parts, core: str, first: str, second: str) -> Shape:
    """The shape of ComfyUI's einsum "i j k l, j r, i p -> p r k l" of a core and two factors."""
    t, a, b = need(parts, core, first, second)
    if len(t) != 4 or len(a) != 2 or len(b) != 2 or t[0] != a[0] or t[1] != b[0]:
        raise fit(parts, core, first, second)
    return a[1], b[1], t[2], t[3]


def lora(parts: Parts, _weight: Shape) -> Shape:
    outputs, inputs = product(parts, "lora_up.weight", "lora_down.weight", flat=True)
    if "lora_mid.weight" not in parts:
        return outputs, inputs
    rank, mid = parts["lora_down.weight"][0], parts["lora_mid.weight"]
    if len(mid) != 4 or mid[:2] != (rank, rank):
        raise fit(parts, "lora_mid.weight", "lora_down.weight")
    return outputs, inputs, *mid[2:]


def hada(parts: Parts, _weight: Shape) -> Shape:
    if "hada_t1" in parts or "hada_t2" in parts:
        made = [tucker(parts, f"hada_t{n}", f"hada_w{n}_a", f"hada_w{n}_b") for n in (1, 2)]
    else:
        made = [product(parts, f"hada_w{n}_a", f"hada_w{n}_b") for n in (1, 2)]
    if made[0] != made[1]:
        raise fit(parts, "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    return made[0]


def lokr(parts: Parts, _weight: Shape) -> Shape:
    first = parts["lokr_w1"] if "lokr_w1" in parts else product(parts, "lokr_w1_a", "lokr_w1_b")
    if "lokr_w2" in parts:
        second = parts["lokr_w2"]
    elif "lokr_t2" in parts:
        second = tucker(parts, "lokr_t2", "lokr_w2_a", "lokr_w2_b")
    else:
        second = product(parts, "lokr_w2_a", "lokr_w2_b")
    if len(first) != 2 or len(second) not in (2, 4):
        raise SizeError(f"has factors of {list(first)} and {list(second)}, expected matrices: download it again")
    return first[0] * second[0], first[1] * second[1], *second[2:]


def glora(parts: Parts, weight: Shape) -> Shape:
    """Two layouts, of which ComfyUI tells the older by its ranks: a1 and a2, b1 and b2 the other way round."""
    names = ("a1.weight", "a2.weight", "b1.weight", "b2.weight")
    a1, a2, b1, b2 = map(by_inputs, need(parts, *names))
    inputs = weight[1] if len(weight) > 1 else 1
    if b2[0] == b1[1] == a1[1] == a2[0] and a1[0] == a2[1] == inputs:
        return b1[0], b2[1]
    if b2[1] == b1[0] == a1[0] == a2[1] and a2[0] == a1[1] == math.prod(weight[1:]):
        return b2[0], b1[1]
    raise fit(parts, *names)


def oft(parts: Parts, weight: Shape) -> Shape:
    """Blocks that turn the outputs: n of size b, or of butterfly OFT (four axes) n for each of m stages."""
    (blocks,) = need(parts, "oft_blocks")
    if len(blocks) not in (3, 4) or blocks[-1] != blocks[-2]:
        raise SizeError(f"has oft_blocks of {list(blocks)}, expected [blocks, size, size]: download it again")
    outputs = blocks[-3] * blocks[-1]
    if len(blocks) == 4:
        need(parts, "alpha")
        stages, size = blocks[0], blocks[-1]
        if not stages or not size or size % 2 or outputs % (size * 2 ** (stages - 1)):
            raise SizeError(f"has oft_blocks of {list(blocks)}, whose stages do not fit together: download it again")
    return outputs, *weight[1:]


def whole(part: str):
    """A part that must be shaped as the weight is."""

    def made(parts: Parts, weight: Shape) -> Shape:
        if parts[part] != weight:
            raise SizeError(
                f"has {part} of {list(parts[part])}, but the model's weight is {list(weight)}: choose a LoRA of the "
                "model that is loaded"
            )
        return weight

    return made


MADE = {  # kind -> the size of the weight that its parts change: (parts, the weight's shape) -> shape
    "lora": lora,
    "hada": hada,
    "lokr": lokr,
    "glora": glora,
    "oft": oft,
    **{name: whole(name) for name in ("diff", "w_norm", "set_weight")},
}

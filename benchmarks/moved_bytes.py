"""The bytes that a block of the transformer reads and writes, counted operation by operation on the meta device.

The unit is a copy of the token stream: tokens x width x bytes of an element. PyTorch runs one operation after another
(eager), so each one reads its inputs from the GPU's memory and writes its outputs to it; torch.compile fuses some and
moves less.
"""

import math
from collections import Counter
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from .live_bytes import attention_as_its_output, tensors_of
from .traced import CONFIGS, SIZES, tokens_of

LINEAR = {"addmm", "mm", "bmm", "baddbmm"}
KINDS = ("linear layers", "attention", "norms and elementwise")
ALLOCATE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
WRITE_ONLY = {"copy_", "fill_", "zero_"}  # the other operations in place read what they overwrite


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
    """The tensors that an operation reads and those that it writes; one that it does both with comes twice."""
    given = dict(zip((argument.name for argument in schema.arguments), args, strict=False)) | kwargs
    overwritten = [a for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    unread = {a.name for a in overwritten if a.kwarg_only or name in WRITE_ONLY}  # kwarg_only: out=
    reads = [value for key, value in given.items() if key not in unread]
    writes = [given[a.name] for a in overwritten if a.name in given] or [result]
    return [*tensors_of(reads), *tensors_of(writes)]


def size_of(tensor: torch.Tensor) -> int:
    """Bytes in memory: what is expanded is there once."""
    sizes = zip(tensor.shape, tensor.stride(), strict=True)
    return tensor.element_size() * math.prod(size for size, stride in sizes if stride)


def moved_by(call: Callable[[], object]) -> Counter:
    """Bytes of one call, by kind."""
    mode = MovedBytes()
    with torch.no_grad(), attention_as_its_output(mode.attend), mode:
        call()
    return mode.moved


def copies_of_a_block(make: Callable[..., Callable], name: str, batch: int = 1, **options) -> dict[str, float]:
    """Copies of the token stream that one more block moves, by kind, at 480x720x49.

    Args:
        make: `transformer_call` or `diffusers_call`.
        options: of `make`.
    """
    latent = SIZES["480x720x49"]
    one, two = (moved_by(make(name, latent, batch, layers, **options)) for layers in (1, 2))
    stream = batch * tokens_of(latent) * CONFIGS[name].dim * torch.bfloat16.itemsize
    return {kind: (two[kind] - one[kind]) / stream for kind in KINDS}

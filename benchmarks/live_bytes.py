"""The live bytes of a run, traced without running it: tensors on the meta device have sizes and no data."""

import contextlib
import weakref
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of every storage on the meta device that an operation makes, until nothing holds it.

    Attributes:
        live, peak: bytes now, and the most so far. What existed before, weights for one, does not count.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in tensors_of((args, kwargs)):
            storage = tensor.untyped_storage()
            self._known.setdefault(storage._cdata, weakref.ref(storage))
        if function is torch.ops.aten._to_copy.default and leaves(args[0], kwargs):
            return torch.empty(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype, device="cpu")
        result = function(*args, **kwargs)
        for tensor in tensors_of(result):
            self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None and known() is not None:
            return

        def gone(_reference) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def leaves(tensor: torch.Tensor, kwargs: dict) -> bool:
    """Whether a copy takes a tensor off the meta device, which stands for a card."""
    return tensor.is_meta and torch.device(kwargs.get("device") or "meta").type == "cpu"


def tensors_of(tree) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.is_meta]


@contextlib.contextmanager
def attention_as_its_output(seen: Callable[..., None] | None = None) -> Iterator[None]:
    """Count attention by its output alone, laid out as fused kernels do (B N heads d): what one needs inside differs
    from GPU to GPU.

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


def trace(run: Callable[[], object]) -> LiveBytes:
    """The live bytes of a call; what it returns is held until its end."""
    mode = LiveBytes()
    with torch.no_grad(), attention_as_its_output(), mode:
        result = run()
    del result
    return mode

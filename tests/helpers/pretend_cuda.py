"""A CUDA GPU that is only pretended: tensors on it are FakeTensors, those on the CPU are real.

It needs a PyTorch that is built for CUDA, and no GPU. What crosses between the two, and what makes the CPU wait for
the GPU, is counted by where it happens.
"""

import collections
import contextlib
import dataclasses
import sys
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

GPU = torch.device("cuda", 0)
aten, COMPOSITE = torch.ops.aten, torch._C.DispatchKey.CompositeImplicitAutograd
# their result's size depends on the values
SIZED_BY_VALUES = (aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default)


def is_fake(value) -> bool:
    return isinstance(value, FakeTensor)


def is_gpu(device: torch.device | None) -> bool:
    return device is not None and device.type == "cuda"


@dataclasses.dataclass
class Seen:
    """What was counted, each by the place that did it: "file:function"."""

    waits: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    uploads: collections.Counter = dataclasses.field(default_factory=collections.Counter)  # from page-locked memory
    float64: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    order: list = dataclasses.field(default_factory=list)  # what a test marks, and the waits for events


@contextlib.contextmanager
def pretended_gpu():
    """While it is entered, ``device="cuda"`` works; gives the `PretendedGPU`."""
    gpu = PretendedGPU()
    cuda = replaced(
        torch.cuda,
        Event=lambda: PretendedEvent(gpu),
        current_device=lambda: 0,
        current_stream=lambda *_device: None,
        set_device=lambda _device: None,
        synchronize=lambda *_device: gpu.wait(torch.cuda.synchronize),
    )
    with gpu.fake, cuda, replaced(FakeTensor, tolist=lambda tensor: gpu.listed(tensor)), gpu:
        yield gpu


class PretendedGPU(TorchDispatchMode):
    """A number that is asked of the GPU is 1, and so is every value that comes from it."""

    def __init__(self):
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.seen = Seen()
        self.locked: list[torch.Tensor] = []  # page-locked memory

    def listed(self, tensor: torch.Tensor) -> list:
        self.seen.waits[f"{place()} tolist"] += 1
        return torch.ones(tensor.shape).tolist()

    def to_gpu(self, module: torch.nn.Module) -> None:
        """Move a module's parameters and buffers, as ``Module.to`` does."""
        for child in module.modules():
            for kind in (child._parameters, child._buffers):
                for name, tensor in kind.items():
                    if tensor is not None and not is_fake(tensor):
                        moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=GPU)
                        kind[name] = torch.nn.Parameter(moved, False) if kind is child._parameters else moved

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat, _ = tree_flatten((args, kwargs))
        target = next((value for value in flat if isinstance(value, torch.device)), None)
        from_gpu = any(map(is_fake, flat))
        if function is aten._local_scalar_dense.default and from_gpu:
            self.wait(function)
            return True if args[0].dtype == torch.bool else 1
        if function in (aten._to_copy.default, aten.copy_.default) and (from_gpu or is_gpu(target)):
            return self.copy(function, args, kwargs, target)
        if not from_gpu and not is_gpu(target):
            return self.on_cpu(function, args, kwargs)
        if function.namespace == "aten" and function.has_kernel_for_dispatch_key(COMPOSITE):
            with self:  # under inference_mode it comes whole
                return function.decompose(*args, **kwargs)
        if function in SIZED_BY_VALUES:
            self.wait(function)
        self.uploaded_operands(function, args)
        with self.fake:
            result = function(*args, **kwargs)
        self.look_at(function, result)
        return result

    def on_cpu(self, function, args, kwargs):
        locked = kwargs.pop("pin_memory", None)
        with unset_fake_temporarily():
            result = function(*args, **kwargs)
        if locked:
            self.locked.append(result)
        return result

    def is_locked(self, tensor: torch.Tensor) -> bool:
        return any(tensor.untyped_storage()._cdata == other.untyped_storage()._cdata for other in self.locked)

    def copy(self, function, args, kwargs, target):
        """A copy to, from or on the GPU."""
        if function is aten._to_copy.default:
            source, destination = args[0], target or args[0].device
            non_blocking = kwargs.get("non_blocking", False)
        else:
            source, destination = args[1], args[0].device
            non_blocking = len(args) > 2 and args[2]
        down, up = destination.type == "cpu", source.device.type == "cpu"
        if up and non_blocking and self.is_locked(source):
            self.seen.uploads[place()] += 1
        elif up or (down and not non_blocking):
            self.wait(function)
        if down:
            with unset_fake_temporarily():
                if function is aten.copy_.default:
                    return args[0].fill_(1)
                return torch.ones(source.shape, dtype=kwargs.get("dtype") or source.dtype)
        with self.fake:
            result = function(*args, **kwargs)
        self.look_at(function, result)
        return result

    def uploaded_operands(self, function, args) -> None:
        """Indices on the CPU are uploaded by the operator itself; single numbers travel with the launch."""
        if "index" in function.__name__:
            for value in tree_flatten(args)[0]:
                if isinstance(value, torch.Tensor) and not is_fake(value) and value.ndim:
                    self.wait(function)

    def look_at(self, function, result) -> None:
        for value in tree_flatten(result)[0]:
            if is_fake(value) and value.dtype in (torch.float64, torch.complex128):
                self.seen.float64[f"{place()} {function.__name__}"] += 1

    def wait(self, function) -> None:
        self.seen.waits[f"{place()} {function.__name__}"] += 1


class PretendedEvent:
    """In place of torch.cuda.Event, which needs a GPU."""

    def __init__(self, gpu: PretendedGPU):
        self.gpu = gpu

    def record(self, _stream) -> None:
        self.gpu.seen.order.append("copy")

    def synchronize(self) -> None:
        self.gpu.seen.order.append("arrived")


def place() -> str:
    """The innermost frame outside PyTorch and this file, "file:function"."""
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path != Path(__file__) and "torch" not in path.parts and "einops" not in path.parts:
            return f"{path.stem}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


@contextlib.contextmanager
def replaced(owner, **values):
    """Set attributes for a while."""
    before = {name: getattr(owner, name) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(owner, name, value)

"""One training step, traced on fake tensors: its live bytes and its operations, without a GPU and without weights.

PyTorch's `FakeTensorMode` runs the real task: every tensor has a size and no data. Fake tensors on a GPU need a
PyTorch built for CUDA, so these are on the CPU, and `GPUAutocast` adds what autocast does only on a GPU.

Not counted: what kernels need inside (cuBLAS, cuDNN), the CUDA context, and what the allocator loses to fragments.
"""

import dataclasses
import weakref
from collections import Counter
from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from ...model_loading.networks.config import TEXT_TOKENS, TransformerConfig, VAEConfig
from ...model_loading.networks.transformer import CogVideoXTransformer
from ...model_loading.networks.vae import CogVideoXVAE
from ..data.buckets import Bucket
from ..data.samples import latent_shape
from ..loop.config import Phase
from ..tasks.encoders import Encoded
from ..tasks.few_steps import FewStepsTask
from ..tasks.parts import prepare_transformer
from ..tasks.transformer import TransformerTask

ATTENTION = ("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention")
IN_FLOAT32 = (F.layer_norm, torch.layer_norm, F.group_norm, torch.group_norm)
PROMOTED = (torch.addcmul,)


class GPUAutocast(TorchFunctionMode):
    """What autocast does on a GPU and not on the CPU, for the operations of these networks.

    Norms run in float32, and addcmul in the widest type of its inputs (PyTorch's "Automatic Mixed Precision" page).
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (*IN_FLOAT32, *PROMOTED) and torch.is_autocast_enabled("cpu"):
            dtypes = [arg.dtype for arg in args if torch.is_tensor(arg)]
            widest = torch.float32 if function in IN_FLOAT32 or torch.float32 in dtypes else dtypes[0]
            args = [arg.to(widest) if torch.is_tensor(arg) else arg for arg in args]
        return function(*args, **(kwargs or {}))


def within(mode, call: Callable) -> Callable:
    """A function that enters a mode for its call."""

    def run(*args, **options):
        with mode:
            return call(*args, **options)

    return run


def fused_attention(q, k, v, heads: int, transformer_options: dict | None = None) -> torch.Tensor:
    """Attention by the fused kernels that `scaled_dot_product_attention` takes on a GPU, which store no N x N matrix.

    They have no kernel on the CPU: this runs on fake tensors alone. q, k, v: B heads N d -> B N (heads d).
    """
    if torch.is_autocast_enabled("cpu"):
        q, k, v = (x.to(torch.get_autocast_dtype("cpu")) for x in (q, k, v))
    if q.dtype == torch.float32:  # the flash kernel takes half precision alone
        result = torch.ops.aten._scaled_dot_product_efficient_attention(q, k, v, None, q.requires_grad)
    else:
        result = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)
    return rearrange(result[0], "b h n d -> b n (h d)")


class LiveBytes(TorchDispatchMode):
    """The bytes of every storage that an operation makes on a device, until nothing holds it, by kind, and what is
    computed.

    Kinds: "gradient" (see `keep_gradients`), "cast" (copies of ``weights`` in another type, which autocast keeps until
    the end of the forward pass) and "other". What existed before does not count.

    Attributes:
        timeline: the live bytes (other, gradient, cast) each time that they grew.
        flops: floating-point operations by name. Formulas are those of PyTorch's `FlopCounterMode`, which itself
            would hold tensors from the backward pass until its end.
    """

    def __init__(self, weights: list[torch.Tensor] = (), device: str = "cpu"):
        super().__init__()
        self.device = device
        self.live = {"other": 0, "gradient": 0, "cast": 0}
        self.timeline: list[tuple[int, int, int]] = [(0, 0, 0)]
        self.flops: Counter[str] = Counter()
        self._weights = {key_of(weight) for weight in weights}
        self._known: dict[int, list] = {}  # [weak reference, kind]

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for tensor in self.tensors_of((args, kwargs)):
            storage = tensor.untyped_storage()
            self._known.setdefault(storage._cdata, [weakref.ref(storage), None])
        result = function(*args, **kwargs)
        packet = function._overloadpacket
        if packet in flop_registry:
            self.flops[packet.__name__] += flop_registry[packet](*args, **kwargs, out_val=result)
        cast = function is torch.ops.aten._to_copy.default and key_of(args[0]) in self._weights
        for tensor in self.tensors_of(result):
            self._count(tensor.untyped_storage(), "cast" if cast else "other")
        return result

    def tensors_of(self, tree) -> list[torch.Tensor]:
        leaves = tree_leaves(tree)
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.device.type == self.device]

    def _count(self, storage: torch.UntypedStorage, kind: str) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is not None and known[0]() is not None:
            return

        def gone(_reference) -> None:
            self.live[self._known.pop(key)[1]] -= size

        self._known[key] = [weakref.ref(storage, gone), kind]
        self.live[kind] += size
        self.timeline.append(tuple(self.live.values()))

    def keep_gradients(self, parameters: list[torch.Tensor]) -> None:
        """Count what ends up as a parameter's gradient as such, from then on."""

        def keep(parameter: torch.Tensor) -> None:
            storage = parameter.grad.untyped_storage()
            known = self._known[storage._cdata]
            if known[1] == "other":
                known[1] = "gradient"
                self.live["other"] -= storage.nbytes()
                self.live["gradient"] += storage.nbytes()

        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(keep)

    def peak(self, part: slice = slice(None), of_gradients: float = 1, of_casts: float = 1) -> int:
        """The most live bytes in a part of the timeline, with a share of the gradients and of the casts."""
        moments = self.timeline[part]
        return int(max(other + gradient * of_gradients + cast * of_casts for other, gradient, cast in moments))


def key_of(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclasses.dataclass(frozen=True)
class Step:
    """A forward and a backward pass and an update, traced: bytes, and operations.

    The state stays for the whole run: all weights, the gradients, AdamW's moments and the average.
    """

    frozen: int  # weights
    trained: int  # weights, float32; the gradients have as many bytes
    moments: int
    average: int
    block: int  # numbers in a block's weights
    trained_block: int  # those of them that are trained
    # the most that the passes add to the weights, moments and average, with their new gradients
    forward: int
    backward: int
    # the same where gradients are in shards, and weights are gathered in the type of the products
    forward_sharded: int
    backward_sharded: int
    update: int  # the most that the update adds to the state
    attention_flops: int  # of both passes
    other_flops: int

    @property
    def passes(self) -> int:
        return max(self.forward, self.backward)

    @property
    def passes_sharded(self) -> int:
        return max(self.forward_sharded, self.backward_sharded)


# Blocks of the two traces that `trace_step` makes. With every block more, all that `Step` has grows by the same. In
# the forward pass the most bytes are live at its end. In the backward pass, either at its start, or at its end: where
# a block's gradients have more bytes than what is kept of it.
FEW, MORE = 2, 3


def trace_step(
    phase: Phase, config: TransformerConfig, bucket: Bucket, clips: int, accumulates: bool = False, shards: int = 1
) -> Step:
    """Trace a step of a phase that trains the transformer or a LoRA, with few blocks, and extend it to the model's.

    Args:
        config: of the transformer.
        clips: in a forward pass.
        accumulates: earlier micro-batches of the step have left their gradients, which count as state.
        shards: GPUs that share the gradients, for ``passes_sharded``.
    """
    if config.num_layers <= MORE:
        return trace_all_blocks(phase, config, bucket, clips, accumulates, shards)
    few, more = (
        trace_all_blocks(phase, dataclasses.replace(config, num_layers=n), bucket, clips, accumulates, shards)
        for n in (FEW, MORE)
    )
    values = {field.name: (getattr(few, field.name), getattr(more, field.name)) for field in dataclasses.fields(Step)}
    return Step(**{name: b + (b - a) * (config.num_layers - MORE) // (MORE - FEW) for name, (a, b) in values.items()})


def trace_all_blocks(
    # what
    phase: Phase,
    config: TransformerConfig,
    bucket: Bucket,
    clips: int,
    # how
    accumulates: bool = False,
    shards: int = 1,
    attention: Callable = fused_attention,
) -> Step:
    """`trace_step` with every block."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    transformer = make_transformer(phase, config, attention)
    with FakeTensorMode(), GPUAutocast():
        materialise(transformer)
        run = Run(phase, make_task(phase, transformer))
        run.update()  # makes the moments
        if not accumulates:
            run.optimizer.zero_grad()
        live = LiveBytes(run.parameters)
        live.keep_gradients(run.parameters)
        with live:
            loss = run.forward(encoded(phase, config, bucket, clips))
            turn = len(live.timeline)
            loss.backward()
        update = LiveBytes()
        with update:
            run.update()
    attention = sum(count for name, count in live.flops.items() if name.startswith(ATTENTION))
    everything, state = list(transformer.parameters()), run.optimizer.state.values()
    block = list(transformer.transformer_blocks[0].parameters())
    return Step(
        frozen=bytes_of(p for p in everything if not p.requires_grad),
        trained=bytes_of(run.parameters),
        moments=bytes_of(value for values in state for key, value in values.items() if key != "step"),
        average=bytes_of(run.average.shadow_params) if run.average else 0,
        block=sum(p.numel() for p in block),
        trained_block=sum(p.numel() for p in block if p.requires_grad),
        forward=live.peak(slice(turn)),
        backward=live.peak(slice(turn, None)),
        forward_sharded=live.peak(slice(turn), 1 / shards, 0),
        backward_sharded=live.peak(slice(turn, None), 1 / shards, 0),
        update=update.peak(),
        attention_flops=attention,
        other_flops=live.flops.total() - attention,
    )


def make_transformer(
    phase: Phase, config: TransformerConfig, attention: Callable = fused_attention
) -> CogVideoXTransformer:
    """The transformer of a phase on the meta device. Frozen weights have the type that `Parts` gives them."""
    dtype = torch.bfloat16 if phase.makes_lora and phase.mixed_precision == "bf16" else torch.float32
    options = {"attention": attention, "position_mode": phase.positions}
    transformer = CogVideoXTransformer(config, **options, device="meta", dtype=dtype).requires_grad_(False)
    for block in transformer.transformer_blocks:  # while blocks are recomputed, a mode around the step would be off
        block.forward = within(GPUAutocast(), block.forward)
    prepare_transformer(transformer, phase)
    return transformer


def make_task(phase: Phase, transformer: CogVideoXTransformer) -> TransformerTask:
    """The task of a phase, as `Parts` makes it."""
    config = transformer.config
    if phase.task == "few_steps":
        negative = torch.zeros(1, TEXT_TOKENS, config.text_embed_dim)
        return FewStepsTask(transformer, config.default_schedule, negative, phase.few_steps)
    return TransformerTask(transformer, config.default_schedule.alphas_cumprod())


def materialise(module: torch.nn.Module) -> None:
    """Move a module's parameters from the meta device to the CPU, with values of any kind. They may be fake there."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            empty = torch.empty(parameter.shape, dtype=parameter.dtype)
            part.register_parameter(name, torch.nn.Parameter(empty, parameter.requires_grad))


class Run:
    """The parts of `Trainer.train_step` that take memory."""

    def __init__(self, phase: Phase, task: TransformerTask):
        from diffusers.training_utils import EMAModel

        self.phase, self.task = phase, task
        self.parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
        for parameter in self.parameters:
            parameter.grad = torch.empty_like(parameter)
        self.optimizer = torch.optim.AdamW(self.parameters, foreach=True)  # the default on a GPU
        decay = phase.optimizer.ema_decay
        self.average = EMAModel(self.parameters, decay, foreach=True) if decay else None

    def forward(self, clips: Encoded) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.phase.mixed_precision == "bf16"):
            return self.task(clips).mean()

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters, self.phase.optimizer.max_grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.step(self.parameters)


def encoded(phase: Phase, config: TransformerConfig, bucket: Bucket, clips: int) -> Encoded:
    """Clips of a bucket as `Encoders` gives them, of any value."""
    noises = phase.batches.noises_per_clip
    grid = latent_shape(bucket)[1:]
    dtype = torch.bfloat16 if phase.mixed_precision == "bf16" else torch.float32
    extra = config.in_channels - config.out_channels
    return {
        "latent": torch.zeros(clips, config.out_channels, *grid),
        "extra": torch.zeros(clips, extra, *grid) if extra else None,
        "context": torch.zeros(clips, TEXT_TOKENS, config.text_embed_dim, dtype=dtype),
        "noise": torch.zeros(clips, noises, config.out_channels, *grid),
        "time": torch.zeros(clips, noises),
    }


def trace_encoding(phase: Phase, config: VAEConfig, bucket: Bucket, clips: int) -> tuple[int, int]:
    """Encoding clips of a bucket: the most bytes beside the VAE's weights and the pixels, and the operations."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    half = phase.mixed_precision == "bf16"
    with FakeTensorMode(), GPUAutocast(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        vae = CogVideoXVAE(config, dtype=torch.bfloat16 if half else torch.float32)
        video = torch.zeros(clips, 3, bucket.length, bucket.height, bucket.width)
        live = LiveBytes()
        with live:
            chunks = list(vae.encode_stream(video))
            del chunks
    return live.peak(), live.flops.total()

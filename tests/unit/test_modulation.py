"""The modulation, computed once a call where its linears lie."""

import copy

import pytest
import torch
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
from tiny_model import TINY, VARIANTS, random_weights
from torch.utils._python_dispatch import TorchDispatchMode


def inputs(config: TransformerConfig, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 2, 6, 10, generator=generator)
    text = torch.randn(2, 9, config.text_embed_dim, generator=generator)
    return x.to(device), torch.tensor([500, 20]).to(device), text.to(device)


def make(variant: str = "5b") -> CogVideoXTransformer:
    model = CogVideoXTransformer(TransformerConfig(**TINY, **VARIANTS[variant])).requires_grad_(False)
    model.load_state_dict(random_weights(model, seed=0))
    return model


@pytest.mark.parametrize("name, share", [("5B", 0.86), ("2B", 0.80)])
def test_what_must_be_resident(name, share):
    """Of the real configurations: all weights but the modulation's."""
    from cogvideox_fun.benchmarks.traced import resident_share

    assert 0.75 < resident_share(name) <= share


def test_every_linear_runs_once_a_call_before_the_blocks():
    model, order = make(), []
    for linear in model.modulations():
        linear.register_forward_hook(lambda *_: order.append("modulation"))
    model.transformer_blocks[0].register_forward_pre_hook(lambda *_: order.append("block"))
    model(*inputs(model.config))
    assert order == ["modulation"] * 2 * model.config.num_layers + ["block"]


class Crossings(TorchDispatchMode):
    """Lets tensors leave the meta device, which stands for a card, as zeros; counts the numbers that do."""

    def __init__(self):
        super().__init__()
        self.left = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = function is torch.ops.aten._to_copy.default and args[0].is_meta
        if leaves and torch.device(kwargs.get("device") or "meta").type == "cpu":
            self.left += args[0].numel()
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return function(*args, **kwargs)


def test_weights_on_another_device_stay_there():
    """Everything but the modulation on a card: one row a prompt leaves it, once, and the linears run on the CPU."""
    model, given = make().to("meta"), []
    for linear in model.modulations():
        linear.to_empty(device="cpu")
        linear.register_forward_hook(lambda _module, args, _out: given.append(args[0].device.type))
    with Crossings() as crossings, torch.no_grad():
        out = model(*inputs(model.config, "meta"))
    assert out.is_meta and given == ["cpu"] * 2 * model.config.num_layers
    assert crossings.left == 2 * model.config.time_embed_dim


def test_a_replaced_block_may_change_the_timestep_embedding():
    """The host's block replacement hands the embedding back; what it changes there counts."""
    model = make()
    x, timestep, text = inputs(model.config)
    other = copy.deepcopy(model)
    for linear in other.transformer_blocks[1].modulations:  # silu(0) = 0: the bias alone is left
        linear.weight.zero_()

    def without_timestep(args, extra):
        return extra["original_block"]({**args, "vec": torch.zeros_like(args["vec"])})

    options = {"patches_replace": {"dit": {("double_block", 1): without_timestep}}}
    replaced = model(x, timestep, text, transformer_options=options)
    torch.testing.assert_close(replaced, other(x, timestep, text))
    assert (replaced - model(x, timestep, text)).abs().max() > 1e-3

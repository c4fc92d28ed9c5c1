"""One call of every variant against VideoX-Fun's and, where it is right, diffusers' transformer."""

import pytest
import reference
from cogvideox_fun.model_loading.files.detect import detect
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer


def tiny(variant: str) -> tuple[CogVideoXTransformer, dict]:
    weights = reference.load(f"transformer_{variant}_weights")
    config = detect(
        {k: tuple(v.shape) for k, v in weights.items()}, reference.metadata(f"transformer_{variant}_weights")
    )
    model = CogVideoXTransformer(config).eval().requires_grad_(False)
    model.load_state_dict(weights)
    return model, weights


@pytest.mark.parametrize("variant", reference.VARIANTS)
def test_against_videox_fun(variant):
    """1e-4, the bound for one call; 2e-5 seen, the rounding of another order of sums."""
    model, _ = tiny(variant)
    io = reference.load(f"transformer_{variant}_io")
    out = model(
        reference.channels_second(io["a.latents"]),
        io["a.timestep"],
        io["a.text"],
        reference.channels_second(io["a.extra"]),
    )
    assert (reference.channels_second(out) - io["a.out"]).abs().max() <= 1e-4

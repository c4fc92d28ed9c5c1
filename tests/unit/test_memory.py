"""Memory that the README promises: traced bytes of the real configurations, and slices that change no number."""

import pytest
import torch
from cogvideox_fun.benchmarks import traced
from cogvideox_fun.benchmarks.live_bytes import trace
from cogvideox_fun.model_loading import blocks, memory
from cogvideox_fun.model_loading.config import TransformerConfig
from cogvideox_fun.model_loading.transformer import CogVideoXTransformer
from cogvideox_fun.model_loading.vae import CogVideoXVAE, VAEConfig
from tiny_model import TINY, VARIANTS, random_weights

SMALL, LARGE = traced.SIZES["480x720x49"], traced.SIZES["1024x1024x49"]


def test_the_trace_counts_what_is_alive_at_once():
    """Three tensors of 4000 bytes, two alive at a time; a view costs nothing, and what was there before neither."""
    before = torch.empty(1000, device="meta")

    def run():
        first = before + 1
        second = first + 1
        del first
        third = second.view(10, 100) + 1
        return third

    assert trace(run).peak == 8000


@pytest.mark.parametrize("latent, gigabytes", [(SMALL, 1.0), (LARGE, 2.8)])
def test_transformer_activations_of_the_5b(latent, gigabytes):
    """One call at batch 1, bf16: guidance is two calls where memory is short."""
    assert traced.trace_transformer("5B", latent, layers=2).peak <= gigabytes * 1e9


def test_activations_do_not_depend_on_how_many_blocks_there_are():
    few, more = (traced.trace_transformer("5B", SMALL, layers=layers).peak for layers in (2, 4))
    assert more <= 1.001 * few


def test_activations_grow_with_the_tokens_and_no_faster():
    """3,000 to 50,000 tokens: bytes a token within 30 %, since one slice of the feed-forward holds all of a short run,
    and within 1 % where it holds a part."""
    rates = []
    for latent in ((3, 60, 60), (13, 60, 64), (13, 90, 90), (13, 128, 128)):
        rates.append(traced.trace_transformer("5B", latent, layers=2).peak / traced.tokens_of(latent))
    assert max(rates) <= 1.3 * min(rates) and max(rates[1:]) <= 1.01 * min(rates), rates


@pytest.mark.parametrize("latent", [(3, 60, 60), (13, 128, 128)])
def test_attention_runs_once_a_block_at_any_length(monkeypatch, latent):
    calls = []
    kept = blocks.Attention.forward
    monkeypatch.setattr(blocks.Attention, "forward", lambda *args: calls.append(1) or kept(*args))
    traced.trace_transformer("5B", latent, layers=3)
    assert len(calls) == 3


def test_vae_decode():
    whole = traced.trace_decode(SMALL).peak
    assert whole <= 7.5e9 and traced.trace_decode(SMALL, traced.TILE).peak <= 4e9
    assert traced.trace_decode((5, 60, 90)).peak >= whole - 1e6, "49 frames take what 17 take"


@pytest.mark.parametrize("name", ["2B", "5B"])
@pytest.mark.parametrize("latent", [(1, 60, 90), (3, 60, 60), SMALL, LARGE])
@pytest.mark.parametrize("batch", [1, 2])
def test_declared_memory_of_a_call(name, latent, batch):
    """What the host is told, against the trace: 0.8 to 1.5 times."""
    told = memory.transformer_bytes(traced.CONFIGS[name], (batch, 16, *latent), element=2)
    assert 0.8 <= told / traced.trace_transformer(name, latent, batch, layers=2).peak <= 1.5


@pytest.mark.parametrize("latent", [(1, 60, 90), (4, 32, 32), SMALL])
def test_declared_memory_of_the_vae(latent):
    t, h, w = latent
    frames, config = 4 * t - 3, VAEConfig()
    decode = memory.decode_bytes(config, (1, 16, *latent), element=2) / traced.trace_decode(latent).peak
    encode = memory.encode_bytes(config, (1, 3, frames, 8 * h, 8 * w), element=2)
    assert 0.8 <= decode <= 1.5
    assert 0.8 <= encode / traced.trace_encode(frames, 8 * h, 8 * w).peak <= 1.5


@pytest.mark.parametrize("variant", ["2b", "5b", "v1.5"])
def test_slices_of_heads_and_tokens_change_nothing(monkeypatch, variant):
    """The feed-forward by groups of tokens, and the rotation in place, against all at once with gradients."""
    config = TransformerConfig(**{**TINY, "num_attention_heads": 5}, **VARIANTS[variant])
    model = CogVideoXTransformer(config)
    model.load_state_dict(random_weights(model, seed=0))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 16, 4, 6, 10, generator=generator)
    text = torch.randn(2, 21, config.text_embed_dim, generator=generator)
    timestep = torch.tensor([500, 20])
    whole = model(x, timestep, text).detach()
    for tokens in (1, 7, 21, 30):  # inside the text, at its end, and over both
        monkeypatch.setattr(blocks, "TOKENS_AT_ONCE", tokens)
        with torch.no_grad():
            assert (model(x, timestep, text) - whole).abs().max() <= 1e-5


@pytest.mark.parametrize("heads", [1, 2, 3, 5, 9])
def test_rotation_by_groups_of_heads(monkeypatch, heads):
    """In bf16, where each group is turned in float32: the same to the bit as all heads at once."""
    q = torch.randn(2, 5, 12, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    rope = torch.polar(torch.ones(9, 4), torch.rand(9, 4, generator=torch.Generator().manual_seed(1)))
    expected = blocks.rotate(q.clone().requires_grad_(), rope, 3).detach()
    monkeypatch.setattr(blocks, "HEADS_AT_ONCE", heads)
    assert torch.equal(blocks.rotate(q.clone(), rope, 3), expected)
    exact = blocks.rotate(q.float(), rope, 3)
    torch.testing.assert_close(expected.float(), exact, rtol=2**-8, atol=0)
    assert torch.equal(exact[:, :, :3], q[:, :, :3].float()), "text is not turned"


def test_what_goes_in_is_not_overwritten():
    config = TransformerConfig(**TINY, **VARIANTS["5b"])
    model = CogVideoXTransformer(config).requires_grad_(False)
    model.load_state_dict(random_weights(model, seed=0))
    vae = CogVideoXVAE(VAEConfig(block_out_channels=(8, 16, 16, 16), layers_per_block=1, norm_num_groups=4))
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 3, 6, 10, generator=generator)
    text = torch.randn(1, 9, config.text_embed_dim, generator=generator)
    extra = torch.randn(1, 17, 3, 6, 10, generator=generator)
    pixels = torch.randn(1, 3, 9, 48, 80, generator=generator)
    kept = [part.clone() for part in (x, text, extra, pixels)]
    with torch.no_grad():
        first = model(x, torch.tensor([500]), text, extra_latents=extra)
        assert torch.equal(first, model(x, torch.tensor([500]), text, extra_latents=extra))
        latent, decoded = vae.encode(pixels), vae.decode(x)
        assert torch.equal(latent, vae.encode(pixels)) and torch.equal(decoded, vae.decode(x))
    assert all(torch.equal(part, was) for part, was in zip((x, text, extra, pixels), kept, strict=True))

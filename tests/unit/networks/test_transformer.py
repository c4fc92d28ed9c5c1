import shutil
import warnings

import pytest
import torch
from tiny_model import VARIANTS, tiny_transformer


def call(model, latent=(4, 6, 10), batch=1, text_tokens=226, **options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 16, *latent, generator=generator)
    text = torch.randn(batch, text_tokens, 32, generator=generator)
    return model(x, torch.full((batch,), 499), text, **options)


# but for the one that knows one size alone, see tests/parity/test_relatives.py
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "5b-image"])
def test_shapes(variant):
    model = tiny_transformer(variant)
    assert call(model, (4, 6, 10), batch=2).shape == (2, 16, 4, 6, 10)
    assert call(model, (1, 6, 10)).shape == (1, 16, 1, 6, 10), "one frame makes an image"
    assert call(model, text_tokens=7).shape == (1, 16, 4, 6, 10), "text of any length"


def test_one_frame_on_v15_sees_a_zero_frame():
    """Not a wrapped or repeated one: equal to the first of two frames whose second is zero, conditioning too."""
    model = tiny_transformer("v1.5")
    generator = torch.Generator().manual_seed(3)
    x, extra = (torch.randn(1, c, 1, 6, 10, generator=generator) for c in (16, 17))
    text, timestep = torch.randn(1, 226, 32, generator=generator), torch.tensor([499])

    def padded(y):
        return torch.cat([y, torch.zeros_like(y)], dim=2)

    expected = model(padded(x), timestep, text, padded(extra))[:, :, :1]
    assert torch.equal(model(x, timestep, text, extra), expected)


@pytest.mark.parametrize(
    "variant, latent, words",
    [
        ("2b", (14, 6, 10), "14 frames.*length to 49 or less"),
        ("5b", (14, 6, 10), "14 frames.*length to 49 or less"),
        ("v1.5", (3, 6, 10), "length of 9.*set length to 5 or 13"),
        ("5b", (4, 5, 10), "5 x 10.*multiples of 16"),
        ("5b", (4, 6, 8), r"\[1, 17, 4, 6, 10\], expected \[1, 17, 4, 6, 8\]"),
    ],
)
def test_shapes_that_a_variant_does_not_take(variant, latent, words):
    with pytest.raises(ValueError, match=words):
        call(tiny_transformer(variant), latent, concat_latents=torch.zeros(1, 17, 4, 6, 10))


def test_positions_are_computed_once_per_grid(monkeypatch):
    model = tiny_transformer("5b")
    call(model)
    kept = next(iter(model._positions.values()))
    call(model)
    assert next(iter(model._positions.values())) is kept
    call(model, (4, 8, 8))
    assert len(model._positions) == 1, "only the last grid is kept"


def test_positions_kept_from_inference_serve_training():
    for variant in ("2b", "5b"):
        model = tiny_transformer(variant)
        with torch.inference_mode():
            call(model)
        model.requires_grad_(True)
        call(model).sum().backward()


def test_attention_output_patch_sees_text_first():
    model, seen = tiny_transformer("5b"), []

    def patch(out, options):
        seen.append((out.shape, options["img_slice"], options["block_index"], options["total_blocks"]))
        return out * 0

    plain = call(model)
    patched = call(model, transformer_options={"patches": {"attn1_output_patch": [patch]}})
    tokens = 226 + 4 * 3 * 5
    assert seen == [((1, tokens, 128), [226, tokens], i, 2) for i in range(2)]
    assert not torch.allclose(plain, patched)


@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_attn1_patch(variant):
    """Called in every block with what ComfyUI's joint-attention models give it: normed q and k before their rotation,
    text first; what it returns is used, and what it leaves out is kept."""
    model, seen = tiny_transformer(variant), []

    def patch(q, k, v, pe=None, attn_mask=None, extra_options=None):
        tokens = 226 + 4 * 3 * 5
        assert q.shape == k.shape == v.shape == (1, 2, tokens, 64) and attn_mask is None
        assert (pe is None) == (variant == "2b") and (pe is None or pe.shape == (1, 1, tokens, 32, 2, 2))
        assert extra_options["img_slice"] == [226, tokens]
        seen.append(extra_options["block_index"])
        return changes(q, k, v)

    options = {"patches": {"attn1_patch": [patch]}}
    plain = call(model)
    changes = lambda q, k, v: {}  # noqa: E731
    torch.testing.assert_close(call(model, transformer_options=options), plain, rtol=0, atol=1e-5)
    assert seen == [0, 1]
    changes = lambda q, k, v: {"v": 2 * v}  # noqa: E731
    assert (call(model, transformer_options=options) - plain).abs().max() > 1e-2


def test_block_replacement():
    """It gets text and video tokens apart and the timestep embedding; what it changes there counts."""
    model, seen = tiny_transformer("5b"), []

    def replace(args, extra):
        seen.append((args["img"].shape[1], args["txt"].shape[1]))
        return extra["original_block"]({**args, "vec": change(args["vec"])})

    options = {"patches_replace": {"dit": {("double_block", 1): replace}}}
    plain = call(model)
    change = lambda temb: temb  # noqa: E731
    assert torch.equal(call(model, transformer_options=options), plain) and seen == [(60, 226)]
    change = torch.zeros_like
    replaced = call(model, transformer_options=options)
    for norm in (model.transformer_blocks[1].norm1, model.transformer_blocks[1].norm2):
        norm.linear.weight.zero_()  # silu(0) = 0, which leaves the bias alone
    torch.testing.assert_close(replaced, call(model))
    assert (replaced - plain).abs().max() > 1e-3


def test_progress_and_the_callers_options():
    """Progress is reported before every block; the caller's options are left alone."""
    seen, options = [], {}
    call(tiny_transformer("5b", on_progress=lambda *done: seen.append(done)), transformer_options=options)
    assert seen == [(0, 2), (1, 2)] and options == {}


def test_every_layer_comes_from_operations():
    class Counting:
        made = 0

        def __getattr__(self, name):
            def make(*args, **kwargs):
                Counting.made += 1
                return getattr(torch.nn, name)(*args, **kwargs)

            return make

    model = tiny_transformer("5b", operations=Counting())
    weighted = [m for m in model.modules() if any(True for _ in m.parameters(recurse=False))]
    assert len(weighted) == Counting.made


# torch.compile


def compiled_and_plain(variant: str, backend: str) -> tuple[torch.Tensor, torch.Tensor]:
    """What a model makes of one input with its blocks compiled, and as it is; fullgraph raises at the first break."""
    torch._dynamo.reset()
    model = tiny_transformer(variant)
    generator = torch.Generator().manual_seed(0)
    inputs = (
        torch.randn(1, 16, 4, 6, 10, generator=generator),
        torch.tensor([500]),
        torch.randn(1, 8, model.config.text_embed_dim, generator=generator),
    )
    expected = model(*inputs)
    for index, block in enumerate(model.transformer_blocks):
        model.transformer_blocks[index] = torch.compile(block, backend=backend, fullgraph=True)
    return model(*inputs), expected


@pytest.mark.parametrize("variant", ["2b", "5b", "v1.5"])
def test_a_block_is_one_graph(variant):
    """The eager backend runs what was captured as it is."""
    found, expected = compiled_and_plain(variant, "eager")
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.long
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles for the CPU with g++, which is not here")
@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_inductor_compiles_a_block(variant, monkeypatch, tmp_path):
    """Without a warning: complex numbers, which inductor can't fuse, would give one. With a cache of its own: what was
    compiled with other instructions of the CPU gave NaN."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found, expected = compiled_and_plain(variant, "inductor")
    assert torch.allclose(found, expected, atol=1e-4)

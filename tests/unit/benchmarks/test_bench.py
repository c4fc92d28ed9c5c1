"""What make bench measures: timed pairs compute the same, bytes are counted, pages are written. No time is judged."""

import pytest
from cogvideox_fun.benchmarks import performance, timed, traced
from cogvideox_fun.model_loading.networks.vae import VAEConfig


def test_the_timed_pairs_compute_the_same():
    """At small sizes, and with a small VAE."""
    vae = VAEConfig(block_out_channels=(32,) * 4, layers_per_block=1)
    _, transformer = timed.time_transformer(rounds=0, latent=(3, 8, 12))
    _, decode = timed.time_decode(rounds=0, latent=(3, 4, 6), config=vae)
    assert transformer <= 1e-5 and decode <= 1e-5


def test_a_block_moves_less_than_diffusers():
    """Copies of the token stream in norms and elementwise work: at most 45 in the 5B. The rest is the same."""
    ours, theirs = (
        traced.copies_of_a_block(make, "5B", batch=2) for make in (traced.transformer_call, traced.diffusers_call)
    )
    assert ours["norms and elementwise"] <= 45 < theirs["norms and elementwise"]
    for kind, copies in (("linear layers", 18), ("attention", 4)):
        assert ours[kind] == pytest.approx(copies, abs=0.1) == theirs[kind]


def test_loading_takes_no_memory_of_its_own():
    """In its own process, of a file of 270 MB: at most a tenth of it, and 0.6 when cast to half its width."""
    found = timed.loading_apart(timed.SMALL)
    assert found["as it is"]["anonymous"] <= 0.1
    assert found["cast to fp8"]["anonymous"] <= 0.6


def test_the_page_is_written(tmp_path):
    row = {"what": "a", "ours": "1 GB", "diffusers": "2 GB", "native": "", "goal": "at most 1 GB", "reached": True}
    performance.write(tmp_path, {"cores": 2, "torch": "2", "rows": [row], "bytes by tokens": [(1, 10), (2, 20)]})
    assert "| a | 1 GB | 2 GB |  | at most 1 GB | yes |\n" in (tmp_path / "performance.md").read_text()
    assert (tmp_path / "pictures" / "growth.png").stat().st_size > 3000

"""What make bench measures: timed pairs compute the same, bytes are counted, tables are written. No time is judged."""

import json

import pytest
import torch
from cogvideox_fun.benchmarks import loading, paper, table, timed, traced
from cogvideox_fun.benchmarks.moved_bytes import copies_of_a_block, moved_by
from cogvideox_fun.benchmarks.table import Row
from cogvideox_fun.model_loading.networks.vae import VAEConfig
from pack import ROOT
from tiny_model import write_tiny_model


def test_the_timed_pairs_compute_the_same():
    """At small sizes, and a small VAE."""
    vae = VAEConfig(block_out_channels=(32,) * 4, layers_per_block=1)
    _, transformer = timed.time_transformer(rounds=0, latent=(3, 8, 12))
    _, decode = timed.time_decode(rounds=0, latent=(3, 4, 6), config=vae)
    assert transformer <= 1e-5 and decode <= 1e-5


def test_pairs_are_interleaved_and_one_slow_run_changes_nothing():
    order = []
    pairs, *results = timed.interleaved(lambda: order.append("a") or 1, lambda: order.append("b") or 2, rounds=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab" and results == [1, 2] and len(pairs.seconds) == 3
    quiet = timed.Pairs(((0.9, 1.0), (1.8, 2.0), (2.8, 3.0)))
    assert quiet.ratio == 0.9 and quiet.theirs == 2.0
    assert timed.Pairs((*quiet.seconds[:2], (90.0, 3.0))).ratio == 0.9


def test_moved_bytes_by_hand():
    """Of 4 x 8 floats, 128 bytes each; rows that are expanded are read once, and neither views nor weights count."""
    x, y, row = torch.empty(4, 8, device="meta"), torch.empty(4, 8, device="meta"), torch.empty(1, 8, device="meta")
    linear = torch.nn.Linear(8, 16, device="meta")
    cases = (
        (lambda: x + y, 3 * 128),
        (lambda: x.mul_(y), 3 * 128),
        (lambda: x.copy_(y), 2 * 128),
        (lambda: x + row.expand(4, 8), 2 * 128 + 32),
        (lambda: torch.addcmul(x, x, row, out=y), 3 * 128 + 32),
        (lambda: x.view(8, 4).t()[1:].contiguous(), 2 * 96),
        (lambda: (x.view(2, 16), torch.empty_like(x)), 0),
        (lambda: linear(x), 128 + 256),
    )
    for run, expected in cases:
        assert sum(moved_by(run).values()) == expected
    q = torch.empty(1, 2, 4, 4, device="meta")
    assert moved_by(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q)) == {"attention": 4 * 128}


def test_a_block_moves_less_than_diffusers():
    """Copies of the token stream beside linear layers and attention, which are the same: at most 45 of the 5B's."""
    ours, one = (copies_of_a_block(traced.transformer_call, "5B", batch=batch) for batch in (2, 1))
    theirs = copies_of_a_block(traced.diffusers_call, "5B", batch=2)
    for found in (ours, one):
        assert found["norms and elementwise"] <= 45 < theirs["norms and elementwise"]
        for kind, copies in (("linear layers", 18), ("attention", 4)):
            assert found[kind] == pytest.approx(copies, abs=0.1) == theirs[kind]


@pytest.mark.parametrize("table", ["copies", "steps", "memory", "decode"])
def test_the_page_of_costs_has_what_the_command_prints(table):
    printed = getattr(paper, f"{table}_table")()
    page = (ROOT / "docs" / "cost.md").read_text(encoding="utf-8")
    assert printed in page, f"put what `python benchmarks/run.py paper` prints into docs/cost.md:\n{printed}"


def test_loading_takes_no_memory_of_its_own(tmp_path):
    """In its own process, of a file of 270 MB: at most a tenth of it, and 0.6 when cast to half its width."""
    found = loading.measured_apart(loading.SMALL)
    assert found["as it is"]["anonymous"] <= 0.1
    assert found["cast to fp8"]["anonymous"] <= 0.6


def test_what_is_loaded_has_the_files_values(tmp_path):
    """Mapped parameters, of the file's dtype and cast."""
    from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
    from cogvideox_fun.model_loading.standalone import load_transformer

    opened = open_checkpoint(write_tiny_model(tmp_path / "model"))
    for dtype in (torch.float32, torch.bfloat16):
        state = load_transformer(opened, dtype).state_dict()
        assert all(torch.equal(state[key], opened.weights[key].to(dtype)) for key in state)


def test_the_table_is_written(tmp_path):
    rows = [Row("a", "1.00 GB", "2.00 GB", "4.00 GB", "at most 1 GB", True), Row("b", "3")]
    table.write(tmp_path, rows, [(1, 10), (2, 20)])
    assert (tmp_path / "bench.md").read_text().splitlines()[2:] == [
        "| a | 1.00 GB | 2.00 GB | 4.00 GB | at most 1 GB | yes |",
        "| b | 3 |  |  |  |  |",
    ]
    assert json.loads((tmp_path / "bench.json").read_text())["bytes by tokens"] == [[1, 10], [2, 20]]
    assert (tmp_path / "bench.png").stat().st_size > 3000

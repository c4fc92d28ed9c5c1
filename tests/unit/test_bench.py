"""What make bench measures: its timed pairs compute the same, and its table is written whole. No timing is judged."""

import json

import torch
from cogvideox_fun.benchmarks import loading, table, timed
from cogvideox_fun.benchmarks.table import Row
from tiny_model import write_tiny_model


def test_the_timed_pairs_compute_the_same():
    assert timed.time_transformer(rounds=0)["difference"] <= 1e-5
    assert timed.time_decode(rounds=0)["difference"] <= 1e-5


def test_loading_takes_no_memory_of_its_own(tmp_path):
    """In its own process, of a file of 270 MB: at most a tenth of it, and 0.6 when cast to half its width."""
    found = loading.measured_apart(loading.SMALL)
    assert found["as it is"]["anonymous"] <= 0.1
    assert found["cast to fp8"]["anonymous"] <= 0.6


def test_what_is_loaded_has_the_files_values(tmp_path):
    """Mapped parameters, of the file's dtype and cast."""
    from cogvideox_fun.model_loading.checkpoint import open_checkpoint
    from cogvideox_fun.model_loading.pipeline import load_transformer

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

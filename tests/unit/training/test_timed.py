"""Training in a given time."""

import time
from statistics import fmean
from types import SimpleNamespace

import pytest
from cogvideox_fun.training.loop.config import Batches, Data, Optimizer, Phase, read_phase
from cogvideox_fun.training.loop.phase import run_phase
from cogvideox_fun.training.loop.progress import read_losses
from cogvideox_fun.training.loop.state import newest
from cogvideox_fun.training.nano import make


def test_a_phase_gets_the_steps_that_fit(tiny_model, tmp_path, monkeypatch):
    """The timed steps are kept: the run continues from them, and so does a run that was interrupted later."""
    batches, optimizer = Batches(8, ((48, 32),), 5, 0.3, batch_size=2), Optimizer(1e-3, warmup_steps=make.TRIED_STEPS)
    options = {"batches": batches, "data": Data(seed=5), "optimizer": optimizer}
    phase = Phase("full", str(tiny_model), str(tmp_path / "out"), 3, **options)
    late = make.fitted(phase, until=time.monotonic() - 1)
    assert late.steps == make.TRIED_STEPS + 1
    assert newest(tmp_path / "out" / "run").name == f"checkpoint_{make.TRIED_STEPS:07d}"
    clock = [0.0]

    def run_after_a_start(*args, **options):
        clock[0] += 100
        return run_phase(*args, **options)

    monkeypatch.setattr(make, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(make, "run_phase", run_after_a_start)
    more = make.fitted(phase, until=1000)
    taken = [row["step_seconds"] for row in read_losses(tmp_path / "out" / "run" / "loss.csv")]
    each = make.SLOWER * fmean(taken[make.TRIED_STEPS // 2 :])
    planned = (more.steps - make.TRIED_STEPS) * each
    assert 800 - 1.01 * each <= planned <= 800 + 0.01 * each, "the start comes once more; 0.01 for rounding"
    run_phase(late, cpu=True)
    assert newest(tmp_path / "out" / "run").name == f"checkpoint_{late.steps:07d}"
    assert (tmp_path / "out" / "model" / "transformer").is_dir()
    assert make.fitted(phase, until=clock[0] - 1).steps == late.steps + 1


@pytest.mark.parametrize("name", make.PHASES)
def test_the_timed_steps_are_in_the_warm_up(name):
    """There the learning rate is the same whatever the number of steps."""
    assert read_phase(make.CONFIGS / f"nano_{name}.toml").optimizer.warmup_steps >= make.TRIED_STEPS

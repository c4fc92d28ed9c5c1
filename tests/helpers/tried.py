"""Hypothesis for the tests: the same cases in every run, and none kept on disk."""

import os
import tempfile

import torch
from hypothesis import HealthCheck, settings
from hypothesis.configuration import set_hypothesis_home_dir

set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), "hypothesis"))  # not the working folder
tried = settings(
    derandomize=True, database=None, deadline=None, max_examples=100, suppress_health_check=list(HealthCheck)
)


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def levels(seed: int, *shape: int) -> torch.Tensor:
    """A mask of 0, 0.25, 0.5, 0.75 and 1, whose complement is exact."""
    return torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(seed)) / 4

"""Every test of the trainer starts as a new process would."""

import pytest
from accelerate.state import AcceleratorState


@pytest.fixture(autouse=True)
def new_process():
    """Accelerate keeps one precision for the whole process, and refuses another."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)

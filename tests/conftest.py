from collections import Counter
from pathlib import Path

import pack
import pytest
import torch

pack.load_pack()

LONGEST = "browser", "host", "unit/training"  # folders, the longest first


def pytest_addoption(parser):
    parser.addoption("--quick", action="store_true", help="leave out the tests marked as long")


def pytest_collection_modifyitems(config, items):
    """Start what takes longest, so that at the end no process waits for a long file of another one."""
    folders = [Path(__file__).parent / name for name in LONGEST]
    items.sort(key=lambda item: [folder not in item.path.parents for folder in folders])
    if config.getoption("quick"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes long: make test LONG=1"))


@pytest.fixture(autouse=True)
def seeded():
    """What a test draws from PyTorch's global generator is the same whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A tiny 2B model in hub layout; copy it before changing it."""
    from tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "2b")


def pytest_terminal_summary(terminalreporter):
    """One line per reason for which tests were skipped."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped)
    for reason, count in reasons.items():
        terminalreporter.line(f"{count} skipped: {reason}")

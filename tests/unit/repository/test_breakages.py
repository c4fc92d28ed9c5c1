"""The list of breakages fits the code."""

import runpy

from pack import ROOT


def test_each_breakage_has_one_place_and_its_tests():
    breakages = runpy.run_path(str(ROOT / "tests" / "mutations.py"))["MUTATIONS"]
    for name, before, after, tests in breakages:
        assert (ROOT / name).read_text(encoding="utf-8").count(before) == 1, f"{name}: {before}"
        assert before != after and all((ROOT / test).exists() for test in tests.split()), name

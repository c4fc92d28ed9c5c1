"""What the README says that the tests know."""

import matrix
import pack


def test_the_table_of_checkpoints_and_features_is_the_one_that_is_tested():
    assert matrix.table() in (pack.ROOT / "README.md").read_text(encoding="utf-8")

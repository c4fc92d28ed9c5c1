"""How names and texts from outside are shown in messages and in the log."""

import pytest
from cogvideox_fun.model_loading.errors import LISTED, LONGEST_VALUE, CheckpointError, listed, shown
from cogvideox_fun.model_loading.files.checkpoint import no_model_message


@pytest.mark.parametrize("text", ["\n", "\r", "\x1b[31m", "\x9b31m", "\u2028", "\u2029", "\u202e", "\0", "\ud800"])
def test_a_name_stays_on_its_line(text):
    found = shown(f"a{text}b")
    assert found.startswith("a\\") and found.endswith("b") and len(found.splitlines()) == 1
    assert found.isprintable() and found in str(CheckpointError(f"a{text}b"))


def test_a_name_is_cut_in_its_middle():
    found = shown("start" + "x" * 1_000_000 + "end")
    assert len(found) <= LONGEST_VALUE and found.startswith("start") and found.endswith("end") and " ... " in found
    assert shown("models/a name with spaces.safetensors") == "models/a name with spaces.safetensors"


def test_a_list_is_cut_at_its_end():
    assert listed(["a", "b"]) == "a, b"
    assert listed(str(n) for n in range(LISTED + 5)).endswith(f"{LISTED - 1} and 5 more")


def test_a_model_that_is_not_found(tmp_path):
    """Among thousands of long names, and where none is given."""
    found = [f"{n}-{'x' * 300}" for n in range(5000)]
    for name, words in (("y\n" * 500_000, "the VAE y"), ("", "no VAE is chosen"), (None, "no VAE is chosen")):
        message = no_model_message(name, "VAE", found, [tmp_path], [tmp_path])
        assert message.startswith(words) and "4980 more" in message
        assert len(message) < 6000 and len(message.splitlines()) == 1

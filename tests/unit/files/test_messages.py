"""How names and texts from outside are shown in messages and in the log."""

import pytest
from cogvideox_fun.model_loading.errors import LISTED, LONGEST_VALUE, CheckpointError, listed, naming, shown


@pytest.mark.parametrize("text", ["\n", "\r", "\x1b[31m", "\x9b31m", "\u2028", "\u2029", "\u202e", "\0", "\ud800"])
def test_a_name_stays_on_its_line(text):
    found = shown(f"a{text}b")
    assert found.startswith("a\\") and found.endswith("b") and len(found.splitlines()) == 1
    assert found.isprintable() and found in str(CheckpointError(f"a{text}b"))


def test_a_name_is_cut_in_its_middle():
    found = shown("start" + "x" * 1_000_000 + "end")
    assert len(found) <= LONGEST_VALUE and found.startswith("start") and found.endswith("end") and " ... " in found
    assert shown("models/a name with spaces.safetensors") == "models/a name with spaces.safetensors"


def test_an_error_is_short_and_keeps_its_remedy():
    message = str(CheckpointError("/m: " + "x" * 10_000 + ": download it again"))
    assert len(message) < 2100 and message.startswith("/m: x") and message.endswith(": download it again")
    assert str(CheckpointError("/模型/é: x")) == "/模型/é: x"


def test_a_list_is_cut_at_its_end():
    assert listed(["a", "b"]) == "a, b"
    assert listed(str(n) for n in range(LISTED + 5)).endswith(f"{LISTED - 1} and 5 more")


def test_an_error_names_one_file(tmp_path):
    for error in (ValueError("bad"), CheckpointError("bad")):
        with pytest.raises(CheckpointError, match=f"^{tmp_path} can't be loaded: bad$"), naming(tmp_path):
            raise error
    with (
        pytest.raises(CheckpointError, match="can't be loaded .KeyError.'a'..: download .* with the log$"),
        naming(tmp_path),
    ):
        raise KeyError("a")
    with pytest.raises(CheckpointError, match="^inner bad$"), naming(tmp_path):
        raise CheckpointError("bad", "inner")

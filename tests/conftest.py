import pack
import pytest

pack.load_pack()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """A tiny 2B model in hub layout; copy it before changing it."""
    from cogvideox_fun.demo.tiny_model import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", "2b")

"""Model files can't run code. What a run opens and writes is in tests/host/test_no_network.py."""

import os
from pathlib import Path

import pytest
import torch
from cogvideox_fun.model_loading import standalone
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files import checkpoint, lora_keys
from pack import ROOT

NANO = ROOT / "models" / "nano"
OPENERS = {
    "model": checkpoint.open_checkpoint,
    "VAE": standalone.load_vae,
    "text encoder": lambda path: standalone.TextEncoder(path, NANO / "tokenizer"),
    "LoRA": lambda path: lora_keys.read_lora(path, {"proj_out.weight": (2, 2)}),
}


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def pickled(tmp_path) -> bytes:
    """A file of torch.save that makes a folder when it is read in full; the test fails if that folder is made."""
    made = tmp_path / "made"
    torch.save({"weight": Payload(made)}, tmp_path / "pickled")
    yield (tmp_path / "pickled").read_bytes()
    assert not made.exists(), "the pickle was run"


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.safetensors"])
@pytest.mark.parametrize("opener", OPENERS)
def test_a_pickle_is_refused(pickled, tmp_path, opener, name):
    (tmp_path / name).write_bytes(pickled)
    with pytest.raises(CheckpointError, match=name):
        OPENERS[opener](tmp_path / name)

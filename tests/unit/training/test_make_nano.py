"""The nano model made in one command, with a few steps of tiny clips."""

import shutil

import pytest
import torch
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.model_loading.files.safetensors_files import open_weights
from cogvideox_fun.model_loading.standalone import load_transformer
from cogvideox_fun.training.loop.state import newest
from cogvideox_fun.training.nano import make

SMALL = {
    "tokens": "tokens = 12",
    "sizes": "sizes = [[32, 32], [48, 32]]",
    "max_length": "max_length = 9",
    "batch_size": "batch_size = 2",
    "noises_per_clip": "noises_per_clip = 1",
    "earlier_tokens": "",
    "earlier_share": "",
    "steps": "steps = 2",
    "count": "count = 4",
    "warmup_steps": "warmup_steps = 1",
    "ema_decay": "ema_decay = 0.0",
}


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """The repository's configurations, made small, in a folder of their own."""
    folder = tmp_path / "training" / "configs"
    folder.mkdir(parents=True)
    for name in make.PHASES:
        lines = (make.CONFIGS / f"nano_{name}.toml").read_text(encoding="utf-8").splitlines()
        text = "\n".join(SMALL.get(line.split(" = ")[0], line) for line in lines)
        (folder / f"nano_{name}.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(make, "CONFIGS", folder)
    monkeypatch.setattr(make, "PREVIEW_CLIPS", 2)
    return tmp_path / "runs" / "nano"


@pytest.mark.long
def test_all_phases_make_the_folder_of_the_pack(configs, tmp_path):
    output = tmp_path / "made"
    make.train_nano(output)
    for part in ("transformer", "vae", "text_encoder"):
        assert {info.dtype for info in open_weights(output / part).tensors.values()} == {torch.float16}
    assert {path.name for path in (output / "lora").iterdir()} == {"ring.safetensors", "few_steps.safetensors"}
    assert load_transformer(open_checkpoint(output / "control")).config.in_channels == 32
    tables = {path.stem for path in (output / "training").glob("*.csv")}
    assert tables == {path.stem for path in (output / "training").glob("*.png")} == set(make.PHASES)

    # a phase again, from the others' results: its own is new, and the Control model starts from the new transformer
    before = (configs / "control_start" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    for name in ("transformer", "control", "clips", "control_clips"):
        shutil.rmtree(configs / name)
    make.train_nano(output, ("control", "transformer"), source=configs / "vae_1" / "model")
    after = (configs / "control_start" / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert after != before
    assert not (output / "lora").exists(), "it belongs to the transformer of before"
    assert (output / "control").is_dir()

    with_more_time = newest(configs / "transformer" / "run").name
    make.train_nano(output, ("transformer",), minutes=0.01)
    assert newest(configs / "transformer" / "run").name == with_more_time, "it was done"


def test_a_model_is_needed(configs, tmp_path):
    with pytest.raises(ValueError, match=r"the phases are \['lora', 'control'\], expected one of \['transformer'"):
        make.train_nano(tmp_path / "made", ("control", "lora"))
    assert not (tmp_path / "made").exists()

"""InP and Control models that start from other models."""

import json

import pytest
import torch
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.model_loading.standalone import Pipeline, load_transformer
from cogvideox_fun.training.loop.config import Batches, Phase
from cogvideox_fun.training.tasks.parts import Parts
from cogvideox_fun.training.tasks.start import start_model
from safetensors.torch import load_file, save_file
from tiny_model import TINY, write_tiny_model

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


def coarse(*shape, seed=0) -> torch.Tensor:
    """Numbers of few bits: sums of their products are exact, whatever their order."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed)) / 8


def first_step(model, *extra: int, seed: int = 7):
    """v of a clip of 4 latent frames of 8 x 6, with random conditioning of so many channels, or none."""
    x, text = coarse(1, 16, 4, 8, 6), coarse(1, 226, 32, seed=1)
    condition = coarse(1, *extra, 4, 8, 6, seed=seed) if extra else None
    with torch.no_grad():
        return model(x, torch.tensor([999]), text, concat_latents=condition)


def opened(folder):
    """The transformer of a folder, in memory of its own: in a mapped file the alignment of weights can change sums."""
    model = load_transformer(open_checkpoint(folder))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


def round_projection(folder) -> None:
    """Give the patch projection few bits, too."""
    weights = load_file(folder / WEIGHTS)
    rounded = {key: (weights[key] * 64).round() / 64 for key in weights if key.startswith("patch_embed.proj.")}
    save_file(weights | rounded, folder / WEIGHTS)


@pytest.mark.parametrize("kind, channels", [("inpaint", 17), ("control", 16)])
@pytest.mark.parametrize("variant", ["2b-text", "5b-text", "v1.5-text"])
def test_the_first_step_is_the_text_models_to_the_bit(tmp_path, variant, kind, channels):
    """For zeros and for any other conditioning. All sums of the projection are exact, so no order of them matters."""
    source = write_tiny_model(tmp_path / "text", variant)
    round_projection(source)
    start_model(source, tmp_path / "made", kind)
    text, made = opened(source), opened(tmp_path / "made")
    assert made.config.conditioning == kind and made.config.reference_noise == 0
    expected = first_step(text)
    assert torch.equal(first_step(made), expected)
    assert torch.equal(first_step(made, channels), expected)
    with torch.no_grad():
        made.patch_embed.proj.weight[:9, -1] = 1.0  # what training changes
    assert not torch.allclose(first_step(made, channels), expected, atol=1e-3)


def test_a_model_from_diffusers(tmp_path):
    """CogVideoX's own class, saved in shards by diffusers, whose text model gives the same output at its size."""
    from diffusers import CogVideoXTransformer3DModel

    source = write_tiny_model(tmp_path / "text", "2b-text")
    (source / WEIGHTS).unlink()
    options = {**TINY, "in_channels": 16, "sample_width": 6, "sample_height": 8, "sample_frames": 13}
    torch.manual_seed(0)
    theirs = CogVideoXTransformer3DModel(**options).eval()
    theirs.save_pretrained(source / "transformer", max_shard_size="100kB")
    assert len(list((source / "transformer").glob("*.safetensors"))) > 1
    start_model(source, tmp_path / "made", "inpaint")
    ours = opened(tmp_path / "made")
    found = first_step(ours, 17)
    x, text = coarse(1, 16, 4, 8, 6), coarse(1, 226, 32, seed=1)
    with torch.no_grad():
        expected = theirs(x.movedim(1, 2), text, torch.tensor([999]), return_dict=False)[0].movedim(1, 2)
    assert torch.allclose(found, expected, atol=1e-5)
    again = CogVideoXTransformer3DModel.from_pretrained(tmp_path / "made" / "transformer")
    assert again.config.in_channels == 33 and again.patch_embed.proj.weight.shape[1] == 33


def test_the_whole_folder_opens_and_shares_its_files(tmp_path):
    source = write_tiny_model(tmp_path / "text", "2b-text")
    (source / "model_index.json").write_text(
        json.dumps({"_class_name": "CogVideoXPipeline", "vae": ["diffusers", "A"]})
    )
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    start_model(source, tmp_path / "made", "inpaint", reference_noise=True)
    made = Pipeline.from_folder(tmp_path / "made")
    assert made.checkpoint.config.reference_noise > 0
    assert (tmp_path / "made" / "vae" / "config.json").samefile(source / "vae" / "config.json")
    index = json.loads((tmp_path / "made" / "model_index.json").read_text())
    assert index == {"_class_name": "CogVideoXFunInpaintPipeline", "vae": ["diffusers", "A"]}
    assert before == {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}


def test_a_stored_position_table_changes_nothing(tmp_path):
    """Early files of the 2B have one. Positions are interpolated to the run's grid, whatever is stored."""
    source = write_tiny_model(tmp_path / "text", "2b-text")
    expected = first_step(opened(source))
    weights = load_file(source / WEIGHTS)
    save_file({**weights, "patch_embed.pos_embedding": torch.full((1, 17776, 128), 3.0)}, source / WEIGHTS)
    start_model(source, tmp_path / "made", "inpaint")
    assert torch.allclose(first_step(opened(tmp_path / "made"), 17), expected, atol=1e-5)


def test_from_an_inpaint_model(tmp_path):
    """V1.0 to V1.1 changes the configuration alone. A Control model starts as what the InP model is without a mask."""
    source = write_tiny_model(tmp_path / "inpaint", "2b")
    start_model(source, tmp_path / "noisy", "inpaint", reference_noise=True)
    assert (tmp_path / "noisy" / WEIGHTS).samefile(source / WEIGHTS)
    values = [json.loads((tmp_path / n / "transformer" / "config.json").read_text()) for n in ("inpaint", "noisy")]
    assert values[1] == {**values[0], "add_noise_in_inpaint_model": True} and values[0] != values[1]
    start_model(source, tmp_path / "control", "control")
    control = opened(tmp_path / "control")
    expected = first_step(opened(source))
    assert torch.allclose(first_step(control, 16), expected, atol=1e-5)


@pytest.mark.parametrize(
    "variant, kind, noise, words",
    [
        ("2b-control", "inpaint", False, "has 32 input channels .control., expected 16 .text. or 33 .inpaint."),
        ("5b-image", "inpaint", False, "has 32 input channels .image., expected 16"),
        ("void", "control", False, "has 48 input channels .void., expected 16"),
        ("2b", "inpaint", False, "has 33 input channels .inpaint. and is such a model already"),
        ("2b-text", "control", True, "reference noise is for InP models, not for 'control'"),
        ("2b-text", "pose", False, "is 'pose', expected one of .*inpaint.*control"),
    ],
)
def test_models_that_cant_start(tmp_path, variant, kind, noise, words):
    source = write_tiny_model(tmp_path / "source", variant)
    with pytest.raises((CheckpointError, ValueError), match=words):
        start_model(source, tmp_path / "made", kind, noise)
    assert not (tmp_path / "made").exists()


def test_a_folder_with_a_model_is_kept(tmp_path):
    source = write_tiny_model(tmp_path / "text", "2b-text")
    with pytest.raises(ValueError, match="has a model: give another folder"):
        start_model(source, source, "inpaint")


def test_a_phase_says_which_family_it_trains(tiny_model):
    phase = Phase("full", str(tiny_model), "", 1, Batches(80, ((64, 64),)), family="5b")
    with pytest.raises(ValueError, match="is a 2B model, expected 5B, as family says"):
        Parts(phase)

"""A LoRA that is trained with the patch projection: what changes, its file, and the model folder made of it."""

import dataclasses
import shutil

import pytest
import torch
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files.checkpoint import find_models, open_checkpoint
from cogvideox_fun.model_loading.standalone import Pipeline, load_transformer
from cogvideox_fun.training.loop.config import Batches, Data, Optimizer, Phase
from cogvideox_fun.training.loop.phase import export_run, run_phase
from cogvideox_fun.training.tasks.lora import PROJECTION, PROJECTION_KEY, add_lora, apply_lora, lora_file
from cogvideox_fun.training.tasks.parts import Parts, export_half, write_lora_model
from cogvideox_fun.training.tasks.start import start_model
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model


def phase_of(model, output, **changes) -> Phase:
    options = {
        "batches": Batches(6, ((48, 32),), 1, batch_size=1),
        "data": Data(seed=5, control="edges", edge_thresholds=(0.1, 0.2)),
        "optimizer": Optimizer(1e-2, warmup_steps=1, ema_decay=0.5),
        "train_patch_projection": True,
    }
    return Phase("lora", str(model), str(output), 2, **{**options, **changes})


def v_of(model, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x, control = (torch.randn(1, 16, 2, 4, 6, generator=generator) for _ in range(2))
    with torch.no_grad():
        return model(x, torch.tensor([500]), torch.randn(1, 7, 32, generator=generator), concat_latents=control)


@pytest.fixture(params=["2b", "v1.5"])
def started(tmp_path, request):
    """An InP model, and the Control model that starts from it."""
    base = write_tiny_model(tmp_path / "base", request.param)
    start_model(base, tmp_path / "start", "control")
    return base, tmp_path / "start"


@pytest.mark.long
def test_goes_on_from_its_file(started, tmp_path):
    """With another alpha, too; the file's must count. A file of another rank or with other layers is refused."""
    _, start = started
    trained = load_transformer(open_checkpoint(start))
    add_lora(trained, rank=4, alpha=2.0, projection=True)
    state = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in state.values():
            parameter += 0.1 * torch.randn(parameter.shape)
    path = tmp_path / "lora.safetensors"
    save_file(lora_file(state, alpha=2.0), path)
    for alpha in (2.0, 8.0):
        phase = phase_of(start, tmp_path / "out", lora=str(path), lora_rank=4, lora_alpha=alpha)
        assert torch.allclose(v_of(Parts(phase).task.transformer), v_of(trained), atol=1e-5)
    for changes, words in (
        ({"lora_rank": 3}, "expected.*lora_rank"),
        ({"train_patch_projection": False}, "has .*proj"),
    ):
        with pytest.raises(ValueError, match=words):
            Parts(dataclasses.replace(phase, **changes))


def test_its_file_and_its_folder_equal_its_layers(started, tmp_path):
    """In a model that is trained, in one that the file is added to, and in one loaded from a folder of the LoRA."""
    base, start = started
    trained, added = (load_transformer(open_checkpoint(start)) for _ in range(2))
    before = v_of(trained)
    add_lora(trained, rank=4, alpha=2.0, projection=True)
    state = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    assert [name for name in state if "lora_" not in name] == [PROJECTION] and len(state) == 25
    assert {p.dtype for p in state.values()} == {torch.float32}
    assert torch.equal(v_of(trained), before), "nothing is changed at the start"
    with torch.no_grad():
        for parameter in state.values():
            parameter += 0.1 * torch.randn(parameter.shape)
    save_file(lora_file(state, alpha=2.0), tmp_path / "lora.safetensors")
    apply_lora(added, tmp_path / "lora.safetensors")
    write_lora_model(tmp_path / "lora.safetensors", base, base / "control")
    loaded = load_transformer(open_checkpoint(base / "control"))
    expected = v_of(trained)
    assert (expected - before).abs().max() > 0.1
    for model in (added, loaded):
        assert torch.allclose(v_of(model), expected, atol=1e-4)


def test_a_lora_in_bf16_has_a_projection_in_float32(started):
    model = load_transformer(open_checkpoint(started[1]), torch.bfloat16)
    add_lora(model, rank=4, alpha=2.0, projection=True)
    dtypes = {p.requires_grad: p.dtype for p in model.parameters()}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_from_training_to_a_control_model(tiny_model, tmp_path):
    """A resumed run equals an unbroken one to the bit, and both learn from edges. The folders can move."""
    base = shutil.copytree(tiny_model, tmp_path / "nano")
    start_model(base, tmp_path / "start", "control")
    whole, resumed = (phase_of(tmp_path / "start", tmp_path / name) for name in ("whole", "resumed"))
    run_phase(whole, cpu=True)
    run_phase(resumed, cpu=True, until=1)
    run_phase(resumed, cpu=True)
    files = [tmp_path / name / "model" / "lora.safetensors" for name in ("whole", "resumed")]
    first, second = map(load_file, files)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    projection = first[PROJECTION_KEY].float()
    started = open_checkpoint(tmp_path / "start").weights[PROJECTION]
    assert projection.shape == started.shape and not started[:, 16:].any()
    assert projection[:, 16:].abs().max() > 1e-3, "the channels of the edges are trained"
    assert (projection - started)[:, :16].abs().max() > 1e-3, "and those of the noise"

    export_run(tmp_path / "whole", base / "control", base)
    assert [p.name for p in sorted((base / "control").rglob("*"))] == [
        "transformer",
        "config.json",
        "lora.safetensors",
    ]
    shutil.move(base, tmp_path / "moved")
    loaded = Pipeline.from_folder(tmp_path / "moved" / "control")
    expected = load_transformer(open_checkpoint(tmp_path / "start"))
    apply_lora(expected, files[0])
    assert loaded.checkpoint.config.conditioning == "control"
    assert torch.allclose(v_of(loaded.transformer), v_of(expected), atol=1e-5)
    assert list(find_models([tmp_path / "moved" / ".."], {}))[:2] == ["moved", "moved/control"]


def test_without_the_option_the_projection_is_frozen(tmp_path):
    model = write_tiny_model(tmp_path / "model", "2b-control")
    phase = phase_of(model, tmp_path, train_patch_projection=False)
    assert not Parts(phase).task.transformer.get_parameter(PROJECTION).requires_grad
    assert (
        Parts(dataclasses.replace(phase, train_patch_projection=True))
        .task.transformer.get_parameter(PROJECTION)
        .requires_grad
    )


def test_what_needs_weights_of_its_own(tiny_model, tmp_path):
    """A folder with a LoRA alone can be trained by a LoRA, and not in full; nothing can be started from it."""
    base = shutil.copytree(tiny_model, tmp_path / "base")
    start_model(base, tmp_path / "start", "control")
    model = load_transformer(open_checkpoint(tmp_path / "start"))
    add_lora(model, rank=4, alpha=2.0, projection=True)
    state = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    save_file(lora_file(state, alpha=2.0), tmp_path / "lora.safetensors")
    control = base / "control"
    write_lora_model(tmp_path / "lora.safetensors", base, control)
    phase = phase_of(control, tmp_path / "out")
    assert Parts(phase).checkpoint.base == base
    with pytest.raises(ValueError, match="has only a LoRA of .*base: train a LoRA, or give a whole model"):
        Parts(dataclasses.replace(phase, task="full"))
    with pytest.raises(ValueError, match="has only a LoRA of .*base: copy its files"):
        export_half(control, tmp_path / "half")
    save_file(lora_file({n: p for n, p in state.items() if n != PROJECTION}, alpha=2.0), tmp_path / "lora.safetensors")
    write_lora_model(tmp_path / "lora.safetensors", base, base / "other")
    assert open_checkpoint(base / "other").config.conditioning == "inpaint"
    with pytest.raises(CheckpointError, match="other has only a LoRA of .*base: start from a model with weights"):
        start_model(base / "other", tmp_path / "again", "control")


def test_a_lora_of_another_size_is_not_written_as_a_model(tiny_model, tmp_path):
    layer = "diffusion_model.transformer_blocks.0.attn1.to_q"
    lora = {f"{layer}.lora_down.weight": torch.zeros(2, 64), f"{layer}.lora_up.weight": torch.zeros(64, 2)}
    save_file(lora, tmp_path / "lora.safetensors")
    with pytest.raises(CheckpointError, match="to_q is 64 x 64, but the model's is 128 x 128"):
        write_lora_model(tmp_path / "lora.safetensors", tiny_model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="has a model with weights of its own"):
        write_lora_model(tmp_path / "lora.safetensors", tiny_model, tiny_model)

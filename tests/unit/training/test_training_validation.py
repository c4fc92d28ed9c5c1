"""Validation clips: made by the pack's pipeline from the right weights, and without a trace in the training."""

import dataclasses
import json
import random
import weakref

import av
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from cogvideox_fun.model_loading.standalone import Pipeline, load_vae
from cogvideox_fun.sampling.masks import build_start_end
from cogvideox_fun.training.data import scenes
from cogvideox_fun.training.loop import validation
from cogvideox_fun.training.loop.config import (
    Batches,
    ConfigError,
    Data,
    FewSteps,
    Logging,
    Optimizer,
    Phase,
    Validation,
    read_phase,
)
from cogvideox_fun.training.loop.progress import read_losses
from cogvideox_fun.training.loop.trainer import Trainer
from cogvideox_fun.training.loop.validation import HELD_OUT_SEED, Validator, exchanged, mask_of
from cogvideox_fun.training.tasks.parts import Parts
from PIL import Image
from tiny_model import write_tiny_model
from video_files import counted, write_video

OPTIONS = {
    "output": "",
    "steps": 2,
    "batches": Batches(6, ((48, 32),), 5, batch_size=2),
    "data": Data(seed=5),
    "optimizer": Optimizer(1e-2, 1e-2, warmup_steps=1, ema_decay=0.5),
    "validation": Validation(every=2, clips=1, size=(48, 32, 5), steps=2, cfg=3.0),
}


def phase_of(model, task="full", **changes) -> Phase:
    return Phase(task, str(model), **{**OPTIONS, **changes})


def trainer_of(phase: Phase, folder) -> Trainer:
    torch.manual_seed(0)
    return Trainer(phase, Parts(phase), Accelerator(cpu=True), folder)


@pytest.fixture
def tables(monkeypatch):
    """The clips of each validation, by step; they are written as well."""
    found, write = {}, Validator.write
    monkeypatch.setattr(
        Validator, "write", lambda self, step, table: (found.update({step: table}), write(self, step, table))
    )
    return found


def generators() -> tuple:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


@pytest.mark.parametrize("encoders", ["of the task", "loaded"])
def test_training_is_the_same_with_and_without_validation(tiny_model, tmp_path, encoders):
    """Weights, average, losses and generators, to the bit; also where the VAE and T5 are loaded for it alone."""
    results = []
    for every in (0, 1):
        chosen = dataclasses.replace(OPTIONS["validation"], every=every, rows=("start",), steps=1)
        phase = phase_of(tiny_model, validation=chosen)
        trainer = trainer_of(phase, tmp_path / str(every))
        if encoders == "loaded" and every:
            whole = trainer.parts.encoders
            trainer.parts.prepare, trainer.parts.encoders = whole, None
        random.seed(1), np.random.seed(1)  # noqa: NPY002 - that generator is what must not change
        trainer.run()
        state = [trainer.weights(average=average) for average in (False, True)]
        losses = [row["loss"] for row in read_losses(tmp_path / str(every) / "loss.csv")]
        results.append((state, losses, generators()))
    (state, *rest), (other, *others) = results
    assert rest == others
    for found, expected in zip(other, state, strict=True):
        assert all(torch.equal(found[name], value) for name, value in expected.items())
    names = sorted(path.name for path in (tmp_path / "1" / "validation").iterdir())
    assert names == [f"step_000000{step}.{suffix}" for step in range(3) for suffix in ("mp4", "png")]


@torch.no_grad()
def test_without_encoders_t5_is_loaded_once_and_gone_while_clips_are_made(tiny_model, tmp_path, tables, monkeypatch):
    """As in training from a cache; the clips are those that the task's own encoders give."""
    encoders, make = [], Validator.clip

    class Watched(validation.TextEncoder):
        def __init__(self, *args):
            super().__init__(*args)
            encoders.append(weakref.ref(self.model))

    def clip(*args):
        assert all(model() is None for model in encoders), "T5 is still in memory"
        return make(*args)

    monkeypatch.setattr(validation, "TextEncoder", Watched)
    monkeypatch.setattr(Validator, "clip", clip)
    trainer = trainer_of(phase_of(tiny_model), tmp_path)
    weights = trainer.weights(average=True)
    trainer.validator(0, weights)
    assert encoders == []
    trainer.parts.encoders = None
    trainer.validator(2, weights), trainer.validator(4, weights)
    assert len(encoders) == 1
    for step in (2, 4):
        for found, expected in zip(tables[step], tables[0], strict=True):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("weights", ["average", "current"])
def test_clips_are_those_of_the_pipeline_with_the_trained_weights(tiny_model, tmp_path, tables, weights):
    """The start, start and end, and text rows of a held-out clip, before the first step and after the last."""
    rows = {"average": ("start", "start_end", "text"), "current": ("text",)}[weights]
    chosen = dataclasses.replace(OPTIONS["validation"], weights=weights, rows=rows)
    phase = phase_of(tiny_model, validation=chosen)
    with torch.enable_grad():
        trainer = trainer_of(phase, tmp_path)
        trainer.run()
    scene = scenes.random_scene(HELD_OUT_SEED, 0)
    clip = scenes.render(scene, 5, 32, 48)
    (sample,) = trainer.validator.samples
    assert torch.equal(sample["video"], clip) and scene.background in sample["captions"]
    pipeline = Pipeline.from_folder(tiny_model)
    for step in (0, 2):
        if step:
            for name, value in trainer.weights(weights == "average").items():
                pipeline.transformer.get_parameter(name.removeprefix("transformer.")).copy_(value)
        ends = {"start": (clip[:1], None), "start_end": (clip[:1], clip[-1:])}
        extras = {row: pipeline.condition(*build_start_end(48, 32, 5, *images)) for row, images in ends.items()}
        texts = pipeline.text_encoder(sample["captions"]), pipeline.text_encoder("")
        for row in rows if step else rows[-1:]:
            extra = extras.get(row)
            latent = pipeline.sample(pipeline.noise(48, 32, 5, 0), *texts, extra, steps=2, cfg=3.0)
            (found,) = tables[step][rows.index(row)]
            assert torch.allclose(found, pipeline.decode(latent), atol=1e-4), (step, row)
    change = (tables[2][0][0] - tables[0][0][0]).abs().max()
    assert change > 0.01, "training changed the clips"


@torch.no_grad()
def test_a_lora_for_few_steps_is_shown_at_its_own_timesteps(tmp_path, tables):
    model = write_tiny_model(tmp_path / "model", "2b")
    path = model / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"timestep_spacing": "linspace"}))
    chosen = dataclasses.replace(OPTIONS["validation"], rows=("text",))
    few_steps = FewSteps(steps=2, teacher_steps=4)
    trainer = trainer_of(phase_of(model, "few_steps", validation=chosen, few_steps=few_steps), tmp_path / "run")
    trainer.validate()
    pipeline, (sample,) = Pipeline.from_folder(model), trainer.validator.samples
    texts, noise = [pipeline.text_encoder(text) for text in (sample["captions"], "")], pipeline.noise(48, 32, 5, 0)
    trailing, linspace = (
        pipeline.decode(pipeline.sample(noise, *texts, None, steps=2, cfg=3.0, spacing=spacing))
        for spacing in ("trailing", "auto")
    )
    ((found,),) = tables[0]
    assert torch.allclose(found, trailing, atol=1e-4) and not torch.allclose(found, linspace, atol=1e-2)


def test_clips_of_steps_that_are_done_again_are_made_again(tiny_model, tmp_path, tables):
    """As the rows of the losses are. A run that goes on keeps the clips up to its checkpoint."""
    one = dataclasses.replace(OPTIONS["validation"], every=1, rows=("text",), size=(48, 32, 1), steps=1)
    phase = phase_of(tiny_model, validation=one)
    pictures = tmp_path / "validation"
    pictures.mkdir()
    for step in range(3):
        (pictures / f"step_000000{step}.png").write_text("of a run that ended before its first checkpoint")
    (pictures / "step_best.png").write_text("the user's own")
    trainer_of(phase, tmp_path).run(until=1)
    assert sorted(tables) == [0, 1] and len(list(pictures.iterdir())) == 3
    tables.clear()
    (pictures / "step_0000002.png").write_text("of a run that ended after its checkpoint of step 1")
    trainer_of(phase, tmp_path).run()
    assert sorted(tables) == [2]


def test_a_region_is_a_rectangle_of_half_the_sides():
    mask = mask_of("region", 5, 32, 48)
    assert mask[:, 8:24, 12:36].all() and mask.sum() == 5 * 16 * 24


def test_a_sharded_model_is_loaded_whole(tiny_model, tmp_path, tables, monkeypatch):
    """The same clips from another copy of the model, with the weights that were gathered."""
    one_frame = dataclasses.replace(OPTIONS["validation"], rows=("text",), size=(48, 32, 1))
    for task in ("full", "lora"):
        phase = phase_of(tiny_model, task, validation=one_frame)
        trainer = trainer_of(phase, tmp_path / task)
        weights = {n: v + 0.1 * torch.randn(v.shape) for n, v in trainer.weights(average=False).items()}
        trainer.validator(2, weights)
        monkeypatch.setattr(validation, "is_whole", lambda task, values: False)
        trainer.validator(4, weights)
        monkeypatch.undo()
        trainer.validator(0, trainer.weights(average=False))
        pictures = [np.array(Image.open(tmp_path / task / "validation" / f"step_000000{n}.png")) for n in (0, 2, 4)]
        assert np.array_equal(pictures[1], pictures[2]) and not np.array_equal(pictures[0], pictures[1])


def test_a_task_gets_its_own_weights_back():
    task = torch.nn.Linear(2, 2)
    weight, values = task.weight.data, {"weight": torch.ones(2, 2)}
    before = weight.clone()
    with pytest.raises(OSError), exchanged(task, values):
        assert task.weight.eq(1).all() and task.bias is not None
        raise OSError
    assert task.weight.data_ptr() == weight.data_ptr() and torch.equal(task.weight, before)


def test_the_picture_and_the_video(tiny_model, tmp_path, tables):
    """A line for each clip and row, and all of them in a video of the clips' frames; the tracker gets the picture."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = dataclasses.replace(
        OPTIONS["validation"], clips=2, prompts=("a red ball é",), steps=1, every=9, rows=("start", "text")
    )
    phase = phase_of(tiny_model, "lora", validation=options, logging=Logging(("tensorboard",), "t"))
    accelerator = Accelerator(cpu=True, log_with=["tensorboard"], project_dir=str(tmp_path))
    trainer = Trainer(phase, Parts(phase), accelerator, tmp_path)
    trainer.run(until=1)
    assert [len(row) for row in tables[0]] == [2] * 2
    assert [sample["captions"] for sample in trainer.validator.samples] == ["a red ball é"] * 2
    picture = np.array(Image.open(tmp_path / "validation" / "step_0000000.png"))
    assert picture.shape == (2 * 3 * (32 + 14) + 2, 5 * (48 + 2) + 2, 3)
    first = (tables[0][0][0][0] * 255).round().byte().numpy()  # first row, first clip, first frame
    assert np.array_equal(picture[46 + 14 : 46 + 46, 2:50], first)
    with av.open(str(tmp_path / "validation" / "step_0000000.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
        assert len(frames) == 5 and frames[0].shape == (3 * 32, 2 * 48, 3)
    events = EventAccumulator(str(tmp_path / "t")).Reload()
    (image,) = events.Images("validation")
    assert (image.step, image.width, image.height) == (0, picture.shape[1], picture.shape[0])
    before = (tmp_path / "validation" / "step_0000000.png").stat().st_mtime_ns
    trainer.validator(0, trainer.weights(average=True))
    assert (tmp_path / "validation" / "step_0000000.png").stat().st_mtime_ns == before, "it is there"


@torch.no_grad()
def test_rows_of_other_models(tiny_model, tmp_path, tables):
    """Control by the pipeline's own control latent; the VAE by what it restores; text alone."""
    model = write_tiny_model(tmp_path / "model", "2b-control")
    validator = trainer_of(phase_of(model), tmp_path / "control").validator
    assert validator.rows == ("control",)
    with pytest.raises(ValueError, match=r"the clips have none: set control in \[data\]"):
        validator(0, {})
    validator.samples = [{**sample, "control": sample["video"].flip(-1)} for sample in validator.samples]
    validator(0, {})
    (sample,), pipeline = validator.samples, Pipeline.from_folder(model)
    texts = pipeline.text_encoder(sample["captions"]), pipeline.text_encoder("")
    control = pipeline.encode(sample["control"])
    latent = pipeline.sample(pipeline.noise(48, 32, 5, 0), *texts, control, steps=2, cfg=3.0)
    assert torch.allclose(tables[0][0][0], pipeline.decode(latent), atol=1e-4)

    trainer = trainer_of(phase_of(tiny_model, "vae"), tmp_path / "vae")
    trainer.validate()
    vae = load_vae(Pipeline.from_folder(tiny_model).checkpoint.vae)
    clip = scenes.render(scenes.random_scene(HELD_OUT_SEED, 0), 5, 32, 48)
    expected = vae.decode(vae.encode((clip * 2 - 1).movedim(-1, 0)[None]))[0].movedim(0, -1) / 2 + 0.5
    assert torch.allclose(tables[0][0][0], expected, atol=1e-5)

    text = write_tiny_model(tmp_path / "text", "v1.5-text")
    validator = trainer_of(phase_of(text), tmp_path / "t2v").validator
    assert validator.rows == ("text",) and validator.bucket.length == 5
    wrong = dataclasses.replace(OPTIONS["validation"], rows=("region",))
    with pytest.raises(ConfigError, match=r"rows has 'region', expected some of \['text'\] for this model"):
        trainer_of(phase_of(text, validation=wrong), tmp_path / "wrong")


def test_a_folder_with_fewer_clips_than_are_asked_for(tiny_model, tmp_path):
    """They come again, each time from another frame."""
    write_video(tmp_path / "a.mp4", counted(24))
    chosen = dataclasses.replace(OPTIONS["validation"], clips=4, folders=(str(tmp_path),))
    phase = phase_of(tiny_model, validation=chosen)
    validator = trainer_of(phase, tmp_path / "run").validator
    samples = validator.read(validation.open_clips(validation.validation_data(phase)))
    assert [sample["captions"] for sample in samples] == ["a"] * 4
    assert len({float(sample["video"].mean()) for sample in samples}) > 1


def test_where_the_clips_come_from(tiny_model, tmp_path, caplog):
    """Given folders, held-out shapes, or with a warning the clips of the training."""
    folders = Data(folders=("a",))
    phase = phase_of(tiny_model, data=folders)
    assert validation.validation_data(phase) == folders and "clips that are trained on" in caplog.text
    given = dataclasses.replace(phase, validation=Validation(1, folders=("b",)))
    assert validation.validation_data(given).folders == ("b",)
    assert validation.validation_data(phase_of(tiny_model)).seed >= scenes.HELD_OUT
    text = """task = "full"\nmodel = "m"\noutput = "o"\nsteps = 1
[batches]\ntokens = 8\nsizes = [[48, 32]]\ntolerance = 0.3\n[validation]\nevery = 5\n{}"""
    for line, words in (
        ("size = [48, 32]", "validation.size is .48, 32., expected width, height and frames"),
        ('weights = "best"', "validation.weights is 'best', expected one of"),
        ("clips = 0", "validation.clips is 0, expected more than 0"),
    ):
        (tmp_path / "phase.toml").write_text(text.format(line))
        with pytest.raises(ConfigError, match=words):
            read_phase(tmp_path / "phase.toml")
    (tmp_path / "phase.toml").write_text(text.format('folders = ["held_out"]'))
    assert read_phase(tmp_path / "phase.toml").validation.folders == (str(tmp_path / "held_out"),)

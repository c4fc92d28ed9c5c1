"""The few-step LoRA: its steps are the pack's DDIM, its teacher is the guided model, and only the LoRA is trained."""

import dataclasses

import pytest
import torch
from accelerate import Accelerator
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.sampling.schedule import NoiseSchedule, cogvideox_ddim
from cogvideox_fun.training.data.buckets import Bucket
from cogvideox_fun.training.loop.config import Batches, Data, FewSteps, Optimizer, Phase
from cogvideox_fun.training.loop.encode import Amount, Encoding
from cogvideox_fun.training.loop.phase import export_run, processes, run_phase
from cogvideox_fun.training.loop.source import open_clips, phase_batches
from cogvideox_fun.training.loop.trainer import Trainer
from cogvideox_fun.training.planning import trace
from cogvideox_fun.training.tasks.few_steps import FewStepsTask, run_angles, turn
from cogvideox_fun.training.tasks.lora import apply_lora
from cogvideox_fun.training.tasks.parts import Parts, write_result
from safetensors.torch import load_file
from tiny_model import TINY, VARIANTS, write_tiny_model

WHOLE = FewSteps(steps=2, teacher_steps=4, steps_at_once=2, guidance=3.0, negative="blurry video")
PROMPT = "a red cat runs left"


def phase_of(model, options: FewSteps = WHOLE, **changes) -> Phase:
    values = {
        "output": "",
        "steps": 6,
        "batches": Batches(8, ((48, 32), (32, 48)), 5, 0.3, batch_size=4),
        "data": Data(seed=5),
        "optimizer": Optimizer(3e-3, 3e-3, warmup_steps=1),
        "few_steps": options,
        "save_every": 3,
    }
    return Phase("few_steps", str(model), **{**values, **changes})


def made(model, options: FewSteps = WHOLE, **changes) -> tuple[FewStepsTask, Pipeline]:
    """A task whose LoRA changes much, and the pipeline of the same model without it."""
    task = Parts(phase_of(model, options, **changes)).task
    for parameter in task.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return task, Pipeline.from_folder(model)


def inputs(pipeline: Pipeline) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Noise, text features and conditioning of a start image."""
    mask = torch.ones(5, 32, 48)
    mask[0] = 0
    extra = pipeline.condition(torch.rand(5, 32, 48, 3), mask)
    return pipeline.noise(48, 32, 5, seed=1), pipeline.text_encoder(PROMPT), extra


def numbers(*values: int) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize("final_alpha_one", [True, False])
@pytest.mark.parametrize("snr_shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 4, 8, 40])
def test_a_turn_is_the_packs_ddim_step(steps, snr_shift, final_alpha_one):
    """Any velocity, also where a run starts from noise alone. Both compute in float64 here."""
    schedule = NoiseSchedule(snr_shift, final_alpha_one=final_alpha_one)
    alphas = schedule.alphas_cumprod()
    start = torch.randn(2, 3, 4, dtype=torch.float64)

    def predict(x: torch.Tensor, timestep: int) -> torch.Tensor:
        return x.roll(1, -1) * (1 + timestep / 500) - 0.3

    final = 1.0 if final_alpha_one else float(alphas[0])
    expected = cogvideox_ddim(predict, start, schedule.timesteps(steps, "trailing"), steps, alphas, final)
    timesteps, angles = run_angles(schedule, steps)
    x = start
    for number, timestep in enumerate(timesteps):
        x = turn(x, predict(x, timestep), (angles[number] - angles[number + 1]).expand(2))
    assert torch.allclose(x, expected, rtol=1e-9, atol=1e-9)
    assert angles[0] == pytest.approx(torch.pi / 2) and (angles.diff() < 0).all()


@torch.no_grad()
@pytest.mark.parametrize("variant", ["2b", "5b"])
def test_the_teacher_is_a_run_of_the_model_without_the_lora(tmp_path, variant):
    """With guidance, the negative prompt and the conditioning; within rounding of float32."""
    model = write_tiny_model(tmp_path / "model", variant)
    task, pipeline = made(model, dataclasses.replace(WHOLE, steps=1, steps_at_once=4))
    noise, text, extra = inputs(pipeline)
    negative = pipeline.text_encoder(WHOLE.negative)
    expected = pipeline.sample(noise, text, negative, extra, steps=4, cfg=3.0, spacing="trailing")
    found = task.target(noise, numbers(0), numbers(4), text, extra)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))
    plain = dataclasses.replace(task.options, guidance=1.0)
    task.options = plain
    expected = pipeline.sample(noise, text, negative, extra, steps=4, cfg=1.0, spacing="trailing")
    found = task.target(noise, numbers(0), numbers(4), text, extra)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@torch.no_grad()
def test_the_students_steps_are_a_run_with_the_loras_file(tiny_model, tmp_path):
    """The file, added to the model's weights, makes in two steps without guidance what the student's steps make."""
    task, pipeline = made(tiny_model)
    noise, text, extra = inputs(pipeline)
    x = noise
    for place in (0, 2):
        x = task.step(x, numbers(place), numbers(place + 2), text, extra)
    trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
    write_result(phase_of(tiny_model), trained, tmp_path)
    without = pipeline.sample(noise, text, text, extra, steps=2, cfg=1.0, spacing="trailing")
    apply_lora(pipeline.transformer, tmp_path / "lora.safetensors")
    expected = pipeline.sample(noise, text, text, extra, steps=2, cfg=1.0, spacing="trailing")
    error = (x - expected).square().mean().sqrt() / expected.std()
    assert error < 0.01, "the file is float16"
    assert (without - expected).square().mean().sqrt() > 0.1 * expected.std()


@torch.no_grad()
def test_the_target_goes_on_with_the_student_where_the_teacher_stops(tiny_model):
    """Three of the four steps of a phase: from its start the student goes on, from its middle the teacher arrives.

    Both in one batch, as in training.
    """
    task, pipeline = made(tiny_model, dataclasses.replace(WHOLE, steps=1, steps_at_once=3))
    noise, text, extra = inputs(pipeline)
    x, place, end = noise.repeat(2, 1, 1, 1, 1), numbers(0, 2), numbers(4, 4)
    found = task.target(x, place, end, text.repeat(2, 1, 1), extra.repeat(2, 1, 1, 1, 1))

    predict = pipeline.guided(1, text, pipeline.text_encoder(WHOLE.negative), extra, cfg=3.0)
    alphas = pipeline.checkpoint.schedule.alphas_cumprod()
    stopped, arrived = (cogvideox_ddim(predict, noise, run, 4, alphas) for run in ([999, 749, 499], [499, 249]))
    expected = torch.cat([task.step(stopped, numbers(3), numbers(4), text, extra), arrived])
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4 * float(expected.std()))


@pytest.mark.parametrize(
    "at_once, places",
    [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (2, [0, 2, 4, 6]), (9, [0, 2, 4, 6])],
)
def test_where_clips_are_in_the_teachers_run(tiny_model, at_once, places):
    """At phase starts only where the teacher runs through a whole phase. Times up to 1 are valid."""
    options = FewSteps(steps=4, teacher_steps=8, steps_at_once=at_once)
    task = Parts(phase_of(tiny_model, options)).task
    place, end = task.places(torch.linspace(0, 1, 1000))
    assert place.unique().tolist() == places
    assert ((end - place <= 2) & (end > place) & (end % 2 == 0)).all()


@torch.no_grad()
def test_the_loss_of_a_batch_by_hand(tiny_model):
    """At the starts of phases: the squared error of the velocity that would go to the teacher's end in one step."""
    task, pipeline = made(tiny_model, caption_dropout=0.0)
    phase = phase_of(tiny_model, masks={"start": 1.0}, caption_dropout=0.0)
    batch = next(phase_batches(phase, open_clips(phase.data)))
    loss = task(Parts(phase).prepare(batch))
    alphas, negative = pipeline.checkpoint.schedule.alphas_cumprod(), pipeline.text_encoder(WHOLE.negative)
    for i, (video, mask, caption) in enumerate(zip(batch["video"], batch["mask"], batch["captions"], strict=True)):
        start = 999 if batch["time"][i, 0] < 0.5 else 499
        angle = alphas[start].sqrt().arccos()
        turned = angle - (alphas[499].sqrt().arccos() if start == 999 else 0)
        extra, text = pipeline.condition(video, mask), pipeline.text_encoder(caption)
        x = (angle.cos() * pipeline.encode(video) + angle.sin() * batch["noise"][i]).float()
        predict = pipeline.guided(1, text, negative, extra, cfg=3.0)
        target = cogvideox_ddim(predict, x, [start, start - 250], 4, alphas)
        velocity = (turned.cos() * x - target) / turned.sin()
        found = task.transformer(x, torch.tensor([start]), text, extra)
        assert float(loss[i, 0]) == pytest.approx(float((found - velocity).square().mean()), rel=1e-3)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("mixed_precision", ["no", "bf16"])
def test_gradients_are_of_the_lora_alone_and_through_one_step(tiny_model, tmp_path, mixed_precision, at_once):
    """None through the target: the gradient equals that of the loss with the target as a constant.

    In bf16 with an older PyTorch, weights that autocast had kept from the target would leave no gradient at all.
    """
    options = dataclasses.replace(WHOLE, steps_at_once=at_once)
    phase = phase_of(tiny_model, options, mixed_precision=mixed_precision)
    trainer = Trainer(phase, Parts(phase), Accelerator(cpu=True, mixed_precision=mixed_precision), tmp_path)
    for parameter in trainer.parameters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    batch = next(phase_batches(phase, open_clips(phase.data)))
    trainer.gradients(batch)
    assert all("lora_" in name for name in trainer.parameters)
    assert all(p.grad is None for name, p in trainer.task.named_parameters() if name not in trainer.parameters)
    found = {name: p.grad.clone() for name, p in trainer.parameters.items()}
    trainer.optimizer.zero_grad()
    task, target = trainer.task, trainer.task.target
    with trainer.engine.autocast():
        clips = trainer.parts.prepare(batch)
        kept = []
        task.target = lambda *where: kept.append(target(*where)) or kept[-1]
        task(clips)
        task.target = lambda *where: kept[0]
        loss = task(clips).mean()
    loss.backward()
    for name, value in found.items():
        assert value.any() and torch.allclose(value, trainer.parameters[name].grad, rtol=1e-3, atol=1e-6), name


def test_a_phase_from_a_cache_writes_a_lora(tiny_model, tmp_path):
    """T5 is loaded for the teacher's negative prompt alone."""
    cache = tmp_path / "cache"
    phase = phase_of(tiny_model, steps=2, output=str(tmp_path / "out"))
    with processes(cpu=True) as state:
        Encoding(phase, cache, Amount(count=4), state).run()
        cached = dataclasses.replace(phase, data=dataclasses.replace(phase.data, cache=str(cache)))
        run_phase(cached, cpu=True)
    whole = load_file(tmp_path / "out" / "model" / "lora.safetensors")
    export_run(tmp_path / "out", tmp_path / "smaller", rank=2)
    smaller = load_file(tmp_path / "smaller" / "lora.safetensors")
    assert whole.keys() == smaller.keys()
    assert [{len(w[key]) for key in w if "lora_down" in key} for w in (whole, smaller)] == [{8}, {2}]
    negative = Pipeline.from_folder(tiny_model).text_encoder(WHOLE.negative)
    assert torch.equal(Parts(cached).task.negative, negative)


def test_steps_that_do_not_divide_the_schedule(tiny_model):
    with pytest.raises(ValueError, match="teacher_steps is 12, expected a divisor of the schedule's 1000 timesteps"):
        Parts(phase_of(tiny_model, FewSteps(steps=4, teacher_steps=12)))


@pytest.mark.parametrize(
    "at_once, guidance, forwards", [(2, 6.0, 4), (2, 1.0, 2), (5, 6.0, 4), (1, 6.0, 2 + 1), (1, 1.0, 1 + 1)]
)
def test_the_plan_counts_the_teacher(at_once, guidance, forwards):
    """Forward passes without gradient: the teacher's, twice with guidance, and the student's own where it goes on."""
    options = FewSteps(4, 8, at_once, guidance)
    phase = Phase("few_steps", "", "", 1, Batches(320, ((128, 128),), 17), few_steps=options, mixed_precision="bf16")
    config = TransformerConfig(**{**TINY, "num_layers": 1}, **VARIANTS["2b"])
    step, plain = (
        trace.trace_all_blocks(each, config, Bucket(128, 128, 17), 1)
        for each in (phase, dataclasses.replace(phase, task="lora"))
    )
    # a forward pass has two products of attention, a backward pass five
    assert step.attention_flops / plain.attention_flops == pytest.approx((7 + 2 * forwards) / 7)
    assert step.other_flops > plain.other_flops and step.passes >= plain.passes
    assert (step.frozen, step.trained, step.moments) == (plain.frozen, plain.trained, plain.moments), "no second model"

"""The plan: its trace against real tensors, its extension to all blocks, and what it tells of the report's phases."""

import copy
import dataclasses
from functools import partial

import pytest
import torch
from cogvideox_fun.model_loading.networks.blocks import sdpa
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.training.data.buckets import Bucket, Draw
from cogvideox_fun.training.data.clips import SceneClips
from cogvideox_fun.training.loop.config import Batches, Data, Phase, read_phase
from cogvideox_fun.training.loop.source import phase_buckets, phase_samples
from cogvideox_fun.training.planning import trace
from cogvideox_fun.training.planning.plan import GPUS, PUBLISHED, Plan, Saving, Setup
from cogvideox_fun.training.planning.report import buckets, passes, sizes_by_phase, verdict
from cogvideox_fun.training.tasks.attention import product_attention
from cogvideox_fun.training.tasks.transformer import TransformerTask
from pack import ROOT
from tiny_model import TINY, VARIANTS

BUCKET = Bucket(128, 128, 17)
FUN = {name: read_phase(ROOT / "training" / "configs" / f"{name}.toml") for name in ("fun_2b_13312", "fun_5b_53248")}


def phase_of(task="full", **options) -> Phase:
    return Phase(task, "", "", 1, Batches(320, ((128, 128),), 17), **options)


def allocated(profile) -> int:
    """The most bytes that the CPU's allocator gave out at once, as the profiler saw it."""
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


@pytest.mark.parametrize(
    "variant, task, checkpoint", [("2b", "full", False), ("5b", "full", True), ("2b", "lora", True)]
)
def test_a_trace_has_the_bytes_of_a_real_step(variant, task, checkpoint):
    """Within 1 %, by the profiler's view of PyTorch's allocator. Both attend by products, which run everywhere."""
    phase = phase_of(task, checkpoint_blocks=checkpoint)
    config = TransformerConfig(**{**TINY, "num_layers": 3}, **VARIANTS[variant])
    traced = trace.trace_all_blocks(phase, config, BUCKET, 2, attention=product_attention)
    transformer = trace.make_transformer(phase, config, product_attention)
    trace.materialise(transformer)
    run = trace.Run(phase, TransformerTask(transformer, config.default_schedule.alphas_cumprod()))
    run.update()
    run.optimizer.zero_grad()
    profiled = partial(torch.profiler.profile, activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True)
    run.forward(
        trace.encoded(phase, config, BUCKET, 2)
    ).backward()  # oneDNN and the position table keep what they need
    run.optimizer.zero_grad()
    with profiled() as passes:
        run.forward(trace.encoded(phase, config, BUCKET, 2)).backward()
    with profiled() as update:
        run.update()
    assert traced.passes == pytest.approx(allocated(passes), rel=0.01)
    assert traced.update == pytest.approx(allocated(update), rel=0.01)


def test_attention_counts_as_a_fused_kernel():
    """No N x N matrix: twice the tokens need twice the bytes. Its operations are those of PyTorch's formulas."""
    config = TransformerConfig(**{**TINY, "num_layers": 1}, **VARIANTS["2b"])
    one, two, four = (
        trace.trace_all_blocks(phase_of(mixed_precision="bf16"), config, Bucket(64 * n, 256, 49), 1)
        for n in (4, 8, 16)
    )
    assert four.passes - two.passes == pytest.approx(2 * (two.passes - one.passes), rel=0.01)
    tokens = Bucket(256, 256, 49).tokens + 226
    # forward: q k^T and a v, 2 N^2 d each; backward: five such products. d has 64 numbers in each of two heads
    assert one.attention_flops == config.num_layers * 7 * 2 * tokens**2 * 128


@pytest.mark.parametrize("accumulates", [True, False])
def test_few_blocks_tell_of_all(accumulates):
    """The extension from three blocks is exact, whatever grows faster: gradients, weights in bf16, or what is kept."""
    phase = phase_of(mixed_precision="bf16", checkpoint_blocks=True)
    config = TransformerConfig(**{**TINY, "num_layers": 5}, **VARIANTS["2b"])
    arguments = phase, config, Bucket(64, 64, 5), 1, accumulates, 4
    assert trace.trace_step(*arguments) == trace.trace_all_blocks(*arguments)


def test_autocast_as_on_a_gpu():
    """Norms are float32 there, also while blocks are recomputed, and weights are cast once in the forward pass."""
    dtypes = []

    def attention(q, k, v, heads, transformer_options=None):
        dtypes.append((q.dtype, k.dtype, v.dtype))
        return sdpa(*(x.to(v.dtype) for x in (q, k, v)), heads)

    phase = phase_of(mixed_precision="bf16", checkpoint_blocks=True)
    config = TransformerConfig(**TINY, **VARIANTS["2b"])
    transformer = trace.make_transformer(phase, config, attention)
    trace.materialise(transformer)
    run = trace.Run(phase, TransformerTask(transformer, config.default_schedule.alphas_cumprod()))
    live = trace.LiveBytes(run.parameters)
    with live:
        run.forward(trace.encoded(phase, config, Bucket(32, 32, 5), 1)).backward()
    assert dtypes == 2 * config.num_layers * [(torch.float32, torch.float32, torch.bfloat16)]
    assert max(cast for _, _, cast in live.timeline) == pytest.approx(
        sum(2 * p.numel() for p in run.parameters if p.ndim > 1), rel=0.05
    )


@pytest.fixture(scope="module")
def plan_2b() -> Plan:
    return Plan(FUN["fun_2b_13312"], Setup("h100", 8))


def test_the_reports_frames(plan_2b):
    """The report: at 13312 tokens 512, 768 and 1024 square have 49, 21 and 9 frames."""
    frames = {(b.width, b.base): b.length for b in plan_2b.buckets if b.width == b.height}
    assert {(512, 512): 49, (768, 768): 21, (1024, 1024): 9}.items() <= frames.items()
    assert plan_2b.share == 16 and plan_2b.saving.micro_batch == 1


def test_the_plan_of_a_2b_step(plan_2b):
    """One clip of 13312 tokens: 1.694 billion weights, and what follows from them."""
    weights = 4 * 1_693_914_432
    saving = Saving(True, 1, cached=True)
    step = plan_2b.traced(saving, plan_2b.nominal)
    assert plan_2b.nominal == Bucket(512, 512, 49)
    assert (step.trained, step.moments, step.average, step.frozen) == (weights, 2 * weights, weights, 0)
    plain = plan_2b.traced(dataclasses.replace(saving, checkpoint_blocks=False), plan_2b.nominal)
    assert step.passes < 0.2 * plain.passes
    assert (step.attention_flops + step.other_flops) / (plain.attention_flops + plain.other_flops) == pytest.approx(
        4 / 3, abs=0.05
    ), "recomputation is a third more"
    tokens, d = 13312 + 226, 1920
    forward = 30 * (24 * tokens * d**2 + 4 * tokens**2 * d)  # the usual estimate
    assert plain.attention_flops + plain.other_flops == pytest.approx(3.3 * forward, rel=0.05)
    text = (ROOT / "docs" / "training_plan.md").read_text()
    assert f"needs {plan_2b.peak(saving, plan_2b.nominal) / 1e9:.1f} GB with checkpoint_blocks" in text


def test_the_hours_of_a_phase_by_hand(plan_2b):
    """989 TFLOPS of an H100, of which 0.3 are reached, on eight."""
    phase = plan_2b.phase
    seconds = phase.steps * phase.batches.batch_size * 1e15 / (8 * 0.3 * 989e12)
    assert phase.batches.batch_size == 128 and plan_2b.hours(1e15) == pytest.approx(seconds / 3600, rel=0.01)


def test_encoding_counts_t5(plan_2b):
    """A multiplication and an addition for each weight and each of 226 tokens."""
    without = copy.copy(plan_2b)
    without.t5_parameters = 0
    assert plan_2b.encoding_flops() - without.encoding_flops() == 2 * 4_762_310_656 * 226
    assert without.encoding_flops() > plan_2b.encoding[1], "the VAE encodes the known part, too"


@pytest.mark.parametrize("control", ["", "edges"])
def test_the_memory_of_the_workers_is_that_of_their_samples(control):
    """Three batches: of two workers, and the one that is trained on. Single numbers are not counted."""
    phase = dataclasses.replace(phase_of(family="2b", data=Data(workers=2, control=control)), model="nowhere")
    (bucket,) = phase_buckets(phase.batches, phase.batches.tokens)
    sample = phase_samples(phase, SceneClips(0))[Draw(0, 0, bucket)]
    clip = sum(value.nbytes for value in sample.values() if torch.is_tensor(value) and value.numel() > 1)
    assert Plan(phase, Setup(gpus=4)).waiting_bytes() == 3 * phase.batches.batch_size * clip


def test_what_lowers_the_peak(plan_2b):
    """Each way of saving memory does, by at least what it leaves out."""
    saving = plan_2b.saving
    peak = plan_2b.peak(saving)
    step = plan_2b.traced(saving)
    assert plan_2b.peak(dataclasses.replace(saving, cached=True)) <= peak - plan_2b.frozen_bytes
    assert plan_2b.peak(dataclasses.replace(saving, eight_bit=True)) <= peak - 0.7 * step.moments
    sharded = plan_2b.peak(dataclasses.replace(saving, sharded=True))
    assert sharded <= peak - 0.8 * (step.trained + step.moments + step.average)
    assert plan_2b.peak(dataclasses.replace(saving, checkpoint_blocks=False)) > peak


def test_what_does_not_fit_and_what_makes_it_fit(plan_2b):
    small = copy.copy(plan_2b)  # with its traces
    small.setup, small.gpu = Setup("rtx4090", 8), GPUS["rtx4090"]
    assert not small.fits(small.saving)
    for changes, saving in small.remedies():
        assert small.fits(saving) and saving.cached and saving.sharded and len(changes) == 2
    assert "It fits with cached latents and text features and FSDP 2 or ZeRO-3 on 8 GPUs" in verdict(small)
    assert "| 512 | 49 | 40 |" in buckets(small) and passes(small) == "16 in 16 x 1"


def test_equal_sizes_are_listed_once(plan_2b):
    other = copy.copy(plan_2b)
    other.buckets = plan_2b.buckets[1:]
    tables = sizes_by_phase({"first": plan_2b, "other": other, "last": copy.copy(plan_2b)})
    assert tables["first"] == buckets(plan_2b) and tables["other"] == buckets(other)
    assert tables["last"] == "The same sizes and lengths as first."


def test_a_lora_of_a_published_model():
    """Only its own layers have gradients and moments; a 5B's frozen weights alone have 11 GB."""
    name = "v1.5"
    batches = Batches(320, ((128, 128),), 17, 0.5, batch_size=1)
    phase = Phase("lora", "none", "", 1, batches, family=name, mixed_precision="bf16", checkpoint_blocks=True)
    plan = Plan(phase, Setup(gpus=1))
    step = plan.traced(plan.saving)
    assert step.frozen == pytest.approx(11.14e9, rel=0.01)
    assert step.trained == 4 * 8 * PUBLISHED[name].num_layers * PUBLISHED[name].dim * (4 * 2 + 2 * 5)
    assert "It fits as it is" in verdict(plan)


@pytest.mark.parametrize(
    "changes, setup, words",
    [
        ({"task": "vae"}, Setup(), "the task 'vae', expected the transformer or a LoRA"),
        (
            {"family": "", "model": "no_such_folder"},
            Setup(),
            "no_such_folder is not there, and the phase has no family",
        ),
        ({}, Setup(gpus=7), "batch_size is 128, expected a multiple of the 7 GPUs"),
    ],
)
def test_phases_that_cant_be_planned(changes, setup, words):
    with pytest.raises(ValueError, match=words):
        Plan(dataclasses.replace(FUN["fun_2b_13312"], **changes), setup)

"""A plan as Markdown."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping

from ..data.buckets import Bucket
from ..loop.config import Phase
from ..loop.source import worker_count
from .plan import Plan, Saving, Setup


def report(phases: Mapping[str, Phase], setup: Setup) -> str:
    """The plan of phases, by their names."""
    plans = {name: Plan(phase, setup) for name, phase in phases.items()}
    gpu = next(iter(plans.values())).gpu
    title = f"# A plan for {setup.gpus} x {gpu.name}"
    about = (
        "Bytes and operations are traced: the real task runs a step on fake tensors. Not counted are the CUDA "
        "context, what kernels need inside, and fragments of the allocator. Steps on an H100 took at most 0.3 % more "
        "memory than traced (docs/gpu.md). GB are 1e9 bytes, "
        f"and a GPU has {gpu.memory / 1e9:.0f} GB for this. Hours assume {setup.utilisation:.0%} of "
        f"{gpu.rate / 1e12:.0f} TFLOP/s, the dense bf16 rate; recomputed blocks count as operations."
    )
    parts = [title, about, summary(plans)]
    tables = sizes_by_phase(plans)
    return "\n\n".join([*parts, *(section(name, plan, tables[name]) for name, plan in plans.items())]) + "\n"


def table(rows: list[list[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *body])


def gigabytes(count: float) -> str:
    value = count / 1e9
    return f"{value:,.0f} GB" if value >= 100 else f"{value:.1f} GB"


def summary(plans: Mapping[str, Plan]) -> str:
    rows = [["phase", "model", "clips a step per GPU", "whole on each GPU", "in shards", "PFLOP a clip", "hours"]]
    for name, plan in plans.items():
        whole, sharded = (plan.peak(dataclasses.replace(plan.saving, sharded=s)) for s in (False, True))
        flops = plan.clip_flops()
        rows.append(
            [
                *(name, plan.config.family, passes(plan)),
                *(shown(plan, whole), shown(plan, sharded) if plan.setup.gpus > 1 else "-"),
                *(f"{flops / 1e15:.2f}", f"{plan.hours(flops):,.0f}"),
            ]
        )
    return table(rows)


def passes(plan: Plan) -> str:
    clips = plan.saving.micro_batch
    return f"{plan.share} in {-(-plan.share // clips)} x {clips}"


def shown(plan: Plan, peak: float) -> str:
    return gigabytes(peak) + ("" if peak <= plan.gpu.memory else ", too much")


def section(name: str, plan: Plan, sizes: str) -> str:
    phase = plan.phase
    facts = (
        f"{phase.task}, {plan.config.family}, {phase.batches.tokens} tokens, {phase.steps} steps of "
        f"{phase.batches.batch_size} clips."
    )
    return "\n\n".join([f"## {name}", facts, sizes, memory(plan), verdict(plan), costs(plan)])


def sizes_by_phase(plans: Mapping[str, Plan]) -> dict[str, str]:
    """The table of each phase's sizes, or which phase before it has the same one."""
    tables, first = {}, {}
    for name, plan in plans.items():
        same = first.setdefault(tuple(plan.buckets), name)
        tables[name] = buckets(plan) if same == name else f"The same sizes and lengths as {same}."
    return tables


def buckets(plan: Plan) -> str:
    """Sizes by base resolution and length."""
    groups: dict[tuple[int, int], list[Bucket]] = defaultdict(list)
    for bucket in plan.buckets:
        groups[(bucket.base, bucket.length)].append(bucket)
    rows = [["base", "frames", "sizes", "tokens", "the squarest size"]]
    for (base, length), found in sorted(groups.items(), key=lambda group: (group[0][0], -group[0][1])):
        tokens = [bucket.tokens for bucket in found]
        square = min(found, key=lambda bucket: abs(bucket.width - bucket.height))
        rows.append(
            [
                *(str(base or "-"), str(length), str(len(found))),
                *(f"{min(tokens)} to {max(tokens)}", f"{square.width} x {square.height}"),
            ]
        )
    return table(rows)


def memory(plan: Plan) -> str:
    """Peaks of a GPU with and without checkpointing and shards, and what they are made of."""
    both = [dataclasses.replace(plan.saving, checkpoint_blocks=checkpoint) for checkpoint in (True, False)]
    rows = [["the most on a GPU", "checkpoint_blocks", "without"]]
    kinds = {"whole on each GPU": False, f"in {plan.setup.gpus} shards": True}
    for kind, sharded in kinds.items() if plan.setup.gpus > 1 else [("one GPU", False)]:
        for end, cached in ((", encoding in the step", False), (", cached latents", True)):
            variants = [dataclasses.replace(saving, sharded=sharded, cached=cached) for saving in both]
            rows.append([kind + end, *(shown(plan, plan.peak(variant)) for variant in variants)])
    return "\n\n".join([table(rows), made_of(plan, *both), alone(plan, *both)])


def size(bucket: Bucket) -> str:
    return f"{bucket.tokens} tokens ({bucket.width} x {bucket.height}, {bucket.length} frames)"


def made_of(plan: Plan, checkpointed: Saving, plain: Saving) -> str:
    state, step, without = plan.state_bytes(), plan.traced(checkpointed), plan.traced(plain)
    return (
        f"These are for the largest bucket, {size(plan.largest)}. The state of all GPUs is {gigabytes(state)} "
        f"(weights, gradients, moments, average), {gigabytes(state / plan.setup.gpus)} in a shard. A forward and "
        f"backward pass adds {gigabytes(step.passes)} with checkpoint_blocks and {gigabytes(without.passes)} without, "
        f"and the update {gigabytes(step.update)}. The VAE and T5 have {gigabytes(plan.frozen_bytes)}."
    )


def alone(plan: Plan, *both: Saving) -> str:
    """One GPU with clips of the phase's own token length."""
    savings = [dataclasses.replace(saving, cached=True, gpus=1) for saving in both]
    with_it, without = (gigabytes(plan.peak(saving, plan.nominal)) for saving in savings)
    passes, plain = (gigabytes(plan.traced(saving, plan.nominal).passes) for saving in savings)
    clips = plan.saving.micro_batch
    return (
        f"At {size(plan.nominal)} one GPU alone with cached latents needs {with_it} with checkpoint_blocks and "
        f"{without} without. Of these, the passes of {clips} clip{'s' if clips > 1 else ''} add {passes} and {plain}."
    )


def verdict(plan: Plan) -> str:
    """Whether the phase fits as it is, and what would make it fit."""
    peak, name = plan.peak(plan.saving), f"{plan.setup.gpus} x {plan.gpu.name}"
    if plan.fits(plan.saving):
        return f"It fits as it is, whole on each GPU: {gigabytes(peak)} of {gigabytes(plan.gpu.memory)}."
    found = [f"{' and '.join(changes)}: {gigabytes(plan.peak(saving))}" for changes, saving in plan.remedies()]
    if not found:
        return f"**It does not fit** on {name}, and nothing that this trainer has makes it fit: take larger GPUs."
    return (
        f"**It does not fit whole on each GPU** ({gigabytes(peak)} of {gigabytes(plan.gpu.memory)}). It fits with "
        f"{', or '.join(found)}."
    )


def costs(plan: Plan) -> str:
    flops, encoding = plan.clip_flops(), plan.encoding_flops()
    latents, text = plan.cache_bytes()
    lines = [
        f"A step has {flops * plan.phase.batches.batch_size / 1e15:,.0f} PFLOP, with recomputation as the phase says "
        f"({plan.clip_flops(True) / plan.clip_flops(False) - 1:+.0%} with checkpoint_blocks). "
        f"All steps take {plan.hours(flops):,.0f} hours.",
        f"Batches take up to {gigabytes(plan.waiting_bytes())} of the computer's memory: for each GPU the one that is "
        f"trained on, and one of each of its {worker_count(plan.phase.data)} workers.",
        f"Encoding the clips in the step adds {plan.hours(encoding):,.0f} hours ({encoding / flops:.0%}).",
        f"A cache of {plan.setup.clips:,} clips in bf16 has {gigabytes(latents)} of latents with their conditioning, "
        f"for each pass over the clips, and up to {gigabytes(text)} of text features.",
    ]
    return "\n".join(f"- {line}" for line in lines)

"""Encoded clips: training from a cache is training on the clips, and what is missing or broken is named."""

import dataclasses
import json
import logging
import re
import resource
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, PartialState
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.training.data.cache import Cache, CachedDraws, CachedSamples
from cogvideox_fun.training.loop.config import Batches, ConfigError, Data, Optimizer, Phase, Validation, read_phase
from cogvideox_fun.training.loop.encode import Amount, Encoding
from cogvideox_fun.training.loop.progress import read_losses
from cogvideox_fun.training.loop.source import open_clips, phase_batches
from cogvideox_fun.training.loop.state import newest, read_tensors
from cogvideox_fun.training.loop.trainer import Trainer
from cogvideox_fun.training.tasks.parts import Parts
from pack import ROOT
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model
from video_files import counted, write_video

COUNT, SHARD_SIZE = 18, 8
BATCHES = Batches(12, ((48, 32), (32, 48)), 5, batch_size=4, noises_per_clip=2)


def phase_of(model, cache="", **changes) -> Phase:
    data = Data(seed=5, cache=str(cache))
    options = {"output": "", "steps": 6, "batches": BATCHES, "data": data, "optimizer": Optimizer(1e-3)}
    return Phase(changes.pop("task", "full"), str(model), **{**options, "caption_dropout": 0.4, **changes})


def write_cache(model, folder, count=COUNT, **changes) -> Path:
    Encoding(phase_of(model, **changes), folder, Amount(count), PartialState(cpu=True), shard_size=SHARD_SIZE).run()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def cache(tiny_model, tmp_path_factory) -> Path:
    """A cache of three shards of latents; copy it before changing it."""
    return write_cache(tiny_model, tmp_path_factory.mktemp("cache") / "cache")


@pytest.fixture
def copied(cache, tmp_path) -> Path:
    return shutil.copytree(cache, tmp_path / "copied")


@pytest.mark.parametrize("variant", ["2b", "2b with noise", "v1.5", "2b-text"])
def test_batches_of_a_cache_are_those_of_its_clips(tmp_path, variant):
    """The same noise, times and captions to the bit. Latents were encoded alone, and here in batches: a convolution
    of a batch may sum in another order, so they may differ by float32 rounding of the largest value."""
    model = write_tiny_model(tmp_path / "model", variant.split()[0])
    if "noise" in variant:  # on known pixels, as V1.1's InP models have
        path = model / "transformer" / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "add_noise_in_inpaint_model": True}))
    plain, cached = phase_of(model), phase_of(model, write_cache(model, tmp_path / "cache"))
    parts, config = Parts(plain), Parts(cached).config
    assert Parts(cached).encoders is None
    pairs = zip(
        phase_batches(plain, open_clips(plain.data), config=config),
        phase_batches(cached, open_clips(cached.data), config=config),
        strict=False,
    )
    for batch, found in islice(pairs, 3):  # the others wait for clips of their bucket
        wanted = parts.prepare(batch)
        assert found["captions"] == batch["captions"]
        for name in ("noise", "time"):
            assert torch.equal(found[name], wanted[name]), name
        for name in ("latent", "context", *(["extra"] if variant != "2b-text" else [])):
            largest = float(wanted[name].abs().max())
            assert largest > 0.1 and torch.allclose(found[name], wanted[name], rtol=0, atol=1e-4 * largest), name
        losses = [parts.task(encoded) for encoded in (wanted, found)]
        assert torch.allclose(*losses, rtol=1e-3, atol=0) and losses[0].min() > 0.01


def drawn(cache: Cache, steps: int, *shared, seed: int = 0, batch_size: int = 4) -> list[list]:
    return list(islice(CachedDraws(cache, batch_size, seed, *shared), steps))


def test_every_pass_has_all_entries_and_every_batch_one_bucket(cache):
    opened = Cache(cache)
    flat = [draw for batch in drawn(opened, 10 * COUNT, batch_size=1) for draw in batch]
    passes = [[draw.index for draw in flat[first : first + COUNT]] for first in range(0, 10 * COUNT, COUNT)]
    assert passes[0] == list(range(COUNT))
    assert all(sorted(order) == passes[0] for order in passes)
    assert len({tuple(order) for order in passes}) == 10
    assert [draw.number for draw in flat] == list(range(10 * COUNT))
    assert [d.index for b in drawn(opened, COUNT, seed=1, batch_size=1) for d in b] != passes[0]  # another seed
    batches = drawn(opened, 30)
    assert all(len({draw.bucket for draw in batch}) == 1 and len(batch) == 4 for batch in batches)
    assert len({batch[0].bucket for batch in batches}) == 2


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_the_batches_of_a_cache(cache, world):
    opened, whole = Cache(cache), drawn(Cache(cache), 30)
    shares = [drawn(opened, 30, rank, world) for rank in range(world)]
    for step, batch in enumerate(whole):
        assert sorted((d for share in shares for d in share[step]), key=lambda d: d.number) == batch
    with pytest.raises(ValueError, match="batch_size is 4, expected a multiple of the 3 processes"):
        CachedDraws(opened, 4, 0, 0, 3)


def train(model, cache, folder, until=None, workers=0) -> list[float]:
    data = Data(seed=5, cache=str(cache), workers=workers)
    phase = phase_of(model, task="lora", data=data, save_every=3)
    torch.manual_seed(0)
    Trainer(phase, Parts(phase), Accelerator(cpu=True), folder).run(until)
    return [row["loss"] for row in read_losses(folder / "loss.csv")]


def test_a_run_from_a_cache_resumes_bit_equal_without_vae_and_text_encoder(tiny_model, cache, tmp_path):
    """Beyond the first pass, with other workers after the stop. The model folder has the transformer alone."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model / "transformer", model / "transformer")
    whole = train(model, cache, tmp_path / "whole")
    train(model, cache, tmp_path / "parts", until=3, workers=2)
    assert train(model, cache, tmp_path / "parts") == whole and len(set(whole)) == 6
    states = [read_tensors(newest(tmp_path / name), "weights") for name in ("whole", "parts")]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_validation_needs_the_parts_that_training_from_a_cache_does_not(tiny_model, cache, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny_model / "transformer", model / "transformer")
    phase = phase_of(model, cache, task="lora", validation=Validation(every=2))
    with pytest.raises(CheckpointError, match="has no vae: download the whole repository"):
        Trainer(phase, Parts(phase), Accelerator(cpu=True), tmp_path).validate()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"masks": {"start": 1.0}}, "masks was .*, and is {'start': 1.0}"),
        ({"batches": dataclasses.replace(BATCHES, tokens=13)}, "batches.tokens was 12, and is 13"),
        ({"model": "other"}, "VAE was .*, and is "),
        ({"text_encoder": "other"}, "text encoder was .*, and is "),
    ],
)
def test_a_cache_of_another_phase_is_refused(tiny_model, cache, tmp_path, changes, words):
    other = write_tiny_model(tmp_path / "other", seed=7)
    changes = {name: str(other) if value == "other" else value for name, value in changes.items()}
    phase = dataclasses.replace(phase_of(tiny_model, cache), **changes)
    with pytest.raises(ValueError, match=f"was encoded for another phase.*{words}.*run encode"):
        Parts(phase)
    with pytest.raises(ValueError, match=f"is another cache.*{words}.*give another folder"):
        Encoding(phase, cache, Amount(COUNT), PartialState(cpu=True), shard_size=SHARD_SIZE).run()


@pytest.mark.parametrize(
    "old, new, words",
    [
        ('"lora"', '"vae"', "task is 'vae', expected full, lora or few_steps: the VAE"),
        ('"lora"', '"full"\ntrain_text_encoder = true', "frozen T5"),
    ],
)
def test_a_configuration_that_cant_use_a_cache(tiny_model, tmp_path, old, new, words):
    text = (ROOT / "training" / "configs" / "nano_lora.toml").read_text().replace("[data]", '[data]\ncache = "c"')
    (tmp_path / "phase.toml").write_text(text)
    assert read_phase(tmp_path / "phase.toml").data.cache == str(tmp_path / "c")
    (tmp_path / "phase.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words):
        read_phase(tmp_path / "phase.toml")


def change(path: Path, name: str, edit) -> None:
    tensors = load_file(path)
    tensors[name] = edit(tensors[name].clone())
    save_file(tensors, path)


@pytest.mark.parametrize(
    "edit, words",
    [
        (lambda x: x.index_fill_(2, torch.tensor([1]), torch.nan), "has values that are not finite"),
        (lambda x: x[:, :, 1:].contiguous(), r"has the shape \[.*\], expected \[16, 2, "),
    ],
)
def test_a_broken_entry_costs_one_line(copied, caplog, edit, words):
    """Another entry of its bucket takes its place, and all others are as before."""
    samples = CachedSamples(Cache(copied), seed=0)
    bucket_of = samples.cache.bucket_of
    broken = next(e for e in range(8, 15) if bucket_of(e + 1) != bucket_of(e))  # in the second shard
    other = next(e for e in range(broken + 1, COUNT) if bucket_of(e) == bucket_of(broken))
    draws = [draw for batch in drawn(samples.cache, 12) for draw in batch]
    before = [samples[draw] for draw in draws]
    change(copied / "latents_00001.safetensors", f"latent.{broken}", edit)
    with caplog.at_level(logging.WARNING):
        after = [samples[draw] for draw in draws]
    (line,) = caplog.messages
    assert line.endswith("another entry is taken instead") and re.search(words, line)
    assert f"latents_00001.safetensors: latent.{broken} " in line
    expected = load_file(samples.cache.path("latents", other))[f"latent.{other}"]
    assert sum(draw.index == broken for draw in draws) > 1
    for draw, old, new in zip(draws, before, after, strict=True):
        assert torch.equal(new["latent"], expected if draw.index == broken else old["latent"])
        assert torch.equal(new["noise"], old["noise"])


def test_a_cache_without_one_usable_entry(copied):
    samples = CachedSamples(Cache(copied), seed=0)
    change(copied / "text_00000.safetensors", "text.0", lambda x: x * torch.inf)
    samples.caption_dropout = 1.0
    with pytest.raises(ValueError, match="has no entry of .* that can be used.*run encode again"):
        samples[drawn(samples.cache, 1)[0][0]]


def test_bfloat16_rounds_what_is_stored(tiny_model, cache, tmp_path):
    options = {"dtype": "bfloat16", "shard_size": SHARD_SIZE}
    Encoding(phase_of(tiny_model), tmp_path / "half", Amount(8), PartialState(cpu=True), **options).run()
    whole, half = (load_file(folder / "latents_00000.safetensors") for folder in (cache, tmp_path / "half"))
    assert whole.keys() == half.keys()
    for name in (name for name in whole if name.startswith(("latent", "extra"))):
        assert torch.equal(half[name], whole[name].bfloat16()), name
    sample = CachedSamples(Cache(tmp_path / "half"), seed=0)[drawn(Cache(tmp_path / "half"), 1, batch_size=1)[0][0]]
    assert {sample[name].dtype for name in ("latent", "extra", "context")} == {torch.float32}


def test_clips_are_encoded_as_precisely_as_the_phase_trains(tiny_model, cache, tmp_path):
    phase = phase_of(tiny_model, mixed_precision="bf16")
    Encoding(phase, tmp_path / "bf16", Amount(8), PartialState(cpu=True), shard_size=SHARD_SIZE).run()
    for name in ("latents", "text"):
        exact, rough = (load_file(folder / f"{name}_00000.safetensors") for folder in (cache, tmp_path / "bf16"))
        change = max(
            float((rough[one] - exact[one]).abs().max()) for one in exact if one.startswith(("latent", "text"))
        )
        assert 1e-4 < change < 0.3, name


def test_clips_that_are_encoded_at_once_are_stored_like_single_ones(tiny_model, cache, tmp_path):
    """Everything but latents and features is equal to the bit; these differ by float32 rounding of the largest."""
    options = {"shard_size": SHARD_SIZE, "together": 3}
    Encoding(phase_of(tiny_model), tmp_path / "cache", Amount(COUNT), PartialState(cpu=True), **options).run()
    compared = 0
    for path in cache.glob("*.safetensors"):
        alone, together = load_file(path), load_file(tmp_path / "cache" / path.name)
        assert alone.keys() == together.keys(), path.name
        for name, wanted in alone.items():
            close = name.startswith(("latent", "extra", "text"))
            atol = 1e-4 * float(wanted.abs().max()) if close else 0.0
            assert torch.allclose(together[name], wanted, rtol=0, atol=atol), name
            compared += close
    assert compared > 2 * COUNT  # latents, features, and what is known


def test_every_epoch_has_masks_of_its_own(tiny_model, tmp_path):
    phase = phase_of(tiny_model, data=Data(seed=5, count=4), masks={"region": 1.0})
    Encoding(phase, tmp_path / "cache", Amount(epochs=2), PartialState(cpu=True)).run()
    found = load_file(tmp_path / "cache" / "latents_00000.safetensors")
    assert found["clip"].tolist() == list(range(8)) and "latent.7" in found
    pairs = [(found[f"extra.{e}"], found[f"extra.{e + 4}"]) for e in range(4)]
    assert not any(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match="these clips never end: say how many with --count"):
        Encoding(phase_of(tiny_model), tmp_path / "other", Amount(epochs=2), PartialState(cpu=True))


def test_a_folder_that_has_grown_is_another_cache(tiny_model, tmp_path):
    """Its clips are drawn in another order, so the files that are there would not fit the new ones."""
    clips = tmp_path / "clips"
    clips.mkdir()
    options = {"data": Data(folders=(str(clips),), workers=0)}
    write_video(clips / "a.mp4", counted(24))
    write_cache(tiny_model, tmp_path / "cache", 4, **options)
    write_video(clips / "b.mp4", counted(24))
    with pytest.raises(ValueError, match="is another cache .*clips was 1, and is 2.*: give another folder"):
        write_cache(tiny_model, tmp_path / "cache", 4, **options)


def test_missing_and_truncated_files_are_named(copied):
    samples = CachedSamples(Cache(copied), seed=0)
    shard = copied / "latents_00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    draws = [draw for batch in drawn(samples.cache, 10) for draw in batch]
    with pytest.raises(OSError, match="latents_00001.safetensors can't be read.*remove it, and run encode again"):
        [samples[draw] for draw in draws]
    for name in ("latents_00001.safetensors", "index.safetensors", "cache.json"):
        (copied / name).unlink()
        with pytest.raises(ValueError, match=f"{copied}.*run encode"):
            Cache(copied)


def test_a_disk_that_is_full_is_named_and_complete_files_stay(tiny_model, cache, tmp_path):
    """The system refuses a file of the second shard's size. The next call goes on."""
    target, limits = tmp_path / "full", resource.getrlimit(resource.RLIMIT_FSIZE)
    shutil.copytree(cache, target)
    lost = target / "latents_00001.safetensors"
    size = lost.stat().st_size
    lost.unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, limits[1]))
    try:
        with pytest.raises(OSError, match=f"{lost.name} can't be written .*it needs {size} bytes") as error:
            write_cache(tiny_model, target)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "run the same command again" in str(error.value) and str(target) in str(error.value)
    assert sorted(contents(target)) == ["cache.json", "latents_00000.safetensors", "latents_00002.safetensors"]
    assert contents(write_cache(tiny_model, target)) == contents(cache)


CONFIG = """
task = "full"
model = "model"
output = "out"
steps = 8
[batches]
tokens = 12
sizes = [[48, 32], [32, 48]]
max_length = 5
[data]
seed = 5
workers = 1
"""


@pytest.mark.long
def test_two_processes_go_on_with_an_interrupted_cache(tiny_model, cache, tmp_path):
    """They write the files of one process to the bit; a shard that was left half-written is written again."""
    (tmp_path / "phase.toml").write_text(CONFIG)
    target = tmp_path / "cache"
    target.mkdir()
    for name in ("cache.json", "latents_00000.safetensors"):
        shutil.copyfile(cache / name, target / name)
    (target / "latents_00002.tmp").write_bytes(b"half")
    before = (target / "latents_00000.safetensors").stat().st_mtime_ns
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(ROOT / "training" / "run.py"), "encode", str(tmp_path / "phase.toml"), "--cpu"]
    command += ["--model", str(tiny_model), "--output", str(target), "--count", str(COUNT), "--shard-size", "8"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    assert contents(target) == contents(cache)
    assert (target / "latents_00000.safetensors").stat().st_mtime_ns == before

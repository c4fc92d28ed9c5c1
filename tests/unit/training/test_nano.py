"""The model that comes with the pack does what docs/nano.md says, on a few clips; make evaluate measures many."""

import dataclasses
import json

import pytest
import torch
from cogvideox_fun.model_loading.files.safetensors_files import open_weights
from cogvideox_fun.model_loading.networks.vae import CogVideoXVAE
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.training.data import scenes
from cogvideox_fun.training.data.scenes import random_scene, render
from cogvideox_fun.training.evaluation import rows
from cogvideox_fun.training.evaluation.evaluate import ROWS, evaluate
from cogvideox_fun.training.evaluation.generate import Evaluation, Options
from cogvideox_fun.training.evaluation.positions import compare_positions
from cogvideox_fun.training.evaluation.report import Result
from cogvideox_fun.training.evaluation.tiny_decoder import tiny_decoder
from cogvideox_fun.training.loop.config import Batches, Optimizer, Phase
from cogvideox_fun.training.nano import make as nano
from cogvideox_fun.training.tasks.lora import apply_lora
from pack import ROOT

NANO = ROOT / "models" / "nano"
MOVES = {"moves over gradients": rows.MOVES}

# What the shipped model reaches on `OPTIONS`, with some room: two clips vary more than the table's 64.
OPTIONS = Options(count=2, size=96, steps=8)
VAE_PSNR, VAE_IOU = 30.0, 0.94  # dB
DRAFT_PSNR = 24.0  # dB
START_END_IOU = 0.87
LAST_FRAME_LOSS = 5.0  # dB below the VAE alone
# With the best fitting template of the asked shape. Eight clips, since one in eight falls apart: 0.74 is their mean,
# where two clips gave 0.78 or more as long as none of these was among them.
TEXT_CLIPS, TEXT_IOU = 8, 0.68


@pytest.fixture(scope="module")
def evaluation():
    """Few clips of few steps: enough to tell a trained model from an untrained one."""
    return Evaluation(Pipeline.from_folder(NANO), OPTIONS)


def one(results: list[Result], what: str) -> Result:
    (found,) = [result for result in results if result.what == what]
    return found


def mean(results: list[Result], what: str) -> float:
    return one(results, what).value.mean


def test_is_small_and_stored_in_half_precision():
    size = sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file())
    assert size <= 24e6, f"{size / 1e6:.1f} MB"
    for part in ("transformer", "vae", "tiny_decoder", "text_encoder"):
        assert {info.dtype for info in open_weights(NANO / part).tensors.values()} == {torch.float16}


def test_knows_every_word_of_the_grammar(evaluation):
    assert set(scenes.vocabulary()) <= set(evaluation.pipeline.text_encoder.tokenizer.get_vocab())
    assert evaluation.pipeline.text_encoder("a red circle").shape == (1, nano.TEXT_TOKENS, nano.TEXT_DIM), "not 226"


def test_its_vae_restores_clips(evaluation):
    results = rows.vae(evaluation, MOVES)
    assert mean(results, "PSNR") >= VAE_PSNR and mean(results, "shape IoU") >= VAE_IOU


def test_its_small_decoder_restores_clips(evaluation):
    results = tiny_decoder(evaluation, MOVES)
    assert mean(results, "PSNR") >= DRAFT_PSNR and mean(results, "PSNR to what the whole VAE decodes") >= DRAFT_PSNR
    assert mean(results, "right shape") == mean(results, "right colour") == 1


def test_a_start_and_an_end_image_become_a_motion_between_them(evaluation):
    results = rows.start_and_end(evaluation, MOVES)
    assert mean(results, "shape IoU") >= START_END_IOU
    last = one(results, "PSNR of the last frame")
    assert last.value.mean >= last.vae.mean - LAST_FRAME_LOSS
    assert mean(results, "right colour") == mean(results, "direction of the prompt") == 1


@pytest.mark.long
def test_a_prompt_decides_shape_colour_and_direction(evaluation):
    results = rows.text(Evaluation(evaluation.pipeline, dataclasses.replace(OPTIONS, count=TEXT_CLIPS)))
    assert mean(results, "IoU with the asked shape, at any place") >= TEXT_IOU
    for what in ("right colour", "direction of the prompt"):
        assert mean(results, what) == 1, what


@pytest.mark.long
def test_the_other_rows_of_the_evaluation(evaluation):
    """They run, on one clip of one step; make evaluate tells which goals are met."""
    lora = NANO / "lora" / "ring.safetensors"
    small = Evaluation(evaluation.pipeline, Options(count=1, size=64, steps=1), lora=lora)
    results = [*rows.start(small), *rows.region(small), *rows.video_to_video(small), *rows.lora(small)]
    results += [result for result in rows.camera(small) if "cross-fade" in result.what]
    results += rows.sizes(small, [(64, 64, True), (96, 64, False)])
    assert len({result.row for result in results}) == 9
    assert all(torch.isfinite(torch.tensor(result.value.mean)) for result in results)
    assert {"start", "region", "LoRA ring"} < {example.row for example in small.examples}
    assert all(video.shape == (17, 64, 64, 3) for example in small.examples for video in example.videos)


def test_only_the_clips_that_have_goals(evaluation):
    chosen = Evaluation(
        evaluation.pipeline, Options(count=1, size=32, steps=1, goals_only=True), control=NANO / "control"
    )
    results = [*rows.vae(chosen), *rows.start_and_end(chosen), *rows.control(chosen)]
    expected = {f"{row}, moves over gradients" for row in ("VAE", "start and end", "control")}
    assert {result.row for result in results} == expected


def test_its_lora_fits_and_changes_what_it_makes(evaluation):
    """The evaluation measures how often rings come."""
    with_lora = Pipeline.from_folder(NANO)
    apply_lora(with_lora.transformer, NANO / "lora" / "ring.safetensors")
    noise, text = with_lora.noise(64, 64, 5, 0), with_lora.text_encoder("a red ring moves right over the night")
    made = [p.sample(noise, text, text, steps=2, cfg=1.0) for p in (evaluation.pipeline, with_lora)]
    assert (made[0] - made[1]).abs().mean() > 0.01


def test_its_few_step_lora_comes_closer_to_what_it_learnt_from(evaluation):
    """To 8 steps with guidance 1.5, from the same noise: 4 steps without guidance, with the LoRA and without.

    Small errors of the first step can grow: one of the three clips is no closer, and all together are by a third.
    """
    with_lora, plain = Pipeline.from_folder(NANO), evaluation.pipeline
    apply_lora(with_lora.transformer, NANO / "lora" / "few_steps.safetensors")
    things = "a red circle moves right over the night", "a blue square moves up over the fog"
    errors = torch.zeros(2)
    for seed, prompt in enumerate((*things, "a green triangle moves left over the sand")):
        noise, texts = plain.noise(96, 96, 17, seed), [plain.text_encoder(text) for text in (prompt, "")]
        teacher = plain.sample(noise, *texts, steps=8, cfg=1.5)
        made = [pipeline.sample(noise, *texts, steps=4, cfg=1.0) for pipeline in (with_lora, plain)]
        errors += torch.stack([(latent - teacher).norm() / teacher.norm() for latent in made])
    assert errors[0] < 0.8 * errors[1], errors


def test_the_evaluation_adds_a_lora_in_all_rows(tmp_path, monkeypatch):
    name, seen = "transformer_blocks.0.attn1.to_q.weight", []
    monkeypatch.setitem(ROWS, "text", lambda e: seen.append(e.pipeline.transformer.get_parameter(name).clone()) or [])
    few = NANO / "lora" / "few_steps.safetensors"
    evaluate(NANO, None, None, ["text", "text"], Options(), tmp_path, everywhere=few)
    expected = Pipeline.from_folder(NANO).transformer
    assert not torch.equal(seen[0], expected.get_parameter(name))
    apply_lora(expected, few)
    assert len(seen) == 2 and all(torch.equal(weight, expected.get_parameter(name)) for weight in seen)


@torch.no_grad()
def test_masking_leaves_the_latents_of_what_is_known():
    """With norms that hardly norm, unlike those of a VAE of the same architecture without `initialise_vae`."""
    torch.manual_seed(0)
    plain = CogVideoXVAE(nano.VAE)
    started = CogVideoXVAE(nano.VAE)
    started.load_state_dict(plain.state_dict())
    nano.initialise_vae(started)
    whole = render(random_scene(0, 0), 9, 64, 64).movedim(-1, 0)[None] * 2 - 1
    masked = whole.clone()
    masked[:, :, 1:] = -1
    off = []
    for vae in (plain, started):
        first, other = (vae.encode(pixels)[:, :, 0] for pixels in (whole, masked))
        off.append(float((first - other).square().mean() / first.var()))
    assert off[1] < 0.1 * off[0], off


def test_position_tables_are_compared(tmp_path):
    """Both tables of each seed see the same data, so their losses differ by the table alone."""
    model = nano.write_small(tmp_path / "start", NANO)
    batches = Batches(12, ((48, 32), (32, 48)), 5, 0.3, batch_size=2)
    phase = Phase("full", str(model), str(tmp_path / "runs"), 2, batches, optimizer=Optimizer(1e-2, warmup_steps=1))
    text = compare_positions(phase, [1, 2], Options(count=2, steps=1), tmp_path, cpu=True)
    results = json.loads((tmp_path / "positions.json").read_text())["results"]
    assert set(results) == {"interpolated", "generated"} and len(results["generated"]) == 2
    losses = [run["held-out loss, 48 x 32 x 5"] for runs in results.values() for run in runs]
    assert len(set(losses)) == 4 and all(loss > 0 for loss in losses)
    differences = [b - a for a, b in zip(losses[:2], losses[2:], strict=True)]
    mean, error = sum(differences) / 2, abs(differences[0] - differences[1]) / 2
    assert f"| {mean:.5f} ± {error:.5f} | " in text
    assert (tmp_path / "positions.png").stat().st_size > 5000

"""The model that comes with the pack does what docs/nano.md says, on a few clips; make evaluate measures many."""

import json

import pytest
import torch
from cogvideox_fun.model_loading.files.safetensors_files import open_weights
from cogvideox_fun.model_loading.networks.vae import CogVideoXVAE
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.training.data import shapes
from cogvideox_fun.training.data.shapes import random_scene, render
from cogvideox_fun.training.evaluation.positions import compare_positions
from cogvideox_fun.training.evaluation.rows import Evaluation, Options, Result
from cogvideox_fun.training.loop.config import Batches, Optimizer, Phase
from cogvideox_fun.training.nano import make as nano
from cogvideox_fun.training.tasks.lora import apply_lora
from pack import ROOT

NANO = ROOT / "models" / "nano"


@pytest.fixture(scope="module")
def evaluation():
    """Few clips of few steps: enough to tell a trained model from an untrained one."""
    return Evaluation(Pipeline.from_folder(NANO), Options(count=2, size=96, steps=8))


def share(results: list[Result], what: str) -> float:
    (found,) = [result for result in results if result.what.startswith(what)]
    return float(found.measured.split("%")[0].split(" ")[0])


def test_is_small_and_stored_in_half_precision():
    size = sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file())
    assert size <= 24e6, f"{size / 1e6:.1f} MB"
    for part in ("transformer", "vae", "text_encoder"):
        assert {info.dtype for info in open_weights(NANO / part).tensors.values()} == {torch.float16}


def test_knows_every_word_of_the_grammar(evaluation):
    assert set(shapes.vocabulary()) <= set(evaluation.pipeline.text_encoder.tokenizer.get_vocab())
    assert evaluation.pipeline.text_encoder("a red circle").shape == (1, 16, 64), "16 tokens, not 226"


def test_its_vae_restores_clips(evaluation):
    assert share(evaluation.vae(), "reconstruction") > 27.5  # dB


def test_a_start_and_an_end_image_become_a_motion_between_them(evaluation):
    results = evaluation.start_and_end()
    assert share(results, "middle frame") >= 85  # by chance, next to none
    assert share(results, "first frame") < 2 and share(results, "last frame") < 4  # dB below the VAE alone


def test_a_prompt_decides_colour_and_direction(evaluation):
    results = evaluation.text_to_video()
    assert share(results, "colour") >= 95 and share(results, "direction") >= 85  # by chance 17 and 25 % of each


def test_the_other_rows_of_the_evaluation(evaluation):
    """They run, on one clip of one step; make evaluate tells which goals are met."""
    small = Evaluation(evaluation.pipeline, Options(count=1, size=64, steps=1))
    results = [*small.image_to_video(), *small.region(), *small.video_to_video()]
    results += small.resolutions([(64, 64, True), (96, 64, False)])
    assert len({result.row for result in results}) >= 4 and all(result.measured for result in results)


def test_its_lora_fits_and_changes_what_it_makes(evaluation):
    """The evaluation measures how often rings come."""
    with_lora = Pipeline.from_folder(NANO)
    apply_lora(with_lora.transformer, NANO / "lora" / "ring.safetensors")
    noise, text = with_lora.noise(64, 64, 5, 0), with_lora.text_encoder("a red ring moves right over the night")
    made = [p.sample(noise, text, text, steps=2, cfg=1.0) for p in (evaluation.pipeline, with_lora)]
    assert (made[0] - made[1]).abs().mean() > 0.01


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

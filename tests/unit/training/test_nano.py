"""The model that comes with the pack does what its README says, on a few clips; make evaluate measures many."""

import pytest
import torch
from cogvideox_fun.model_loading.files.safetensors_files import open_weights
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.training.data import shapes
from cogvideox_fun.training.evaluation import measure, report
from cogvideox_fun.training.evaluation.rows import Evaluation, Options, Result, band
from pack import ROOT

NANO = ROOT / "models" / "nano"


@pytest.fixture(scope="module")
def evaluation():
    """Few clips of few steps: enough to tell a trained model from an untrained one."""
    return Evaluation(Pipeline.from_folder(NANO), Options(count=4, size=128, steps=10))


def share(results: list[Result], what: str) -> float:
    (found,) = [result for result in results if result.what.startswith(what)]
    return float(found.measured.split("%")[0].split(" ")[0])


def test_is_small_and_stored_in_half_precision():
    size = sum(path.stat().st_size for path in NANO.rglob("*") if path.is_file())
    assert size <= 24e6, f"{size / 1e6:.1f} MB"
    for part in ("transformer", "vae", "text_encoder"):
        assert {info.dtype for info in open_weights(NANO / part).tensors.values()} == {torch.float16}


def test_knows_every_word_of_the_grammar(evaluation):
    vocabulary = evaluation.pipeline.text_encoder.tokenizer.get_vocab()
    assert set(shapes.vocabulary()) <= set(vocabulary)
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


def test_its_lora_fits_and_changes_what_it_makes(evaluation):
    """How many rings come is the evaluation's to say."""
    from cogvideox_fun.training.tasks.lora import apply_lora

    with_lora = Pipeline.from_folder(NANO)
    apply_lora(with_lora.transformer, NANO / "lora" / "ring.safetensors")
    noise, text = with_lora.noise(64, 64, 5, 0), with_lora.text_encoder("a red ring moves right over the night")
    made = [p.sample(noise, text, text, steps=2, cfg=1.0) for p in (evaluation.pipeline, with_lora)]
    assert (made[0] - made[1]).abs().mean() > 0.01


# What the evaluation measures, on clips whose answer is known.


@pytest.mark.parametrize("height, width", [(64, 64), (96, 144), (128, 96)])
def test_the_measures_are_right_about_true_clips(height, width):
    noise = torch.Generator().manual_seed(0)
    for index in range(30):
        kinds = shapes.SHAPES if index % 3 else (shapes.NEW_SHAPE,)
        scene = shapes.random_scene(99, index, kinds)
        video = shapes.render(scene, 17, height, width)
        video = (video + 0.03 * torch.randn(video.shape, generator=noise)).clamp(0, 1)
        seen = measure.look(video)
        assert seen.found
        assert (seen.colour, seen.background, seen.direction) == (scene.colour, scene.background, scene.direction)
        assert (seen.centres - shapes.centres(scene, 17)).abs().max() < 0.03
        assert measure.has_hole(video) == (scene.shape == shapes.NEW_SHAPE)


def test_the_measures_see_what_is_wrong():
    scene = shapes.Scene("red", "circle", "right", "fog", 0.17, (0.25, 0.5), (0.7, 0.5))
    video = shapes.render(scene, 17, 64, 64)
    assert measure.look(video.flip(0)).direction == "left"
    assert measure.look(video.transpose(1, 2)).direction == "down"
    assert measure.look(video[:1].expand(17, -1, -1, -1)).direction is None, "it does not move"
    assert not measure.look(torch.full_like(video, 0.5)).found, "no shape at all"
    assert measure.psnr(video, video + 0.1) == pytest.approx(20, abs=1e-3)
    half = torch.zeros(17, 64, 64)
    half[:, :32] = 1
    worse = video.clone()
    worse[:, 32:] += 0.5
    assert measure.psnr(worse, video, half) > 90 > measure.psnr(worse, video)


def test_the_band_of_a_scene_holds_its_shape():
    for index in range(20):
        scene = shapes.random_scene(3, index)
        video, mask = shapes.render(scene, 17, 64, 96), band(scene, 17, 64, 96)
        assert (measure.difference(video)[mask == 0] < 0.05).all() and 0.2 < mask.mean() < 0.8


def test_a_table_of_results():
    results = [Result("a", "b", "at least 95%", "97.0%", True), Result("a", "c", "", "1 dB", None)]
    assert report.markdown(results).splitlines()[2:] == [
        "| a | b | at least 95% | 97.0% | yes |",
        "| a | c |  | 1 dB |  |",
    ]

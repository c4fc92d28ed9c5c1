"""The rows of the evaluation, asked about a model that makes exactly what it is asked for, and about wrong ones."""

import dataclasses
import json

import pytest
import torch
from cogvideox_fun.training.data import shapes
from cogvideox_fun.training.evaluation import measure, report
from cogvideox_fun.training.evaluation.rows import (
    LENGTH,
    Evaluation,
    Options,
    Result,
    band,
    reversed_scene,
)


class PerfectVAE:
    """Takes the place of a pipeline: the VAE loses a little, the same everywhere; conditioning is ignored."""

    def condition(self, video, mask):
        return None

    def encode(self, video):
        return video

    def decode(self, latent):
        return latent + 0.01


class Answers(Evaluation):
    """An evaluation whose model answers every prompt with its scene's clip, changed by ``wrong``."""

    def __init__(self, wrong=lambda video: video):
        super().__init__(PerfectVAE(), Options(count=8, size=64))
        self.wrong = wrong

    def scenes(self, *args, **options):
        self.drawn = super().scenes(*args, **options)
        return self.drawn

    def make(self, row, captions, extras, seed, width=None, height=None, **run):
        for scene, caption in zip(self.drawn, captions, strict=False):
            (colour,) = (word for word in caption.split() if word in shapes.COLOURS)
            if scene.direction not in caption.split():
                scene = reversed_scene(scene)
            scene = dataclasses.replace(scene, colour=colour)
            clip = shapes.render(scene, LENGTH, height or self.options.size, width or self.options.size)
            strength = float(row.split()[-1]) if row.startswith("video to video") else 0.0
            yield self.wrong(clip) + 0.01 + 0.02 * strength


ROWS = ("vae", "text_to_video", "image_to_video", "start_and_end", "region", "video_to_video")


def table(evaluation: Evaluation) -> dict[str, Result]:
    results = [result for row in ROWS for result in getattr(evaluation, row)()]
    results += evaluation.resolutions([(64, 64, True), (96, 64, False)])
    return {f"{result.row}: {result.what}": result for result in results}


def failed(results: dict[str, Result]) -> set[str]:
    return {name for name, result in results.items() if result.met is False}


def test_a_model_that_makes_what_it_is_asked_for_reaches_every_goal():
    results = table(Answers())
    assert failed(results) <= {"video to video: at 0.2, to the reconstruction"}
    assert {r.measured for r in results.values() if r.measured.endswith("%")} == {"100.0%"}


def test_a_model_that_plays_backwards_or_changes_what_is_known():
    results = table(Answers(lambda video: video.flip(0)))
    directions = {name for name in results if "direction" in name}
    assert all(results[name].measured == "0.0%" for name in directions if "colour and" not in name)
    ends = {f"start and end image: {end} frame, to its reconstruction" for end in ("first", "last")}
    assert failed(results) >= directions | ends
    assert "region inpaint: known part, to its reconstruction" in failed(table(Answers(lambda video: video + 0.05)))


@pytest.mark.parametrize("height, width", [(64, 64), (96, 144), (128, 96)])
def test_the_measures_are_right_about_true_clips(height, width):
    noise = torch.Generator().manual_seed(0)
    for index in range(30):
        kinds = shapes.SHAPES if index % 3 else (shapes.NEW_SHAPE,)
        scene = shapes.random_scene(99, index, kinds)
        video, mask = shapes.render(scene, 17, height, width), band(scene, 17, height, width)
        assert (measure.difference(video)[mask == 0] < 0.05).all() and 0.2 < mask.mean() < 0.8
        seen = measure.look((video + 0.03 * torch.randn(video.shape, generator=noise)).clamp(0, 1))
        assert (seen.colour, seen.background, seen.direction) == (scene.colour, scene.background, scene.direction)
        assert (seen.centres - shapes.centres(scene, 17)).abs().max() < 0.03
        assert measure.has_hole(video) == (scene.shape == shapes.NEW_SHAPE)
    assert measure.look(video[:1].expand(17, -1, -1, -1)).direction is None, "it does not move"
    assert not measure.look(torch.full_like(video, 0.5)).found
    half = torch.arange(height)[:, None].expand(height, width) < height // 2
    worse = torch.where(half[..., None], video, video + 0.1)
    assert measure.psnr(worse, video, ~half.expand(17, -1, -1)) == pytest.approx(20, abs=1e-3)
    assert measure.psnr(worse, video, half.expand(17, -1, -1)) > 90


def test_what_is_written(tmp_path):
    results = [Result("a", "b", "at least 95%", "97.0%", True), Result("a", "c", "", "1 dB", None)]
    assert report.markdown(results).splitlines()[2:] == [
        "| a | b | at least 95% | 97.0% | yes |",
        "| a | c |  | 1 dB |  |",
    ]
    report.write_report(tmp_path / "evaluation.json", results, {"count": 3})
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["count"] == 3 and written["results"][0]["measured"] == "97.0%"
    report.table_picture(tmp_path / "evaluation.png", results)
    report.picture(tmp_path / "evaluation.jpg", {"a clip": torch.rand(LENGTH, 64, 64, 3)})
    assert all((tmp_path / f"evaluation.{kind}").stat().st_size > 2000 for kind in ("png", "jpg"))

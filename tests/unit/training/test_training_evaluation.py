"""The rows of the evaluation, asked about a model that makes exactly what it is asked for, and about wrong ones."""

import dataclasses
import json

import torch
from cogvideox_fun.training.data import shapes
from cogvideox_fun.training.evaluation import measure, report
from cogvideox_fun.training.evaluation.rows import LENGTH, Evaluation, Options, Result, open_start, reversed_scene


class PerfectVAE:
    """In the place of a pipeline: the VAE loses a little, the same everywhere; conditioning is not looked at."""

    def condition(self, video, mask):
        return None

    def encode(self, video):
        return video

    def decode(self, latent):
        return latent + 0.01


class Answers(Evaluation):
    """An evaluation whose model answers every prompt with its scene's clip, changed by ``wrong``."""

    def __init__(self, wrong=lambda video: video, count: int = 8):
        super().__init__(PerfectVAE(), Options(count=count, size=64))
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


def test_a_model_that_makes_what_it_is_asked_for_reaches_every_goal():
    results = table(Answers())
    v2v = "video to video: at 0.2, to the reconstruction"
    assert len(results) == 16
    for name, result in results.items():
        assert result.met or name == v2v or result.goal == "", (name, result)
        if result.measured.endswith("%"):
            assert result.measured == "100.0%", (name, result)
        elif "dB below" in result.measured and name != v2v:
            assert abs(float(result.measured.split()[0])) < 0.01, (name, result)


def failed(results: dict[str, Result]) -> set[str]:
    return {name for name, result in results.items() if result.met is False}


def test_a_model_that_plays_backwards_goes_the_wrong_way():
    results = table(Answers(lambda video: video.flip(0)))
    directions = {name for name in results if "direction" in name}
    assert len(directions) == 5
    assert all(results[name].measured == "0.0%" for name in directions if "colour and" not in name)
    ends = {f"start and end image: {end} frame, to its reconstruction" for end in ("first", "last")}
    assert failed(results) >= directions | ends
    assert results["start and end image: middle frame: one shape within 0.1 of the path"].met, "it is its own mirror"


def test_a_model_that_changes_what_is_known():
    results = table(Answers(lambda video: video + 0.05))
    assert failed(results) >= {
        "region inpaint: known part, to its reconstruction",
        "image to video: first frame, to its reconstruction",
        "start and end image: last frame, to its reconstruction",
    }
    assert results["text to video: direction"].met


def cross_fade(video: torch.Tensor) -> torch.Tensor:
    along = torch.linspace(0, 1, len(video))[:, None, None, None]
    return video[:1] * (1 - along) + video[-1:] * along


def test_a_cross_fade_is_no_motion_along_the_path():
    """Two ghosts have their common centre where the shape should be."""
    results = table(Answers(cross_fade))
    straight = results["start and end image: middle frame: one shape within 0.1 of the path"]
    assert straight.measured == "0.0%", straight


def test_two_shapes_are_no_ring():
    left, right = (shapes.Scene("red", "circle", "up", "fog", 0.17, (x, 0.6), (x, 0.4)) for x in (0.2, 0.8))
    both = torch.minimum(*(shapes.render(scene, LENGTH, 64, 64) for scene in (left, right)))
    assert not measure.has_hole(both)
    ring = dataclasses.replace(left, shape="ring", start=(0.5, 0.6), end=(0.5, 0.4), radius=0.23)
    assert measure.has_hole(shapes.render(ring, LENGTH, 64, 64))
    assert measure.spread_of(shapes.render(ring, LENGTH, 64, 96)).max() < measure.MAX_SPREAD


def test_a_start_does_not_tell_the_direction():
    """From an open start another way would have fitted, too; most starts are none."""
    corner = shapes.Scene("red", "circle", "right", "fog", 0.2, (0.25, 0.7), (0.65, 0.7))
    assert open_start(corner), "up fits, too"
    assert not open_start(dataclasses.replace(corner, start=(0.25, 0.5), end=(0.65, 0.5))), "up and down do not"
    scenes = Answers().scenes(0, wanted=open_start)
    assert len(scenes) == 8 and all(map(open_start, scenes)) and len(set(scenes)) == 8


def test_what_is_written(tmp_path):
    results = [Result("a", "b", "at least 95%", "97.0%", True), Result("a", "c", "", "1 dB", None)]
    report.write_report(tmp_path / "evaluation.json", results, {"count": 3})
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["count"] == 3 and written["results"][0]["measured"] == "97.0%"
    report.table_picture(tmp_path / "evaluation.png", results)
    report.picture(tmp_path / "evaluation.jpg", {"a clip": torch.rand(LENGTH, 64, 64, 3)})
    for name in ("evaluation.png", "evaluation.jpg"):
        assert (tmp_path / name).stat().st_size > 2000

"""What the evaluation measures in a clip, and what it writes."""

import json

import pytest
import torch
from cogvideox_fun.training.data import shapes
from cogvideox_fun.training.evaluation import measure, report
from cogvideox_fun.training.evaluation.rows import (
    LENGTH,
    Result,
    band,
)


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

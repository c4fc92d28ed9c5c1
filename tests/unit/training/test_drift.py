"""The measures of drift: a video that stays is level, and each measure sees the change that it is for."""

import pytest
import torch
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.sampling.geometry import FRAMES_PER_SECOND
from cogvideox_fun.training.data.scenes import Scene, Thing
from cogvideox_fun.training.evaluation import drift
from cogvideox_fun.training.evaluation.generate import Evaluation, Options
from cogvideox_fun.training.evaluation.measure import truth_of
from kornia.filters import gaussian_blur2d
from pack import ROOT
from PIL import Image

LENGTH = 17  # frames of a round
SCENE = Scene("move", "night", "right", things=(Thing("red", "square", (0.31, 0.5), (0.69, 0.5), (0.18, 0.18)),))


@pytest.fixture(scope="module")
def video():
    return truth_of(SCENE, LENGTH, 64, 64).video


def test_a_moving_shape_is_no_drift(video):
    assert drift.background_drift(video).max() < 0.5, "CIEDE2000; 1 can hardly be seen"
    assert abs(drift.per_minute(drift.background_drift(video))) < 5
    sharp = drift.sharpness(video)
    assert sharp.max() - sharp.min() < 0.25 * sharp[0]


def test_a_change_of_colour_a_minute(video):
    """Grey that gets lighter, L from 50 by 6 a second: nearly as many of CIEDE2000."""
    lightness = torch.arange(LENGTH) * 6 / FRAMES_PER_SECOND
    y = ((50 + lightness + 16) / 116) ** 3
    grey = torch.where(y > 0.0031308, 1.055 * y ** (1 / 2.4) - 0.055, 12.92 * y)
    changes = drift.background_drift(grey.view(-1, 1, 1, 1).expand(-1, 32, 32, 3))
    assert changes[0] == 0 and changes[-1] == pytest.approx(float(lightness[-1]), rel=0.1)
    assert drift.per_minute(changes) == pytest.approx(6 * 60, rel=0.15)


def blurred(video: torch.Tensor, sigma: float) -> torch.Tensor:
    return gaussian_blur2d(video.movedim(-1, 1), (31, 31), (sigma, sigma)).movedim(1, -1)


def test_blur_is_seen_as_less_sharpness(video):
    soft = torch.stack([blurred(frame[None], 0.1 + 0.2 * i)[0] for i, frame in enumerate(video)])
    assert drift.sharpness(soft)[-1] < 0.6 * drift.sharpness(video)[-1]
    assert drift.measured(soft, SCENE)["sharpness_at_end"] < -20
    assert -20 < drift.measured(video, SCENE)["sharpness_at_end"]
    later = drift.measured(torch.cat([video, soft]), SCENE)
    assert later["sharpness_at_start"] == pytest.approx(0, abs=10) and later["sharpness_at_end"] < -20
    (mean,) = drift.measured(soft, SCENE)["sharpness_of_minutes"]
    assert mean == pytest.approx(100 * float((drift.sharpness(soft) / drift.sharpness(soft)[0]).mean()))
    assert drift.of_minutes(range(1000)) == [239.5, 719.5, 979.5]


def test_the_shape_in_each_round(video):
    """Back and forth it stays what it is; in a round it turns blue, and in another it is a blob."""
    found = drift.measured(torch.cat([video, video.flip(0), video[:5]]), SCENE)
    assert found["shape"] > 0.9 and found["identity"] == 100
    blue = video.flip(-1)
    blob = blurred(video, 8.0)
    found = drift.measured(torch.cat([video, blue, blob, video]), SCENE)
    assert found["shape"] < 0.8 and found["identity"] == 50


def test_the_slope_is_per_minute():
    assert drift.per_minute([3.0 + i / FRAMES_PER_SECOND for i in range(24)]) == pytest.approx(60)
    assert drift.per_minute([2.0] * 5) == pytest.approx(0)


def test_a_video_of_rounds_with_the_nano_model():
    """Each method makes the asked length, from the start image, with the colours of the first round if asked."""
    pipeline = Pipeline.from_folder(ROOT / "models" / "nano")
    image, prompts, done = truth_of(SCENE, 1, 64, 64).video, drift.prompts_of(SCENE), []
    assert "right" in prompts[0] and "left" in prompts[1]
    videos = {}
    methods = drift.methods_of(9)
    for name, method in methods.items():
        how = method, Options(size=64, steps=3), 0, done.append
        videos[name] = drift.long_video(pipeline, image, prompts, 25, *how)
        assert videos[name].shape == (25, 64, 64, 3)
        assert (videos[name][0] - image[0]).abs().mean() < 0.1, "the start image"
    assert len(done) == drift.rounds_of(25, methods.values()) == 2 + 2 + 2
    plain, overlapping, matched = videos.values()
    assert torch.equal(plain[:8], overlapping[:8]), "before the first overlap"
    assert torch.equal(matched[:8], overlapping[:8]) and not torch.equal(matched, overlapping)


def test_the_table():
    one = {
        "colour": 1.0,
        "colour_at_end": 2.0,
        "sharpness": -3.0,
        "sharpness_at_end": 4.0,
        "shape": 0.5,
        "identity": 75.0,
    }
    text = drift.markdown({"a": [one], "b": [one, one]}, 10)
    assert "| a | 1.00 | 2.00 | -3.00 | +4.00 | 0.50 | 75.00 |" in text and "| b | 1.00 ± 0.00 |" in text


def test_a_table_of_chosen_methods(tmp_path):
    evaluation = Evaluation(Pipeline.from_folder(ROOT / "models" / "nano"), Options(count=1, size=64, steps=1))
    text = drift.compare_drift(evaluation, 25 / FRAMES_PER_SECOND, tmp_path, [drift.methods_of(5)["matched"]])
    (row,) = text.splitlines()[2:]
    assert row.startswith("| Long Video: overlap 5, matched to the first round |")
    assert (tmp_path / "drift.md").read_text(encoding="utf-8") == text
    assert Image.open(tmp_path / "drift.jpg").size == (10 * 64, 64), "one row of ten frames"

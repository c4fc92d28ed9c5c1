"""What the evaluation measures in a clip: the true render passes, and each measure fails on the damage it is for."""

import dataclasses
import json
import math

import pytest
import torch
from cogvideox_fun.training.data import backgrounds, scenes
from cogvideox_fun.training.data.scenes import Scene, Thing, random_scene
from cogvideox_fun.training.data.shapes import NEW_SHAPE, SHAPES
from cogvideox_fun.training.evaluation import report, rows
from cogvideox_fun.training.evaluation.generate import LENGTH
from cogvideox_fun.training.evaluation.measure import Seen, cross_fade, psnr, truth_of
from cogvideox_fun.training.evaluation.report import Example, Goal, Result, Value
from kornia.filters import gaussian_blur2d

SIZES = [(64, 64), (96, 144), (128, 96)]
TRIANGLE = Scene("move", "sand", "right", things=(Thing("blue", "triangle", (0.31, 0.5), (0.69, 0.5), (0.18, 0.18)),))
PASSING = Scene(
    *("pass", "night", "right", "slowly"),
    things=(
        Thing("yellow", "square", (0.5, 0.55), (0.5, 0.55), (0.18, 0.18)),
        Thing("red", "circle", (0.39, 0.5), (0.61, 0.5), (0.16, 0.16)),
    ),
)


def truth_and_seen(scene, height=128, width=128, damage=lambda video: video):
    truth = truth_of(scene, LENGTH, height, width)
    return truth, Seen(damage(truth.video), truth)


def seen(scene, damage):
    return truth_and_seen(scene, damage=damage)[1]


def other(**changes):
    """The same clip with another triangle."""
    (thing,) = TRIANGLE.things
    scene = dataclasses.replace(TRIANGLE, things=(dataclasses.replace(thing, **changes),))
    return lambda video: scenes.render(scene, *video.shape[:3])


def blurred(video, sigma=7.0):
    return gaussian_blur2d(video.movedim(-1, 1), (31, 31), (sigma, sigma)).movedim(1, -1)


def shifted(video, pixels=2):
    return video.roll(pixels, dims=2)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("kinds, behind", [(("move",), "GRADIENTS"), (("move",), "PHOTOS"), (("pass",), "TEXTURES")])
def test_the_true_render_passes(height, width, kinds, behind):
    for index in range(6):
        shapes = SHAPES if index % 3 else (NEW_SHAPE,)
        scene = random_scene(99, index, shapes, kinds, tuple(getattr(backgrounds, behind)))
        truth, found = truth_and_seen(scene, height, width)
        assert torch.equal(truth.video, scenes.render(scene, LENGTH, height, width))
        # a mixed outline can be nearer to a third colour
        assert found.iou.min() > 0.93 and found.iou.mean() > 0.97 and found.edge_error() < 0.2
        if kinds == ("move",):
            assert found.iou.min() == 1 and found.edge_error() < 1e-4
        assert found.psnr() > 90 and found.background_psnr() > 90 and found.flicker() == 0
        assert (found.shape, found.colour) == (scene.subject.shape, scene.subject.colour)
        assert (found.direction, found.speed) == (scene.way, scene.speed) and found.speed_error < 0.05
        assert found.template_iou(scene.subject.shape).min() > 0.92


def test_turned_and_growing_shapes_are_named():
    for index in range(12):
        scene = random_scene(98, index, SHAPES, ("turn", "grow"), scenes.NAMES)
        _, found = truth_and_seen(scene)
        assert found.shape == scene.subject.shape and found.iou.min() == 1


def test_shape_iou_and_edge_error_see_a_blurred_outline_and_a_shift():
    perfect = seen(TRIANGLE, lambda video: video)
    for damage in (blurred, shifted):
        found = seen(TRIANGLE, damage)
        assert found.iou.mean() < 0.93 < perfect.iou.mean() and found.edge_error() > 0.5
        assert found.psnr() < perfect.psnr() - 50
    # the outline of a circle that is moved by d is on average 2 d / pi away
    circle = dataclasses.replace(TRIANGLE, things=(Thing("blue", "circle", (0.31, 0.5), (0.69, 0.5), (0.2, 0.2)),))
    for pixels in (2, 4):
        assert seen(circle, lambda video, p=pixels: shifted(video, p)).edge_error() == pytest.approx(
            2 * pixels / math.pi, rel=0.1
        )


def test_edge_error_is_from_each_outline_to_the_other():
    """A second square is far from the true outline, of which nothing is missing: half of the distance."""
    scene = dataclasses.replace(TRIANGLE, things=(dataclasses.replace(TRIANGLE.things[0], shape="square"),))
    truth, _ = truth_and_seen(scene)
    more = truth.video.clone()
    more[:, :12, :12] = truth.video[0][truth.cover[0] > 0.99].mean(0)
    assert 4 < Seen(more, truth).edge_error() < 9  # 12.6 in one direction, 0 in the other


def test_one_bad_frame_is_the_worst():
    def one_frame(video):
        return torch.cat([video[:8], shifted(video[8:9], 12), video[9:]])

    found = seen(TRIANGLE, one_frame)
    assert found.iou.mean() > 0.95 and found.iou.argmin() == 8 and found.iou.min() < 0.7
    assert found.iou[9:].min() == 1 and found.iou[:8].min() == 1


def test_a_cross_fade_has_no_shape_in_the_middle():
    found = seen(TRIANGLE, cross_fade)
    assert found.iou[rows.MIDDLE].mean() < 0.5 and found.iou[[0, -1]].min() == 1
    camera = random_scene(5, 0, kinds=("pan",))
    truth, faded = truth_and_seen(camera, damage=cross_fade)
    assert faded.psnr(rows.MIDDLE) == pytest.approx(
        psnr(cross_fade(truth.video)[rows.MIDDLE], truth.video[rows.MIDDLE]), abs=1e-3
    )
    assert faded.psnr(rows.MIDDLE) < 30 < 90 < faded.psnr(slice(1))


def test_another_shape_and_another_colour_are_named():
    square, red = seen(TRIANGLE, other(shape="square")), seen(TRIANGLE, other(colour="red"))
    assert (square.shape, square.colour) == ("square", "blue") and square.template_iou("triangle").max() < 0.85
    assert (red.shape, red.colour) == ("triangle", "red") and red.iou.max() < 0.1, "only a blue one was asked for"
    assert seen(TRIANGLE, other(shape=NEW_SHAPE)).shape == NEW_SHAPE
    nothing = seen(TRIANGLE, lambda video: truth_of(TRIANGLE, *video.shape[:3]).behind.movedim(0, -1))
    assert (nothing.shape, nothing.colour, nothing.direction) == ("", "", None)
    assert nothing.iou.max() == 0 and nothing.template_iou("triangle").max() == 0
    assert nothing.speed_error == 1 and nothing.edge_error() > 10
    tiny = seen(TRIANGLE, other(radius=(0.03, 0.03)))
    assert tiny.template_iou("triangle").max() == 0 and tiny.direction is None, "it is smaller than any shape"


def test_an_ambiguous_blob_fits_no_template():
    """Two far apart shapes have one centre; blurred corners are no triangle."""
    assert seen(TRIANGLE, blurred).template_iou("triangle").mean() < 0.93
    twice = seen(TRIANGLE, lambda video: torch.where((video - shifted(video, 40)).abs() > 0.2, video[:1], video))
    assert twice.template_iou("triangle").min() < 0.8


def test_motion_is_compared_with_the_prompt():
    back = seen(TRIANGLE, lambda video: video.flip(0))
    assert back.direction == "left" and back.speed == "" and back.speed_error < 0.02
    slow = seen(TRIANGLE, lambda video: video[[round(i * 0.58) for i in range(LENGTH)]])
    assert slow.direction == "right" and slow.speed == "slowly" and slow.speed_error == pytest.approx(0.44, abs=0.03)
    still = seen(TRIANGLE, lambda video: video[:1].expand_as(video))
    assert still.direction is None and still.speed_error == 1


def test_the_other_shape_is_not_taken_for_the_subject():
    """It is left behind by a model that moves it: pixels of its colour do not belong to the subject."""
    truth, perfect = truth_and_seen(PASSING)
    moved = dataclasses.replace(PASSING.things[0], start=(0.3, 0.3), end=(0.3, 0.3))
    scene = dataclasses.replace(PASSING, things=(moved, PASSING.things[1]))
    found = Seen(scenes.render(scene, *truth.video.shape[:3]), truth)
    assert found.iou.min() > 0.93 and perfect.iou.min() > 0.97
    assert found.psnr() < 20, "it is an error all the same"


def test_flicker_is_what_the_truth_does_not_change():
    scene = random_scene(99, 0, SHAPES, ("pan",), tuple(backgrounds.PHOTOS))
    truth, found = truth_and_seen(scene)
    assert truth.change.max() > 1 and found.flicker() == 0


def test_a_start_leaves_directions_open_where_the_whole_shape_fits():
    """From the middle, the usual distance leads to 0.88."""
    place = (0.5, 0.5)
    assert not rows.open_start(
        dataclasses.replace(TRIANGLE, things=(Thing("blue", "circle", place, place, (0.2, 0.2)),))
    )
    assert rows.open_start(dataclasses.replace(TRIANGLE, things=(Thing("blue", "circle", place, place, (0.1, 0.1)),)))


def test_the_opposite_of_a_scene_goes_back():
    back = rows.opposite(TRIANGLE)
    (thing,), (before,) = back.things, TRIANGLE.things
    assert (thing.start, thing.end, back.way) == (before.end, before.start, "left") and thing.colour != before.colour


def test_background_psnr_and_flicker_leave_out_the_shapes():
    truth, _ = truth_and_seen(TRIANGLE)
    inside = (truth.cover > 0)[..., None]
    noise = torch.randn(truth.video.shape, generator=torch.Generator().manual_seed(0)) * 0.1
    shape_only = seen(TRIANGLE, lambda video: video + noise * inside)
    assert shape_only.background_psnr() > 90 and shape_only.flicker() == 0 and shape_only.psnr() < 40
    everywhere = seen(TRIANGLE, lambda video: video + 0.1)
    assert everywhere.background_psnr() == pytest.approx(20, abs=1e-3) and everywhere.flicker() < 1e-3
    blinking = seen(TRIANGLE, lambda video: video + 0.1 * (torch.arange(LENGTH) % 2).view(-1, 1, 1, 1))
    assert blinking.flicker() == pytest.approx(25.5, abs=0.01)
    assert psnr(truth.video + 0.1, truth.video) == pytest.approx(20, abs=1e-3)


def test_a_seam_is_a_step_at_the_masks_border_alone():
    for scene in (TRIANGLE, rows.opposite(TRIANGLE)):
        truth, perfect = truth_and_seen(scene)
        mask = rows.band(truth)
        assert 0.2 < mask.mean() < 0.8 and truth.cover[mask == 0].max() == 0, "the band holds the whole path"
        assert perfect.seam(mask) == 0
        brighter = Seen(truth.video + 0.1 * mask[..., None], truth)
        assert brighter.seam(mask) == pytest.approx(25.5, abs=0.01)
        assert Seen(truth.video + 0.1, truth).seam(mask) < 1e-3
        assert brighter.psnr(where=mask == 0) > 90 > 30 > brighter.psnr(where=mask)


class Given:
    """An evaluation whose VAE blurs."""

    @staticmethod
    def restored(video):
        return blurred(video, 1.0)


def test_a_row_has_means_errors_and_the_vae_beside_them():
    scene_list = [TRIANGLE, random_scene(97, 0, kinds=("move",), backgrounds=("sand",))]
    truths = [truth_of(scene, LENGTH, 64, 64) for scene in scene_list]
    damaged = torch.cat([truths[1].video[:9], blurred(truths[1].video[9:])])
    made = [(truths[0], truths[0].video), (truths[1], damaged)]
    examples = []
    lines = [*rows.iou_lines(rows.MIDDLE, 0.99, 0.1), rows.kept("the last frame", rows.LAST, 1.0)]
    mean, worst, last = rows.compare(Given(), "a row", lines, made, examples)
    ious = [Seen(video, truth).iou[1:-1] for truth, video in made]
    means = [float(iou.mean()) for iou in ious]
    assert mean.value.mean == pytest.approx(sum(means) / 2)
    assert mean.value.error == pytest.approx(abs(means[0] - means[1]) / 2)
    assert worst.value.worst == pytest.approx(min(float(iou.min()) for iou in ious))
    assert mean.vae.mean == pytest.approx(
        sum(float(Seen(Given.restored(t.video), t).iou[1:-1].mean()) for t in truths) / 2
    )
    shown = [Seen(video, truth).psnr(slice(-1, None)) for truth, video in made]
    assert last.value.mean == pytest.approx(sum(shown) / 2) and shown[1] != Seen(made[1][1], truths[1]).psnr()
    assert (mean.met, worst.met, last.met) == (False, True, True), "the first clip is better than the VAE alone"
    assert [len(example.videos) for example in examples] == [3, 3]
    assert torch.equal(examples[1].videos[2], made[1][1]) and not torch.equal(*examples[0].videos[:2])
    nothing = rows.Line("not in these clips", lambda seen: math.nan)
    assert rows.compare(Given(), "a row", [nothing], made) == []


def test_goals():
    good, bad = Value(0.95, 0.01), Value(0.92, 0.01)
    assert Goal("at least", 0.93).met(good, None) and not Goal("at least", 0.93).met(bad, None)
    assert Goal("at most", 0.93).met(bad, None) and not Goal("at most", 0.93).met(good, None)
    assert Goal("within", 0.5).met(Value(29.6, 0), Value(30, 0)) and not Goal("within", 0.5).met(
        Value(29.4, 0), Value(30, 0)
    )


def test_what_is_written(tmp_path):
    results = [
        Result("a", "b", "share", Goal("at least", 0.9), Value(0.971, 0.02), Value(1, 0)),
        Result("a", "c", "dB", Goal("within", 0.5), Value(29.123, 0.1), Value(30, 0.1)),
        Result("a", "d", "", None, Value(0.9, math.nan, 0.5)),
    ]
    assert report.markdown(results).splitlines()[2:] == [
        "| a | b | at least 90% | 97.1% ± 2.0% | 100.0% ± 0.0% | yes |",
        "| a | c | within 0.50 dB of the VAE | 29.12 ± 0.10 dB | 30.00 ± 0.10 dB | no |",
        "| a | d |  | 0.900 (worst of all 0.500) |  |  |",
    ]
    report.write_report(tmp_path / "evaluation.json", results, {"count": 3})
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["count"] == 3 and written["results"][0]["value"]["mean"] == 0.971
    assert [line["met"] for line in written["results"]] == [True, False, None]
    report.table_picture(tmp_path / "evaluation.png", results)
    examples = [Example(f"row {i % 5}", "a clip", (torch.rand(LENGTH, 32, 32, 3),) * 3) for i in range(15)]
    report.picture(tmp_path / "evaluation.jpg", examples)
    assert all((tmp_path / f"evaluation.{kind}").stat().st_size > 2000 for kind in ("png", "jpg"))
    assert [example.row for example in report.chosen(examples)] == [f"row {i % 5}" for i in range(12)]
    assert report.chosen(examples[::5] + examples[1::5])[1].row == "row 1"
    frames = report.strip([torch.arange(LENGTH).view(-1, 1, 1, 1).expand(-1, 8, 8, 3) / 16] * 3)
    assert frames.shape == (3 * (8 + report.GAP), 40, 3) and frames[0, ::8, 0].tolist() == [0, 64, 128, 191, 255]

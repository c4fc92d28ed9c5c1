"""How well a video follows the edges that are given: the measure of Control models."""

import dataclasses

import numpy as np
import pytest
import torch
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.training.data.backgrounds import GRADIENTS
from cogvideox_fun.training.data.control import draw_edges
from cogvideox_fun.training.data.scenes import HELD_OUT, NEGATIVE, random_scene
from cogvideox_fun.training.evaluation import rows
from cogvideox_fun.training.evaluation.edges import Edges, best_f_score, compare_edges, outlined
from cogvideox_fun.training.evaluation.generate import Evaluation, Options
from scipy.ndimage import distance_transform_cdt
from tiny_model import write_tiny_model

FAINT = 0.1, 0.2


def square(left: int, size: int = 12, frames: int = 3) -> torch.Tensor:
    """A white square on black, F 32 48 3."""
    video = torch.zeros(frames, 32, 48, 3)
    video[:, 8 : 8 + size, left : left + size] = 1
    return video


def lines(video: torch.Tensor) -> torch.Tensor:
    return draw_edges(video, FAINT)


def test_the_shares_of_pixels_by_their_distance():
    """scipy's distances, where a diagonal step counts as one."""
    given, video = lines(square(10)), square(12)
    video[2] = square(30)[2]  # one frame is far off
    found, wanted = (x[..., 0].bool().numpy() for x in (lines(video), given))
    shares = []
    for a, b in ((found, wanted), (wanted, found)):
        distances = np.stack([distance_transform_cdt(~frame, "chessboard") for frame in b])
        shares.append((distances[a] <= 1).mean())
    result = compare_edges(video, given)
    assert result == pytest.approx(shares) and 0.2 < min(result) and max(result) < 0.9
    precision, recall = shares
    assert result.f_score == pytest.approx(2 / (1 / precision + 1 / recall))


@pytest.mark.parametrize("shift, perfect", [(0, True), (1, True), (2, False)])
def test_one_pixel_is_tolerated(shift, perfect):
    result = compare_edges(square(10 + shift), lines(square(10)))
    assert (result == (1.0, 1.0)) == perfect and (result.f_score == 1) == perfect


def test_what_is_missing_lowers_recall_and_what_is_too_much_precision():
    one, two = square(4), (square(4) + square(30))
    missing, more = compare_edges(one, lines(two)), compare_edges(two, lines(one))
    assert missing == pytest.approx((1.0, 0.5)) and more == pytest.approx((0.5, 1.0))
    black = torch.zeros_like(one)
    assert compare_edges(black, lines(one)).f_score == compare_edges(one, black).f_score == 0
    assert compare_edges(black, black).f_score == 1 and Edges(0.0, 0.0).f_score == 0
    with pytest.raises(ValueError, match=r"have the shape \[3, 32, 48, 3\], expected the video's \[1, 32, 48, 3\]"):
        compare_edges(one[:1], lines(one))


def test_faint_outlines_need_lower_thresholds():
    """Those of the nano model's Control see a shape that is a little brighter than its background."""
    faint = 0.5 + 0.15 * square(10)
    assert not draw_edges(faint).any()
    assert compare_edges(faint, lines(square(10))) == (1.0, 1.0)


def test_the_best_thresholds_tell_where_edges_are_and_not_how_strong():
    """A faint square beside the given one counts as too much at the thresholds of the given edges alone."""
    given, video = lines(square(4)), square(4) + 0.12 * square(30)
    assert compare_edges(video, given).precision < 0.6
    assert best_f_score(video, given) == 1
    assert compare_edges(0.055 * square(4), given).recall == 0 and best_f_score(0.055 * square(4), given) == 1
    assert best_f_score(square(30), given) == 0


def test_scenes_are_left_out_if_their_edges_hardly_show_the_shape():
    """Held-out scene 1 is a green triangle over the dusk, which is about as bright."""
    scenes = [random_scene(HELD_OUT + 100, i, kinds=("move",), backgrounds=tuple(GRADIENTS)) for i in range(3)]
    assert [outlined(scene) for scene in scenes] == [True, False, True]
    assert scenes[1].caption() == "a green triangle moves up slowly over the dusk"


def test_the_row_compares_what_a_control_model_makes_of_the_true_edges(tiny_model, tmp_path):
    """A tiny Control model makes noise, so its F-scores differ from clip to clip."""
    folder = write_tiny_model(tmp_path, "2b-control")
    model, options = Pipeline.from_folder(tiny_model), Options(count=2, size=32, steps=1, cfg=1.0)
    found = rows.control(Evaluation(model, options, control=folder), {"moves": rows.MOVES})[0]
    assert (found.row, found.what, found.goal.value) == ("control, moves", "F-score of the edges", 0.9)
    pipeline, scores = Pipeline.from_folder(folder), {"model": [], "vae": []}
    scenes = Evaluation(model, options).scenes(100, dataclasses.replace(rows.MOVES, wanted=outlined))
    for i, truth in enumerate(Evaluation(model, options).truths(scenes)):
        noise, given = pipeline.noise(32, 32, 17, 100_000 + i), lines(truth.video)
        texts = pipeline.text_encoder(truth.scene.caption(i)), pipeline.text_encoder(NEGATIVE)
        made = pipeline.decode(pipeline.sample(noise, *texts, pipeline.encode(given), steps=1, cfg=1.0))
        scores["model"].append(best_f_score(made, given))
        scores["vae"].append(best_f_score(model.decode(model.encode(truth.video)), given))
    assert scores["model"][0] != scores["model"][1]
    # in a batch, sums have another order, which can move single pixels of the edges
    assert found.value.mean == pytest.approx(np.mean(scores["model"]), abs=0.02)
    assert found.vae.mean == pytest.approx(np.mean(scores["vae"]), abs=0.02)


def test_only_a_control_model_is_measured(tiny_model):
    evaluation = Evaluation(Pipeline.from_folder(tiny_model), Options(count=1), control=tiny_model)
    with pytest.raises(CheckpointError, match=r"has 33 input channels \(inpaint\), expected 32 \(control\)"):
        rows.control(evaluation)
    assert rows.control(Evaluation(Pipeline.from_folder(tiny_model), Options(count=1))) == []

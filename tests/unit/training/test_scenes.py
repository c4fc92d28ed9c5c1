"""Procedural scenes show what their captions say, inside the frame."""

import dataclasses
import random

import pytest
import torch
from cogvideox_fun.training.data import backgrounds, scenes
from cogvideox_fun.training.data.buckets import Bucket
from cogvideox_fun.training.data.scenes import KINDS, random_scene, render
from cogvideox_fun.training.loop.config import read_phase
from cogvideox_fun.training.loop.source import open_clips

SIDE = 64


def some(kind: str, count: int = 40, names=scenes.NAMES) -> list[scenes.Scene]:
    return [random_scene(11, index, kinds=(kind,), backgrounds=names) for index in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_captions_use_the_vocabulary_and_name_what_is_seen(kind):
    words = set(scenes.vocabulary())
    for scene in some(kind):
        for form in range(scenes.FORMS):
            caption = scene.caption(form).split()
            assert set(caption) <= words and {scene.background, *scene.way.split()} <= set(caption)
            assert len(caption) < 16, "the nano model's T5 has 16 tokens, one of them for the end"
            if scene.things:
                assert {scene.subject.colour, scene.subject.shape} <= set(caption)


@pytest.mark.parametrize("kind", ["move", "pass", "turn", "grow"])
def test_shapes_stay_inside(kind):
    """The frame cuts off no more than the blur of an outline."""
    for scene in some(kind):
        covers = scenes.covers(scene, 17, SIDE, SIDE)
        wider = dataclasses.replace(scene, things=tuple(smaller(thing) for thing in scene.things))
        whole = scenes.covers(wider, 17, 2 * SIDE, 2 * SIDE)
        assert torch.allclose(covers.sum((2, 3)), whole.sum((2, 3)), rtol=0.004), scene


def smaller(thing: scenes.Thing) -> scenes.Thing:
    """A thing in the middle of a frame of twice the size, with the same pixels."""
    start, end = (tuple(0.25 + at / 2 for at in place) for place in (thing.start, thing.end))
    return dataclasses.replace(thing, start=start, end=end, radius=tuple(r / 2 for r in thing.radius))


def centre(cover: torch.Tensor) -> torch.Tensor:
    """x and y of F H W, in fractions."""
    y, x = torch.meshgrid(*(torch.arange(SIDE) + 0.5,) * 2, indexing="ij")
    area = cover.sum((1, 2))
    return torch.stack([(cover * x).sum((1, 2)), (cover * y).sum((1, 2))], dim=1) / area[:, None] / SIDE


def test_speed_and_direction_are_those_of_the_words():
    speeds = set()
    for scene in some("move"):
        at = centre(scenes.covers(scene, 17, SIDE, SIDE)[-1])
        moved = torch.tensor(scenes.DIRECTIONS[scene.way]) * scenes.SPEEDS[scene.speed]
        assert torch.allclose(at[-1] - at[0], moved, atol=0.01)
        assert torch.allclose(at[8], (at[0] + at[16]) / 2, atol=0.01), "at a constant speed"
        speeds.add(scene.speed)
    assert speeds == set(scenes.SPEEDS)


def test_the_subject_passes_before_the_other_shape():
    for scene in some("pass", names=("night",)):
        other, subject = scene.things
        assert other.start == other.end and subject.start != subject.end
        cover = scenes.covers(scene, 17, SIDE, SIDE)
        hidden = (cover[0] > 0.99) & (cover[1] > 0.99)
        assert hidden.any(), scene
        colour = torch.tensor(scenes.COLOURS[scene.subject.colour])
        assert (render(scene, 17, SIDE, SIDE)[hidden] - colour).abs().max() < 0.02


def test_shapes_grow_and_turn_as_the_words_say():
    for scene in some("grow"):
        area = scenes.covers(scene, 17, SIDE, SIDE)[-1].sum((1, 2))
        ratio = scenes.GROWTH**2 if scene.way == "grows" else scenes.GROWTH**-2
        assert float(area[-1] / area[0]) == pytest.approx(ratio, rel=0.1)
    for scene in some("turn"):
        first, last = (float(angle) for angle in scene.subject.angle)
        assert last - first == (scenes.TURN if scene.way == "right" else -scenes.TURN)


@pytest.mark.parametrize("kind", ["pan", "zoom"])
def test_a_camera_stays_in_the_picture_and_ends_at_its_last_view(kind):
    for scene in some(kind, 12):
        for view in scene.path:
            assert all(view.size / 2 - 1e-6 <= at <= 1 - view.size / 2 + 1e-6 for at in (view.x, view.y)), scene
        video = render(scene, 17, SIDE, SIDE)
        if kind == "pan":  # with a zoom, the picture is made smaller for the widest view
            still = render(dataclasses.replace(scene, path=(scene.path[1],) * 2), 17, SIDE, SIDE)
            assert torch.allclose(video[-1], still[0], atol=1e-3)
        assert (video[0] - video[-1]).abs().mean() > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_short_clips_are_the_beginning_of_long_ones(kind):
    for scene in some(kind, 3):
        short, long = (render(scene, length, 48, 80) for length in (5, 17))
        assert short.shape == (5, 48, 80, 3) and 0 <= short.min() and short.max() <= 1
        if kind != "zoom":
            assert torch.allclose(short, long[:5], atol=1e-5)


def test_backgrounds_have_their_weights(tmp_path):
    (tmp_path / "phase.toml").write_text(
        'task = "full"\nmodel = ""\noutput = ""\nsteps = 1\n[batches]\ntokens = 8\nsizes = [[48, 32]]\n'
        '[data]\nkinds = ["move"]\n[data.backgrounds]\ngradient = 0.75\ntexture = 0.25\n'
    )
    clips = open_clips(read_phase(tmp_path / "phase.toml").data)
    rng, count = random.Random(0), 200
    groups = {group: set(names) for group, names in scenes.GROUPS.items()}
    captions = [clips.clip(index, Bucket(5, 32, 48), rng)[1].split() for index in range(count)]
    shares = {g: sum(not names.isdisjoint(words) for words in captions) / count for g, names in groups.items()}
    assert shares == {"gradient": pytest.approx(0.75, abs=0.1), "texture": pytest.approx(0.25, abs=0.1), "photo": 0}


def test_a_clip_without_photographs_has_no_camera_move():
    with pytest.raises(ValueError, match="'pan' needs a photograph, expected one of .*coffee"):
        random_scene(0, 0, kinds=("pan",), backgrounds=tuple(backgrounds.GRADIENTS))

"""Masks as VideoX-Fun draws them, and that the tables of kinds draw what they always drew."""

import hashlib
import itertools
import random
from collections import Counter

import pytest
import torch
from cogvideox_fun.training.data import masks
from cogvideox_fun.training.loop.config import MASK_WEIGHTS, read_phase
from pack import ROOT


def drawn(kind: str, length: int = 9, height: int = 32, width: int = 48, count: int = 60) -> list[torch.Tensor]:
    return [masks.videox_fun_mask(kind, length, height, width, random.Random(seed)) for seed in range(count)]


def box(frame: torch.Tensor) -> tuple[int, int]:
    """The height and width of what is marked, which must be a full rectangle."""
    rows, columns = frame.any(1).nonzero().flatten(), frame.any(0).nonzero().flatten()
    height, width = (int(side[-1] - side[0]) + 1 if len(side) else 0 for side in (rows, columns))
    assert int(frame.sum()) == height * width
    return height, width


def test_a_table_of_kinds_draws_what_it_always_drew():
    """The digest is of 60 masks, and of the generator's next number, before VideoX-Fun's masks were added."""
    digest = hashlib.sha256()
    for seed in range(60):
        rng = random.Random(seed)
        mask = masks.random_mask(masks.choose_kind(MASK_WEIGHTS, rng), 9, 32, 48, rng)
        digest.update(mask.bool().numpy().tobytes() + str(rng.random()).encode())
    assert digest.hexdigest() == "11d506c9676a097d21ceac30287e1311d46ea1de76b6fd54ae5a873ccac212b8"


@pytest.mark.parametrize("length", [1, 9])
def test_kinds_come_as_often_as_in_videox_fun(length, monkeypatch):
    """4000 draws; each share is within five binomial standard errors."""
    seen = []
    monkeypatch.setattr(masks, "videox_fun_mask", lambda kind, *rest: seen.append(kind))
    for seed in range(4000):
        masks.random_mask("videox_fun", length, 32, 48, random.Random(seed))
    shares = {kind: pair[length == 1] for kind, pair in masks.VIDEOX_FUN_SHARES.items()}
    assert sum(shares.values()) == pytest.approx(1)
    for kind, share in shares.items():
        assert abs(Counter(seen)[kind] / 4000 - share) <= 5 * (share * (1 - share) / 4000) ** 0.5, kind


def test_every_mask_of_videox_fun_is_binary_and_depends_on_its_seed_alone():
    for length, (height, width) in itertools.product((1, 5, 9), ((32, 48), (16, 16))):
        for seed in range(100):
            one, two = (masks.random_mask("videox_fun", length, height, width, random.Random(seed)) for _ in range(2))
            assert one.shape == (length, height, width) and set(one.unique().tolist()) <= {0.0, 1.0}
            assert torch.equal(one, two)


def test_known_frames_of_videox_fun():
    """1 to 4 at the start, or at both ends."""
    for kind, ends in (("after_start", 1), ("between", 2)):
        known = [[not frame.any() for frame in mask] for mask in drawn(kind)]
        assert {sum(frames) for frames in known} == {ends * count for count in (1, 2, 3, 4)}
        assert all(frames == sorted(frames, reverse=True) for frames in (k[:5] for k in known))
        assert all((frames == frames[::-1]) == (ends == 2) for frames in known)
        for mask in drawn(kind):
            assert all(not frame.any() or frame.all() for frame in mask)
    assert all(mask.all() for mask in drawn("all"))
    assert any(not mask.any() for mask in drawn("between", length=5))  # 3 and 4 frames at both ends of five are all
    flags = torch.stack([mask.flatten(1).all(1) for mask in drawn("frames")])
    assert all(not frame.any() or frame.all() for mask in drawn("frames") for frame in mask)
    assert abs(float(flags.float().mean()) - 0.5) < 5 * 0.5 / flags.numel() ** 0.5


def test_rectangles_of_videox_fun():
    """At most three quarters of the width and height; the same in all frames, or in a span around the middle."""
    sizes = [box(mask[0]) for mask in drawn("block", count=400)]
    assert all((mask == mask[0]).all() for mask in drawn("block"))
    assert max(h for h, _ in sizes) == 22 and max(w for _, w in sizes) == 34  # 23 and 35 pixels, halved and doubled
    spans = [mask.flatten(1).any(1) for mask in drawn("block_span", count=400)]
    for span in spans:
        places = span.nonzero().flatten().tolist()
        assert not places or places == list(range(places[0], places[-1] + 1)), "frames in a row"
        assert not span[-1] and (not places or (places[0] <= 3 <= places[-1] <= 7))
    assert {int(span.nonzero()[0]) for span in spans if span.any()} == {0, 1, 2, 3}


def test_small_parts_of_videox_fun():
    for mask in drawn("patches"):
        marked = [frame for frame in mask if frame.any()]
        assert 1 <= len(marked) <= 4
        assert all(h <= 8 and w <= 12 for h, w in map(box, marked))
    for kind in ("ellipse", "circle"):
        for mask in drawn(kind, height=64, width=96):
            assert mask[0].any() and not mask[1:].any()
            assert mask[0].any(1).sum() <= 2 * 15 and mask[0].any(0).sum() <= 2 * 15  # semi-axes of 8 to 15 pixels
    ratios = {
        kind: [float(m[0].any(0).sum() / m[0].any(1).sum()) for m in drawn(kind, height=64, width=96) if inside(m[0])]
        for kind in ("ellipse", "circle")
    }
    assert set(ratios["circle"]) == {1.0} and len(set(ratios["ellipse"])) > 3
    pixels = torch.stack(drawn("pixels", count=20))
    assert abs(float(pixels.mean()) - 0.5) < 5 * 0.5 / pixels.numel() ** 0.5
    assert not torch.equal(pixels[0, 0], pixels[0, 1])


def inside(frame: torch.Tensor) -> bool:
    """Whether nothing is marked at the frame's edges, where shapes are cut."""
    return not (frame[[0, -1]].any() or frame[:, [0, -1]].any())


def test_a_phase_takes_masks_of_videox_fun_among_others(tmp_path):
    text = (ROOT / "training" / "configs" / "nano_transformer.toml").read_text().split("[masks]")[0]
    (tmp_path / "phase.toml").write_text(f"{text}[masks]\nvideox_fun = 0.5\nend = 0.5\n")
    assert read_phase(tmp_path / "phase.toml").masks == {"videox_fun": 0.5, "end": 0.5}

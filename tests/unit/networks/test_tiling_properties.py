"""Tiles cover a video evenly, and their overlaps blend, for every size."""

import torch
from cogvideox_fun.model_loading.networks import tiling as tiles
from hypothesis import assume, given
from hypothesis import strategies as some
from tried import random, tried

seeds = some.integers(0, 2**32)


@tried
@given(some.integers(1, 300), some.integers(1, 100), some.integers(0, 99), some.sampled_from([1, 8]))
def test_tiles_cover_everything_overlap_and_are_even(size, tile, overlap, unit):
    """No tile is larger than asked for, one tile fewer would not do, and no larger overlap would do with as many."""
    assume(overlap < tile)
    spans = [(s.start, s.stop) for s in tiles.tile_spans(size * unit, tile * unit, overlap * unit, unit)]
    assert all(value % unit == 0 for span in spans for value in span)
    spans = [(start // unit, stop // unit) for start, stop in spans]
    assert spans[0][0] == 0 and spans[-1][1] == size
    (one,) = {stop - start for start, stop in spans}
    count = len(spans)
    assert one <= min(tile, size) and (count == 1 or (count - 1) * (tile - overlap) + overlap < size)
    strides = {b[0] - a[0] for a, b in zip(spans, spans[1:], strict=False)}
    assert all(1 <= stride <= one - overlap for stride in strides) and len(strides) <= 2
    assert count * one < size + (count - 1) * overlap + count, "nothing but rounding beyond the overlap"


@tried
@given(
    seeds, some.tuples(some.integers(1, 2), some.integers(1, 4), some.integers(1, 40), some.integers(1, 40)),
    some.integers(0, 24), some.integers(0, 23), some.sampled_from([1, 8, 1 / 8]),
)  # fmt: skip
def test_tiles_of_what_sees_one_pixel_make_the_whole(seed, shape, tile, overlap, factor):
    """A decoder that repeats a pixel, and an encoder that takes one of 64, give in tiles what they give at once."""
    batch, frames, height, width = shape
    assume(overlap < tile or not tile)
    if factor < 1:
        height, width, tile, overlap = 8 * height, 8 * width, 8 * tile, 8 * overlap

    def whole(x):
        if factor > 1:
            return x.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
        return x[..., ::8, ::8] if factor < 1 else x

    def run(source, to):
        for frame in range(source.shape[2]):
            yield whole(to(source[:, :, frame : frame + 1]))

    source = random(seed, batch, 2, frames, height, width)
    expected, ticks = whole(source), []
    found = tiles.stream(
        run,
        source,
        expected.shape,
        frames,
        tile=tile,
        overlap=overlap if tile else 0,
        on_progress=lambda *x: ticks.append(x),
    )
    assert torch.allclose(found, expected, atol=1e-5)
    assert [done for done, _ in ticks] == list(range(1, ticks[-1][1] + 1))


@tried
@given(seeds, some.integers(8, 120), some.integers(2, 40), some.integers(0, 20))
def test_tiles_of_different_brightness_meet_without_an_edge(seed, width, tile, overlap):
    """Each tile is of one brightness, 0 to 1; from pixel to pixel no more changes than the overlap's ramp does."""
    assume(overlap <= tile // 2)
    generator = torch.Generator().manual_seed(seed)

    def run(source, to):
        yield torch.rand(1, generator=generator).expand(to(source).shape)

    source = torch.zeros(1, 1, 1, 1, width)
    found = tiles.stream(run, source, source.shape, 1, tile=tile, overlap=overlap)[0, 0, 0, 0]
    assert found.diff().abs().max() <= 1 / (overlap + 1) + 1e-6

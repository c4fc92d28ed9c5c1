"""What holds for every size, length, mask, grid and file, tried on many that nobody chose."""

import logging
import os
import tempfile

import pytest
import torch
from cogvideox_fun.model_loading.files import checkpoint
from cogvideox_fun.model_loading.files import safetensors_files as weights
from cogvideox_fun.model_loading.files.t5 import fit_tokens
from cogvideox_fun.model_loading.networks import tiling as tiles
from cogvideox_fun.model_loading.networks.config import CheckpointError, TransformerConfig
from cogvideox_fun.sampling import buckets, geometry, inpaint, mask_edit, masks, positions
from cogvideox_fun.sampling.schedule import SPACINGS, NoiseSchedule
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as some
from hypothesis.configuration import set_hypothesis_home_dir
from safetensors.torch import save_file

set_hypothesis_home_dir(os.path.join(tempfile.gettempdir(), "hypothesis"))  # not the working folder
# the same cases in every run, and none kept
tried = settings(
    derandomize=True, database=None, deadline=None, max_examples=100, suppress_health_check=list(HealthCheck)
)


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """Thousands of roundings are logged otherwise; the tests of other files read the log."""
    log = logging.getLogger("cogvideox_fun")
    level = log.level
    log.setLevel(logging.ERROR)
    yield
    log.setLevel(level)


lengths = some.integers(1, 2000)
sides = some.integers(1, 40)
seeds = some.integers(0, 2**32)
# one that fits every model, the latent frames per patch, and the most frames
models = some.tuples(some.sampled_from([None, 2]), some.one_of(some.none(), some.integers(1, 200)))


def random(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def levels(seed: int, *shape: int) -> torch.Tensor:
    """A mask of 0, 0.25, 0.5, 0.75 and 1, whose complement is exact."""
    return torch.randint(0, 5, shape, generator=torch.Generator().manual_seed(seed)) / 4


# lengths and sizes


def is_legal(length: int, patch_t: int | None, most: int | None) -> bool:
    latent_t = (length + 3) / 4
    fits = most is None or length <= most
    return fits and latent_t % 1 == 0 and (patch_t is None or latent_t == 1 or latent_t % patch_t == 0)


@tried
@given(lengths, models)
def test_a_length_becomes_the_longest_legal_one_below_it(length, model):
    found = geometry.legal_length(length, *model)
    assert is_legal(found, *model) and found <= length
    assert not any(is_legal(other, *model) for other in range(found + 1, length + 1))
    assert geometry.legal_length(found, *model) == found
    latent_t = geometry.frames_to_latent_t(found)
    assert geometry.latent_t_to_frames(latent_t) == found
    geometry.check_latent_t(latent_t, model[0], None if model[1] is None else geometry.frames_to_latent_t(model[1]))


@tried
@given(some.integers(2, 500), some.sampled_from([None, 2]), some.one_of(some.none(), some.integers(1, 50)))
def test_a_latent_is_refused_where_its_length_is_illegal_and_told_ones_are_legal(latent_t, patch_t, most):
    frames = geometry.latent_t_to_frames(latent_t)
    longest = None if most is None else geometry.latent_t_to_frames(most)
    if is_legal(frames, patch_t, longest):
        return geometry.check_latent_t(latent_t, patch_t, most)
    with pytest.raises(ValueError, match=f"length of {frames}") as error:
        geometry.check_latent_t(latent_t, patch_t, most)
    if longest is None:
        told = str(error.value).split("set length to ")[1].split(" or ")
        assert all(is_legal(int(length), patch_t, None) and abs(int(length) - frames) == 4 for length in told)


@tried
@given(some.integers(-100, 5000), some.integers(-100, 5000))
def test_a_size_is_taken_or_two_better_ones_are_told(width, height):
    wrong = [value for value in (width, height) if value < 16 or value % 16]
    if not wrong:
        return geometry.check_size(width, height)
    with pytest.raises(ValueError, match=f"is {wrong[0]} pixels") as error:
        geometry.check_size(width, height)
    lower, upper = (int(value) for value in str(error.value).split("use ")[1].split(" or "))
    geometry.check_size(lower, upper)
    assert upper == lower + 16 and (lower <= wrong[0] < upper or wrong[0] < 16 == lower)


@tried
@given(some.integers(1, 100_000), some.integers(1, 128), some.integers(1, 128))
def test_no_length_comes_closer_to_a_token_length(tokens, columns, rows):
    width, height = 16 * columns, 16 * rows
    length = geometry.length_of_tokens(tokens, width, height)
    off = abs(geometry.token_count(width, height, length) - tokens)
    assert length % 4 == 1
    for other in (length - 4, length + 4):
        assert other < 1 or abs(geometry.token_count(width, height, other) - tokens) >= off


@tried
@given(some.integers(1, 200), some.integers(1, 200), some.integers(1, 100), some.integers(1, 100))
def test_a_grid_lies_within_the_trained_one_fills_a_side_and_is_centred(rows, columns, base_h, base_w):
    top, left, bottom, right = geometry.crop_region(rows, columns, base_h, base_w)
    assert 0 <= top <= bottom <= base_h and 0 <= left <= right <= base_w
    assert (top, bottom) == (0, base_h) or (left, right) == (0, base_w)
    assert abs(top - (base_h - bottom)) <= 1 and abs(left - (base_w - right)) <= 1
    scale = min(base_h / rows, base_w / columns)
    assert abs((bottom - top) - rows * scale) <= 0.5 + 1e-9 and abs((right - left) - columns * scale) <= 0.5 + 1e-9


@tried
@given(some.integers(1, 10_000), some.integers(1, 10_000), some.integers(16, 4096))
def test_a_bucket_has_legal_sides_and_turns_with_the_picture(width, height, base):
    bucket = buckets.closest_bucket(width, height)
    assert 0.9 <= bucket[0] * bucket[1] / 512**2 <= 1
    sides = buckets.bucket_size(bucket, max(base, 32))
    assert all(side % 16 == 0 and side >= 16 for side in sides)
    assert buckets.closest_bucket(3 * width, 3 * height) == bucket
    if width > 1.1 * height:
        assert bucket[1] > bucket[0]
    if height > 1.1 * width:
        assert bucket[0] > bucket[1]


# masks


@tried
@given(seeds, some.integers(0, 8), sides, sides, some.integers(0, 4), some.integers(1, 9), some.integers(1, 9))
def test_a_mask_on_the_latent_grid(seed, more, height, width, latent_more, latent_h, latent_w):
    """Its complement is the complement's, no value is new, and the first latent frame is the first frame's alone."""
    mask = random(seed, 1, 1, 1 + more, height, width)
    latent_t = 1 + (latent_more if more else 0)
    found = masks.resize_mask_3d(mask, latent_t, latent_h, latent_w)
    assert found.shape == (1, 1, latent_t, latent_h, latent_w)
    assert torch.allclose(masks.resize_mask_3d(1 - mask, latent_t, latent_h, latent_w), 1 - found, atol=1e-5)
    assert mask.min() - 1e-5 <= found.min() and found.max() <= mask.max() + 1e-5
    other = torch.cat([mask[:, :, :1], random(seed + 1, *mask[:, :, 1:].shape)], dim=2)
    assert torch.equal(masks.resize_mask_3d(other, latent_t, latent_h, latent_w)[:, :, 0], found[:, :, 0])
    other = torch.cat([random(seed + 2, *mask[:, :, :1].shape), mask[:, :, 1:]], dim=2)
    assert torch.equal(masks.resize_mask_3d(other, latent_t, latent_h, latent_w)[:, :, 1:], found[:, :, 1:])


@tried
@given(seeds, some.integers(1, 12), sides, sides, some.integers(0, 4), sides, sides, some.booleans())
def test_a_mask_fits_a_video_or_is_refused(seed, frames, height, width, quarter, to_height, to_width, soft):
    length = 4 * quarter + 1
    mask = levels(seed, frames, height, width)
    if frames != 1 and not 0 <= frames - length < 4:
        with pytest.raises(ValueError, match=f"mask has {frames} frames but the video has {length}"):
            masks.fit_mask(mask, length, to_height, to_width, soft)
        return
    found = masks.fit_mask(mask, length, to_height, to_width, soft)
    assert found.shape == (length, to_height, to_width) and found.dtype == torch.float32
    for index in range(length):
        assert set(found[index].unique().tolist()) <= (
            set(mask[min(index, frames - 1)].unique().tolist()) if soft else {0.0, 1.0}
        )
    if not soft:
        assert torch.equal(found, (masks.fit_mask(mask, length, to_height, to_width, soft=True) >= 0.5).float())
        assert torch.equal(found, masks.fit_mask(found, length, to_height, to_width))
        clear = torch.where(mask == 0.5, 0.75, mask)  # a half generates, and so does its complement
        there = masks.fit_mask(clear, length, to_height, to_width)
        assert torch.equal(masks.fit_mask(1 - clear, length, to_height, to_width), 1 - there)


@tried
@given(some.integers(0, 4), some.integers(1, 6), some.integers(1, 6), some.sampled_from([0.0, 1.0]), some.booleans())
def test_a_mask_of_one_value_stays_it_on_the_latent_grid(more, rows, columns, value, soft):
    found = masks.mask_to_latent(torch.full((1, 3, 5), value), 1 + more, rows, columns, soft)
    assert found.shape == (1 + more, rows, columns) and found.unique().tolist() == [value]


@tried
@given(seeds, some.integers(0, 5), some.integers(0, 5), some.integers(0, 3), sides, sides, some.booleans())
def test_start_and_end_are_known_and_nothing_else(seed, starts, ends, quarter, height, width, crop):
    length, fit = 4 * quarter + 1, "crop" if crop else "stretch"
    start, end = (random(seed + n, n, height, width, 3) if n else None for n in (starts, ends))
    if starts + ends > length:
        with pytest.raises(ValueError, match=f"but the video has {length}: set length to") as error:
            masks.build_start_end(32, 16, length, start, end, fit)
        least = int(str(error.value).split("set length to ")[1].split(" ")[0])
        assert least % 4 == 1 and starts + ends <= least < starts + ends + 4
        length = least
    video, mask = masks.build_start_end(32, 16, length, start, end, fit)
    known = [*range(starts), *range(length - ends, length)]
    assert video.shape == (length, 16, 32, 3) and 0 <= video.min() and video.max() <= 1
    assert [int(frame.unique()) for frame in mask] == [int(index not in known) for index in range(length)]
    if starts:
        assert torch.equal(video[:starts], masks.resize_image(start, 32, 16, fit))
    if ends:
        assert torch.equal(video[length - ends :], masks.resize_image(end, 32, 16, fit))


@tried
@given(seeds, some.integers(1, 3), some.integers(1, 12), some.integers(1, 12), some.integers(-6, 6), some.booleans())
def test_a_mask_grows_by_a_square(seed, frames, height, width, grow, invert):
    """Against a search through every neighbour; beyond the edge there is nothing."""
    mask = levels(seed, frames, height, width)
    found = mask_edit.adjust_mask(mask, grow, 0.0, invert)
    given_mask, reach = 1 - mask if invert else mask, abs(grow)
    for y in range(height):
        for x in range(width):
            near = given_mask[:, max(y - reach, 0) : y + reach + 1, max(x - reach, 0) : x + reach + 1].flatten(1)
            expected = near.amax(1) if grow >= 0 else near.amin(1)
            assert torch.allclose(found[:, y, x], expected, atol=1e-5)


@tried
@given(seeds, some.integers(1, 12), some.integers(1, 12), some.just(0.0) | some.floats(0.01, 5))
def test_a_blurred_mask_stays_between_what_it_was(seed, height, width, blur):
    mask = levels(seed, 2, height, width)
    found = mask_edit.adjust_mask(mask, 0, blur)
    assert found.shape == mask.shape
    assert mask.min() - 1e-5 <= found.min() and found.max() <= mask.max() + 1e-5
    inverse = mask_edit.adjust_mask(mask, 0, blur, invert=True)
    assert torch.allclose(inverse, mask_edit.adjust_mask(1 - mask, 0, blur), atol=1e-5)


@tried
@given(seeds, some.integers(1, 3), some.integers(1, 8), some.integers(1, 8), some.floats(0, 1))
def test_what_is_generated_is_black_and_what_is_kept_is_only_noised(seed, frames, height, width, ratio):
    video, mask = random(seed, frames, height, width, 3), levels(seed + 1, frames, height, width)
    black = mask >= 0.5
    found = inpaint.reference_pixels(video, mask, ratio, seed)
    assert (found[black] == -1).all()
    plain = inpaint.reference_pixels(video, mask)
    assert torch.equal(plain[~black], (video * 2 - 1)[~black])
    assert torch.equal(found, inpaint.reference_pixels(video, mask, ratio, seed))
    assert ((found - plain).abs() <= 7 * ratio).all()


# positions


grids = some.tuples(some.integers(1, 6), some.integers(1, 8), some.integers(1, 8))


@tried
@given(grids, some.integers(0, 4), some.integers(0, 4), some.sampled_from(["fun", "cut", "generated"]))
def test_rotations_turn_and_on_the_trained_grid_all_modes_agree(grid, more_h, more_w, mode):
    t, h, w = grid
    options = positions.PositionOptions(mode)
    found = positions.interpolated_rotary(t, h, w, h + more_h, w + more_w, options=options)
    assert found.shape == (t * h * w, 32)
    assert torch.allclose(found.abs(), torch.ones(()), atol=1e-5)
    on_trained = positions.interpolated_rotary(t, h, w, h, w, options=options)
    assert torch.allclose(on_trained, positions.integer_rotary(t, h, w), atol=1e-5)


@tried
@given(grids, some.integers(0, 3), some.integers(0, 3), some.integers(0, 3))
def test_a_table_on_its_own_grid_is_itself_and_a_cut_is_a_piece_of_it(grid, more_t, more_h, more_w):
    t, h, w = grid
    base = t + more_t, h + more_h, w + more_w

    def table(grid, mode):
        axes = positions.additive_axes(16, grid, base, (1.875, 1.0), positions.PositionOptions(mode))
        return positions.join_axes(*axes)

    whole = positions.join_axes(*positions.trained_axes(16, *base))
    assert torch.equal(table((t, *base[1:]), "fun"), whole[: t * base[1] * base[2]])
    rows = {tuple(row) for row in whole.tolist()}
    assert {tuple(row) for row in table(grid, "cut").tolist()} <= rows
    with pytest.raises(ValueError, match="larger than the trained table"):
        table((t, base[1] + 1, w), "cut")


@tried
@given(grids, grids)
def test_resizing_the_axes_is_resizing_the_table(grid, base):
    """The whole table, trilinear in space, as the authors' transformer resizes it."""
    (t, h, w), (base_t, base_h, base_w) = grid, (max(grid[0], base[0]), *base[1:])
    whole = positions.join_axes(*positions.trained_axes(16, base_t, base_h, base_w)).view(base_t, base_h, base_w, 16)
    resized = torch.nn.functional.interpolate(
        whole.movedim(-1, 0)[None], size=(base_t, h, w), mode="trilinear", align_corners=False
    )  # THWC -> 1CTHW
    expected = resized[0, :, :t].movedim(0, -1).reshape(-1, 16)
    found = positions.join_axes(*positions.additive_axes(16, grid, (base_t, base_h, base_w), (1.875, 1.0)))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)  # values of -1 to 1, another order of sums


# steps, tokens, tiles


@tried
@given(some.integers(1, 1000), some.sampled_from(["auto", *SPACINGS]), some.floats(0, 1))
def test_timesteps_descend_within_the_schedule(steps, spacing, denoise):
    schedule = NoiseSchedule()
    assume(denoise == 0 or steps / denoise <= 1000)
    found, total = schedule.run_timesteps(steps, spacing, denoise)
    if denoise == 0:
        return
    assert len(found) == steps <= total and len(set(found)) == steps
    assert found == sorted(found, reverse=True) and 0 <= found[-1] and found[0] < 1000
    assert found == schedule.timesteps(total, spacing)[total - steps :]


@tried
@given(some.lists(some.integers(2, 100)), some.integers(1, 226))
def test_every_prompt_has_the_length_and_one_end(prompt, length):
    found = fit_tokens([*prompt, 1], length=length)
    assert len(found) == length and found.count(1) == 1
    end = found.index(1)
    assert found[:end] == prompt[:end] and end == min(len(prompt), length - 1) and not any(found[end + 1 :])


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


# files

names = some.text(some.characters(exclude_categories=["Cs"]), max_size=60).filter(lambda name: name != "__metadata__")
shapes = some.lists(some.integers(0, 4), max_size=4).map(tuple)
dtypes = some.sampled_from(list(weights.DTYPES.values()))
tensors = some.dictionaries(names, some.tuples(shapes, dtypes), max_size=8)
texts = some.text(some.characters(exclude_categories=["Cs"]), max_size=40)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "model.safetensors"


def write(path, described: dict, metadata: dict, seed: int) -> dict[str, torch.Tensor]:
    state = {}
    for index, (name, (shape, dtype)) in enumerate(described.items()):
        noise = 100 * random(seed + index, *shape)
        state[name] = noise > 50 if dtype == torch.bool else noise.to(dtype)
    path.unlink(missing_ok=True)  # the last one may still be mapped
    save_file(state, path, metadata or None)
    return state


@tried
@given(described=tensors, metadata=some.dictionaries(texts, texts, max_size=3), seed=seeds)
def test_what_safetensors_writes_is_read_back(path, described, metadata, seed):
    state = write(path, described, metadata, seed)
    header, found = weights.read_header(path)
    assert found == metadata
    assert {key: (info.shape, info.dtype) for key, info in header.items()} == described
    loaded = weights.open_weights(path).load()
    assert loaded.keys() == state.keys()
    for key, value in state.items():
        assert loaded[key].flatten().view(torch.uint8).tolist() == value.flatten().view(torch.uint8).tolist()


@tried
@given(described=tensors.filter(bool), seed=seeds, data=some.data())
def test_a_file_cut_anywhere_is_refused_by_name(path, described, seed, data):
    write(path, described, {}, seed)
    whole = path.read_bytes()
    cut = data.draw(some.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut])
    with pytest.raises(CheckpointError, match="model.safetensors .*(truncated|no JSON|bytes of data)"):
        weights.open_weights(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="model.safetensors"):
        weights.open_weights(path)


@tried
@given(described=tensors.filter(bool), seed=seeds, data=some.data())
def test_a_flipped_byte_of_a_header_is_refused_or_describes_what_safetensors_reads(path, described, seed, data):
    """Where both readers take a file, they read the same from it."""
    from safetensors import SafetensorError, safe_open

    write(path, described, {}, seed)
    whole = bytearray(path.read_bytes())
    length = int.from_bytes(whole[:8], "little")
    at = data.draw(some.integers(8, 7 + length))
    whole[at] = data.draw(some.sampled_from([*b'0123456789[]{},:" FIU']))
    path.unlink()
    path.write_bytes(whole)
    try:
        header, _ = weights.read_header(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    try:
        with safe_open(str(path), framework="pt") as file:
            assert {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()} == {
                key: info.shape for key, info in header.items()
            }
    except SafetensorError as error:
        pytest.fail(f"safetensors refuses what was read: {error}")


@tried
@given(
    scale=some.floats(1e-3, 1e3),
    heads=some.integers(1, 100),
    steps=some.integers(2, 2000),
    shift=some.floats(0.1, 10),
    rotary=some.booleans(),
)
def test_a_saved_configuration_is_read_back(scale, heads, steps, shift, rotary):
    from dataclasses import asdict

    config = TransformerConfig(num_attention_heads=heads, in_channels=33, use_rotary_positional_embeddings=rotary)
    schedule = NoiseSchedule(num_timesteps=steps, snr_shift=shift)
    saved = {"transformer": asdict(config), "scheduler": asdict(schedule), "scale_factor": scale}
    found = checkpoint.decode_config(checkpoint.encode_config(saved), "a file")
    assert found["scale_factor"] == found["image_scale"] == scale
    assert TransformerConfig(**found["transformer"]) == config and NoiseSchedule(**found["scheduler"]) == schedule

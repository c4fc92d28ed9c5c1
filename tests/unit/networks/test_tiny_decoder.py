"""The small decoder: its layout, its frames, and its files."""

import re

import pytest
import torch
import torch.nn.functional as F
from cogvideox_fun.benchmarks import traced
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files.tiny_decoder import is_tiny_decoder_file, load_tiny_decoder
from cogvideox_fun.model_loading.networks import memory_estimate as memory
from cogvideox_fun.model_loading.networks.tiny_decoder import TinyDecoder
from safetensors.torch import save_file
from tiny_model import random_weights, tiny_vae

WIDTHS = (8, 6, 4, 5)
PUBLISHED = (256, 128, 64, 64)

# The shapes of taecvx's decoder, written down from the layout that TAEHV's source describes.
CONV = {1: (256, 16, 3), 8: (128, 256, 3), 14: (64, 128, 3), 20: (64, 64, 3), 22: (3, 64, 3)}
WITH_BIAS = (1, 22)
GROW = {7: (256, 256), 13: (256, 128), 19: (128, 64)}
BLOCKS = {256: (3, 4, 5), 128: (9, 10, 11), 64: (15, 16, 17)}


def published_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {f"decoder.{i}.weight": (o, c, k, k) for i, (o, c, k) in CONV.items()}
    shapes |= {f"decoder.{i}.bias": (CONV[i][0],) for i in WITH_BIAS}
    shapes |= {f"decoder.{i}.conv.weight": (o, c, 1, 1) for i, (o, c) in GROW.items()}
    for width, places in BLOCKS.items():
        for i in places:
            for j, inputs in ((0, 2 * width), (2, width), (4, width)):
                shapes[f"decoder.{i}.conv.{j}.weight"] = (width, inputs, 3, 3)
                shapes[f"decoder.{i}.conv.{j}.bias"] = (width,)
    return shapes


def tiny_decoder() -> TinyDecoder:
    decoder = TinyDecoder(WIDTHS).requires_grad_(False)
    decoder.load_state_dict(random_weights(decoder, seed=3))
    return decoder


def latents(latent_t: int) -> torch.Tensor:
    return 2 * torch.randn(1, 16, latent_t, 4, 6, generator=torch.Generator().manual_seed(latent_t))


def frame_by_frame(state: dict, latents: torch.Tensor) -> torch.Tensor:
    """The decoder written down again, a frame at a time and in the order of its layers: F 3 H W."""
    frames = [torch.tanh(x / 3) * 3 for x in latents[0].movedim(1, 0)[:, None]]

    def conv(place: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = state[f"decoder.{place}.weight"], state.get(f"decoder.{place}.bias")
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    def block(place: int, frames: list) -> list:
        made, past = [], torch.zeros_like(frames[0])
        for x in frames:
            y = F.relu(conv(f"{place}.conv.0", torch.cat([x, past], 1)))
            made.append(F.relu(conv(f"{place}.conv.4", F.relu(conv(f"{place}.conv.2", y))) + x))
            past = x
        return made

    frames = [F.relu(conv("1", x)) for x in frames]
    for first, factor in ((3, 1), (9, 2), (15, 2)):
        for place in range(first, first + 3):
            frames = block(place, frames)
        grown = [conv(f"{first + 4}.conv", x.repeat_interleave(2, 2).repeat_interleave(2, 3)) for x in frames]
        frames = [conv(f"{first + 5}", part) for x in grown for part in x.chunk(factor, 1)]
    return torch.cat([conv("22", F.relu(x)) for x in frames])[3:]


def test_the_names_and_shapes_of_the_published_file():
    with torch.device("meta"):
        assert {k: tuple(v.shape) for k, v in TinyDecoder(PUBLISHED).state_dict().items()} == published_shapes()


def test_it_computes_what_the_layout_says():
    decoder, z = tiny_decoder(), latents(4)
    expected = frame_by_frame(decoder.state_dict(), z)
    torch.testing.assert_close(decoder.decode(z)[0].movedim(1, 0), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("latent_t", [1, 2, 3, 4, 12, 13])
def test_as_many_frames_as_the_vae(latent_t):
    """Also for an even number of latent frames, as V1.5 has."""
    z = latents(latent_t)
    assert tiny_decoder().decode(z).shape == tiny_vae().decode(z).shape == (1, 3, 4 * latent_t - 3, 32, 48)


@pytest.mark.parametrize("latent_t", [2, 5, 12])
def test_a_stream_equals_the_whole(latent_t):
    decoder, z = tiny_decoder(), latents(latent_t)
    whole = decoder(z, {})[:, :, 3:]
    torch.testing.assert_close(torch.cat(list(decoder.decode_stream(z)), 2), whole, rtol=1e-4, atol=1e-5)
    assert (decoder(z[:, :, 1:], {})[:, :, :4] - whole[:, :, 1:5]).abs().max() > 1e-3, "the past is not seen"


def test_a_batch_equals_its_clips():
    decoder, z = tiny_decoder(), torch.cat([latents(3), latents(3).flip(2)])
    whole = torch.cat([decoder.decode(clip[None]) for clip in z])
    torch.testing.assert_close(decoder(z, {})[:, :, 3:], whole, rtol=1e-4, atol=1e-5)


def traced_peak(latent_t: int) -> int:
    decoder, z = TinyDecoder(PUBLISHED, **traced.META), torch.empty(1, 16, latent_t, 60, 90, **traced.META)

    def run() -> None:
        for chunk in decoder.decode_stream(z):
            del chunk

    return traced.trace(run)


@pytest.mark.parametrize("latent_t", [1, 3, 13])
def test_declared_memory(latent_t):
    told = memory.tiny_decode_bytes(PUBLISHED, (1, 16, latent_t, 60, 90), element=2)
    assert 1.1 <= told / traced_peak(latent_t) <= 1.5


def test_memory_does_not_grow_with_the_length():
    assert traced_peak(13) == traced_peak(5)


# ------------------------------------------------------------------ files


def state_of(**changes: tuple[int, ...] | None) -> dict[str, torch.Tensor]:
    shapes = {**published_shapes(), **{name.replace("__", "."): shape for name, shape in changes.items()}}
    return {name: torch.zeros(shape, dtype=torch.float16) for name, shape in shapes.items() if shape is not None}


def test_a_file_loads_as_it_is(tmp_path):
    """Also with an encoder, which is ignored."""
    state = state_of()
    for index, name in enumerate(state):
        state[name] += index
    save_file({**state, "encoder.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "any.safetensors")
    assert is_tiny_decoder_file(tmp_path / "any.safetensors")
    decoder = load_tiny_decoder(tmp_path / "any.safetensors")
    assert decoder.widths == PUBLISHED
    found = decoder.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"decoder__1__weight": (256, 48, 3, 3), "decoder__22__weight": (12, 64, 3, 3)},
            "48 channels to pixels of 12",
        ),
        ({"decoder__1__weight": (256, 128, 3, 3)}, "latents of 128 channels to pixels of 3, expected 16 and 3"),
        (
            {"decoder__1__weight": None},
            "layout than TAEHV's decoder for CogVideoX: decoder.1.weight is missing",
        ),
        ({"decoder__14__weight": (64, 128)}, "decoder.14.weight has the shape"),
        ({"decoder__7__conv__weight": (512, 256, 1, 1)}, "decoder.7.conv.weight has the shape [512, 256, 1, 1], exp"),
        ({"decoder__17__conv__0__bias": None}, "lacks decoder.17.conv.0.bias"),
    ],
)
def test_a_file_of_another_model_is_named(tmp_path, changes, words):
    path = tmp_path / "other.safetensors"
    save_file(state_of(**changes), path)
    with pytest.raises(CheckpointError, match=re.escape(words)) as error:
        load_tiny_decoder(path)
    assert str(path) in str(error.value)


def test_a_vae_is_no_tiny_decoder(tmp_path):
    save_file(tiny_vae().state_dict(), tmp_path / "vae.safetensors")
    assert not is_tiny_decoder_file(tmp_path / "vae.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder\.1\.weight is missing"):
        load_tiny_decoder(tmp_path / "vae.safetensors")

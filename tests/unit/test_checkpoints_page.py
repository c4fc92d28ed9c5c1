"""The figures of docs/checkpoints.md are those of the configurations and of the traces."""

import re

import pytest
from cogvideox_fun.benchmarks import paper, traced
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.vae import CogVideoXVAE, VAEConfig
from pack import ROOT

PAGE = (ROOT / "docs" / "checkpoints.md").read_text(encoding="utf-8")
V15 = {"patch_size_t": 2, "patch_bias": False, "sample_width": 300, "sample_height": 300, "sample_frames": 85}
TWO = {"num_attention_heads": 30, "num_layers": 30}
FIVE = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
TEXT = 9.52  # GB of T5-XXL in bf16, two files of 4.99 and 4.53
CARDS = (4, 6, 8, 10, 12, 16, 24)  # GB
FRAMES = {"2B, 49 frames": 13, "5B, 49 frames": 13, "5B V1.5, 85 frames": 22}  # of the latent
LATENTS = {"2B, 49 frames": "2B", "5B, 49 frames": "5B", "5B V1.5, 85 frames": "V1.5"}


def config_of(name: str) -> TransformerConfig:
    """The configuration that a repository of this name has."""
    size = TWO if "2b" in name.lower() else FIVE
    fun = "Fun" in name
    channels = 48 if "void" in name else 33 if "InP" in name else 32 if fun or "I2V" in name else 16
    new = V15 if "1.5" in name or "void" in name else {}
    image = {}
    if "I2V" in name:
        image = {"ofs_embed_dim": 512} if new else {"use_learned_positional_embeddings": True}
    return TransformerConfig(in_channels=channels, **size, **new, **image)


def table(head: str) -> list[list[str]]:
    """The cells of every row of the tables that begin with ``head``."""
    rows, inside = [], False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith(f"| {head} |"):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            rows.append(cells)
    return rows


def gb(cell: str) -> float:
    return float(re.search(r"[\d.]+(?= GB)", cell).group())


@pytest.mark.parametrize("row", table("hub address"), ids=lambda row: row[0])
def test_a_transformer_is_as_large_as_its_configuration(row):
    address, _, transformer, folder, _ = row
    weights = paper.weight_bytes(config_of(address.split("/")[1])) / 1e9
    assert gb(transformer) == pytest.approx(weights, abs=0.051)
    if "float32" not in row[4] and "files" not in folder:
        vae = 2e-9 * sum(parameter.numel() for parameter in CogVideoXVAE(VAEConfig(), device="meta").parameters())
        assert gb(folder) == pytest.approx(weights + TEXT + vae, abs=0.051)


def test_there_are_all_of_them():
    names = [row[0] for row in table("hub address")]
    assert len(names) == len(set(names)) == 15


@pytest.mark.parametrize("row", table("model"), ids=lambda row: row[0])
def test_the_cards_hold_what_a_call_takes(row, monkeypatch):
    monkeypatch.setitem(traced.CONFIGS, "V1.5", TransformerConfig(in_channels=33, **FIVE, **V15))
    name, bf16, fp8, small, large, *cards = row
    key = LATENTS[name]
    calls = []
    for (height, width), cell in (((60, 90), small), ((128, 128), large)):
        calls.append(traced.trace_transformer(key, (FRAMES[name], height, width), layers=2).peak / 1e9)
        assert -0.06 < gb(cell) - calls[-1] < 0.2, f"a call takes {calls[-1]:.2f} GB"
    for element, weights, said in zip((2, 1), (bf16, fp8), cards, strict=True):
        whole = paper.weight_bytes(traced.CONFIGS[key], element) / 1e9
        assert gb(weights) == pytest.approx(whole, abs=0.051)
        needed = [min(card for card in CARDS if card >= whole + call + 1) for call in calls]
        assert said == f"{needed[0]}, {needed[1]} GB"


def test_decoding_takes_what_the_page_says():
    latent = traced.SIZES["480x720x49"]
    whole, tiled = traced.trace_decode(latent).peak / 1e9, traced.trace_decode(latent, traced.TILE).peak / 1e9
    assert f"{whole:.1f} GB at 480x720, or {tiled:.1f} GB in tiles of 256 pixels" in PAGE
    assert traced.trace_decode(traced.SIZES["1024x1024x49"], traced.TILE).peak / 1e9 <= tiled + 0.05, "at any size"

"""How the nano model starts, and the comparison of position tables, at a size that takes seconds."""

import json

import torch
from cogvideox_fun.model_loading.networks.vae import CogVideoXVAE
from cogvideox_fun.training.data.shapes import random_scene, render
from cogvideox_fun.training.evaluation.positions import compare_positions
from cogvideox_fun.training.evaluation.rows import Options
from cogvideox_fun.training.loop.config import Batches, Optimizer, Phase
from cogvideox_fun.training.nano import make as nano


@torch.no_grad()
def test_masking_leaves_the_latents_of_what_is_known():
    """With norms that hardly norm, unlike those of a VAE of the same architecture without `initialise_vae`."""
    torch.manual_seed(0)
    plain = CogVideoXVAE(nano.VAE)
    started = CogVideoXVAE(nano.VAE)
    started.load_state_dict(plain.state_dict())
    nano.initialise_vae(started)
    whole = render(random_scene(0, 0), 9, 64, 64).movedim(-1, 0)[None] * 2 - 1
    masked = whole.clone()
    masked[:, :, 1:] = -1
    off = []
    for vae in (plain, started):
        first, other = (vae.encode(pixels)[:, :, 0] for pixels in (whole, masked))
        off.append(float((first - other).square().mean() / first.var()))
    assert off[1] < 0.1 * off[0], off


def test_position_tables_are_compared(tmp_path):
    model = nano.write_untrained(tmp_path / "untrained")
    batches = Batches(12, ((48, 32), (32, 48)), 5, 0.3, batch_size=2)
    phase = Phase("full", str(model), str(tmp_path / "runs"), 2, batches, optimizer=Optimizer(1e-3, warmup_steps=1))
    compare_positions(phase, [(32, 32, False)], Options(count=1, steps=1), tmp_path, cpu=True)
    rows = json.loads((tmp_path / "positions.json").read_text())["results"]
    assert {row["table"] for row in rows} == {"interpolated", "cut", "generated"}
    assert len({row["loss"] for row in rows}) == 3, "each was trained with a table of its own"
    assert (tmp_path / "positions.png").stat().st_size > 5000

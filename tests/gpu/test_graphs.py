"""Steps as CUDA graphs have the gradients of steps without them."""

import pytest
import torch
from accelerate import Accelerator
from cogvideox_fun.training.loop.config import Batches, Data, Optimizer, Phase
from cogvideox_fun.training.loop.source import open_clips, phase_batches
from cogvideox_fun.training.loop.trainer import Trainer
from cogvideox_fun.training.tasks.parts import Parts

BATCHES = Batches(12, ((48, 32), (32, 48)), 9, 0.3, batch_size=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU")
def test_graphs_make_the_gradients_of_plain_steps(tiny_model, tmp_path):
    """Batches of two shapes, each of them twice: the graph of the first is used again."""
    trainers = []
    for graphs in (False, True):
        options = {"batches": BATCHES, "data": Data(seed=5, workers=0), "optimizer": Optimizer(1e-3)}
        phase = Phase("vae", str(tiny_model), "", 8, cuda_graphs=graphs, agreement_weight=0.5, **options)
        trainers.append(Trainer(phase, Parts(phase), Accelerator(), tmp_path / str(graphs)))
    batches = phase_batches(phase, open_clips(phase.data))
    seen = set()
    for _ in range(8):
        batch = next(batches)
        seen.add(batch["noise"].shape)
        found = []
        for trainer in trainers:
            loss = float(trainer.gradients(batch))
            found.append((loss, {name: p.grad.clone() for name, p in trainer.parameters.items()}))
            trainer.optimizer.zero_grad(set_to_none=not trainer.phase.cuda_graphs)
        (loss, plain), (graphed_loss, graphed) = found
        assert graphed_loss == pytest.approx(loss, rel=1e-4)
        largest = max(float(grad.abs().max()) for grad in plain.values())
        for name, grad in plain.items():
            assert torch.allclose(graphed[name], grad, rtol=0, atol=1e-4 * largest), name
    assert len(seen) == 2 and len(trainers[1].graphs.captured) == 2

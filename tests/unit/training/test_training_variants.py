"""Each kind of model is trained as it is sampled: Control, V1.1, V1.5 and 5B. Weights of the loss."""

import dataclasses
import json

import pytest
import torch
from accelerate import Accelerator
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.training.loop.config import Batches, Data, Optimizer, Phase
from cogvideox_fun.training.loop.source import open_clips, phase_batches
from cogvideox_fun.training.loop.trainer import Trainer
from cogvideox_fun.training.tasks.encoders import drop_control
from cogvideox_fun.training.tasks.parts import Parts
from cogvideox_fun.training.tasks.transformer import levelled, snr_weight
from diffusers import CogVideoXDDIMScheduler
from diffusers.training_utils import compute_snr
from tiny_model import write_tiny_model

OPTIONS = {
    "output": "",
    "steps": 8,
    "batches": Batches(8, ((48, 32), (32, 48)), 5, 0.3, batch_size=2),
    "data": Data(seed=5),
    "optimizer": Optimizer(3e-3, 3e-3, warmup_steps=1),
}


def phase_of(model, task="full", **changes) -> Phase:
    return Phase(task, str(model), **{**OPTIONS, **changes})


def batch_of(phase: Phase, config: TransformerConfig | None = None, control: bool = False):
    batch = next(phase_batches(phase, open_clips(phase.data), config=config))
    return {**batch, "control": 1 - batch["video"]} if control else batch


@pytest.fixture(scope="module")
def control_model(tmp_path_factory):
    """With the flag of V1.1, which only InP models heed."""
    model = write_tiny_model(tmp_path_factory.mktemp("control"), "2b-control")
    config = json.loads((model / "transformer" / "config.json").read_text())
    (model / "transformer" / "config.json").write_text(json.dumps({**config, "add_noise_in_inpaint_model": True}))
    return model


@torch.no_grad()
def test_a_control_model_is_trained_with_what_sampling_gives_it(control_model):
    """The loss equals the squared error of the v that the pipeline predicts from its own control latent."""
    phase = phase_of(control_model, caption_dropout=0.0, batches=Batches(12, ((48, 32),), 5, batch_size=2))
    batch, parts, pipeline = batch_of(phase, control=True), Parts(phase), Pipeline.from_folder(control_model)
    losses = parts.task(parts.prepare(batch))
    alphas = pipeline.checkpoint.schedule.alphas_cumprod()
    for i in range(2):
        clean, control = pipeline.encode(batch["video"][i]), pipeline.encode(batch["control"][i])
        timestep = int(batch["time"][i, 0] * 1000)
        a, noise = float(alphas[timestep]), batch["noise"][i, :1].squeeze(1)
        x = a**0.5 * clean + (1 - a) ** 0.5 * noise
        v = pipeline.guided(1, pipeline.text_encoder(batch["captions"][i]), None, control, cfg=1.0)(x, timestep)
        expected = (v - (a**0.5 * noise - (1 - a) ** 0.5 * clean)).square().mean()
        assert float(losses[i, 0]) == pytest.approx(float(expected), rel=1e-4)
        assert (control - clean).abs().max() > 0.1


def test_control_is_dropped_by_its_share_and_not_with_the_caption():
    """1000 seeds, and the same clips in any batch; 5 standard errors."""
    seeds = torch.randint(2**62, (1000,), generator=torch.Generator().manual_seed(0))
    latent = torch.ones(1000, 1, 1, 1, 1)
    dropped = drop_control(latent, seeds, 0.1).flatten() == 0
    assert abs(float(dropped.float().mean()) - 0.1) < 5 * (0.1 * 0.9 / 1000) ** 0.5
    assert torch.equal(drop_control(latent[:500], seeds[500:], 0.1).flatten() == 0, dropped[500:])
    assert torch.equal(drop_control(latent, seeds, 0.0), latent)


@torch.no_grad()
def test_captions_and_control_drop_apart_from_each_other(control_model):
    phase = phase_of(control_model, caption_dropout=0.5, control_dropout=0.5)
    batch, encoders = batch_of(phase, control=True), Parts(phase).encoders
    batch["chance"] = torch.tensor([0.4, 0.6])  # the first caption is empty
    batch["reference_seed"] = torch.tensor([2**61 + 2**60, 2**60])  # the second control is zeros
    empty = encoders.text([""], torch.ones(1))[0]
    encoded = encoders(batch)
    assert torch.equal(encoded["context"][0], empty) and not torch.equal(encoded["context"][1], empty)
    assert encoded["extra"][0].any() and not encoded["extra"][1].any()


def test_a_control_model_without_control_videos(control_model):
    phase = phase_of(control_model)
    with pytest.raises(ValueError, match=r"batch has none: set control in \[data\] to 'edges', or to the suffix"):
        Parts(phase).encoders(batch_of(phase))


def test_models_that_cant_be_trained(tmp_path):
    for variant, kind in (("5b-image", "image"), ("void", "void")):
        model = write_tiny_model(tmp_path / variant, variant)
        with pytest.raises(ValueError, match=f"takes {kind} latents.*train an InP, Control or text model"):
            Parts(phase_of(model))


@pytest.mark.parametrize(
    "variant, frames", [("2b-control", 1), ("5b", 5), ("v1.5", 13), ("v1.5", 1), ("v1.5-text", 5)]
)
@pytest.mark.parametrize("task", ["full", "lora"])
def test_every_kind_of_model_learns(tmp_path, variant, frames, task):
    """From buckets of one frame, too, and on V1.5 of an even number of latent frames."""
    model = write_tiny_model(tmp_path / "model", variant)
    tokens = 6 * {1: 1, 5: 2, 13: 4}[frames]
    phase = phase_of(model, task, batches=Batches(tokens, ((48, 32), (32, 48)), frames, 0.1, batch_size=2))
    torch.manual_seed(0)
    trainer = Trainer(phase, Parts(phase), Accelerator(cpu=True), tmp_path / "run")
    batch = batch_of(phase, trainer.parts.config, control=variant == "2b-control")
    assert batch["video"].shape[1] == frames
    losses = [float(trainer.train_step(batch)) for _ in range(phase.steps)]
    assert losses[-1] < 0.98 * losses[0]


def scheduler_of(pipeline: Pipeline) -> CogVideoXDDIMScheduler:
    return CogVideoXDDIMScheduler.from_config(pipeline.checkpoint.schedule.to_config())


@torch.no_grad()
def test_weights_by_the_snr_as_diffusers_computes_it(tiny_model):
    """min(snr, gamma) / (snr + 1) at every timestep; at the last the SNR is zero, and so is the weight."""
    scheduler = scheduler_of(Pipeline.from_folder(tiny_model))
    snr = compute_snr(scheduler, torch.arange(1000)).double()
    expected = snr.clamp(max=5) / (snr + 1)
    found = snr_weight(scheduler.alphas_cumprod.double(), 5.0)
    assert torch.isfinite(found).all() and found[-1] == 0
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-6)  # diffusers squares float32 roots
    assert 0.8 < float(found.max()) < 0.84  # 5 / 6, where the SNR is 5


@torch.no_grad()
def test_the_loss_is_weighted_by_the_timestep(tiny_model):
    phase = phase_of(tiny_model, batches=Batches(8, ((48, 32),), 5, 0.3, batch_size=2, noises_per_clip=3))
    weighted = dataclasses.replace(phase, snr_gamma=5.0)
    batch = batch_of(phase)
    batch["time"][0, 0] = 0.9999  # the last timestep
    plain, found = (parts.task(parts.prepare(batch)) for parts in (Parts(phase), Parts(weighted)))
    snr = compute_snr(scheduler_of(Pipeline.from_folder(tiny_model)), (batch["time"] * 1000).long())
    assert found.shape == (2, 3) and plain[0, 0] > 0 and found[0, 0] == 0
    assert torch.allclose(found, plain * snr.clamp(max=5) / (snr + 1), rtol=1e-3, atol=1e-6)


def test_a_loss_level_makes_the_gradient_of_large_losses_smaller():
    """It is that of level * log(1 + loss / level), and the losses stay what they are."""
    losses = torch.tensor([0.0, 0.001, 0.01, 0.5, 20.0], dtype=torch.float64, requires_grad=True)
    found = levelled(losses, 0.01)
    assert torch.equal(found, losses)
    (expected,) = torch.autograd.grad((0.01 * (1 + losses / 0.01).log()).sum(), losses)
    (gradient,) = torch.autograd.grad(found.sum(), losses)
    assert torch.allclose(gradient, expected, rtol=1e-12, atol=0)
    assert levelled(losses, 0.0) is losses


@pytest.mark.parametrize("task", ["full", "lora", "few_steps"])
def test_the_loss_level_of_a_phase_is_used(tiny_model, task):
    """The gradient of one clip has the same direction, and the length that its loss asks for."""
    batches = Batches(8, ((48, 32),), 5, 0.3, batch_size=1, noises_per_clip=1)
    phase = phase_of(tiny_model, task=task, batches=batches)
    batch, (plain, changed) = batch_of(phase), ([], [])
    for level, gradients in ((0.0, plain), (0.5, changed)):
        torch.manual_seed(0)  # a LoRA starts at random
        parts = Parts(dataclasses.replace(phase, loss_level=level))
        loss = parts.task(parts.prepare(batch))
        loss.sum().backward()
        gradients += [p.grad.flatten() for p in parts.task.parameters() if p.grad is not None]
        value = float(loss.detach())
    plain, changed = torch.cat(plain), torch.cat(changed)
    assert plain.norm() > 0
    assert torch.allclose(changed, plain * 0.5 / (value + 0.5), rtol=1e-4, atol=1e-5 * float(plain.abs().max()))

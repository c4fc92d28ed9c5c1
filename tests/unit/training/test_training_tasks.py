"""What is trained: the losses by hand, what a LoRA changes, and what is written."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from cogvideox_fun.model_loading.errors import CheckpointError
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.model_loading.files.safetensors_files import open_weights
from cogvideox_fun.model_loading.files.tiny_decoder import load_tiny_decoder
from cogvideox_fun.model_loading.networks.blocks import sdpa
from cogvideox_fun.model_loading.standalone import Pipeline, load_transformer
from cogvideox_fun.training.loop.config import Batches, Data, Optimizer, Phase
from cogvideox_fun.training.loop.encode import Amount, Encoding
from cogvideox_fun.training.loop.phase import run_phase
from cogvideox_fun.training.loop.source import open_clips, phase_batches
from cogvideox_fun.training.loop.trainer import Trainer
from cogvideox_fun.training.tasks import parts as parts_module
from cogvideox_fun.training.tasks.attention import product_attention
from cogvideox_fun.training.tasks.hub import save_weights, write_json
from cogvideox_fun.training.tasks.lora import add_lora, apply_lora, lora_file, lower_rank
from cogvideox_fun.training.tasks.parts import Parts, average_models, export_half, measure_scale, write_result
from cogvideox_fun.training.tasks.vae import known_cells
from diffusers import DDPMScheduler
from safetensors.torch import load_file, save_file
from tiny_model import write_tiny_model


def phase_of(model, task="full", **changes) -> Phase:
    options = {
        "output": "",
        "steps": 4,
        "batches": Batches(8, ((48, 32), (32, 48)), 5, 0.3, batch_size=2, noises_per_clip=2),
        "data": Data(seed=5),
        "optimizer": Optimizer(1e-3, warmup_steps=1),
    }
    return Phase(task, str(model), **{**options, **changes})


def batch_of(phase: Phase):
    return next(phase_batches(phase, open_clips(phase.data)))


@torch.no_grad()
@pytest.mark.parametrize("snr_shift", [0.0, 1.0])
def test_the_loss_of_a_batch_by_hand(tiny_model, snr_shift):
    """The same from the pack's pipeline, sample by sample and noise by noise.

    Without a shift the noise levels are those of VideoX-Fun's trainer, which reads the 2B's configuration with
    diffusers' DDPMScheduler.
    """
    masks = {"start": 0.5, "region": 0.5}
    phase = phase_of(tiny_model, masks=masks, caption_dropout=0.0, snr_shift=snr_shift)
    batch = batch_of(phase)
    parts = Parts(phase)
    loss = parts.task(parts.prepare(batch)).mean()

    pipeline = Pipeline.from_folder(tiny_model)
    alphas, total = pipeline.checkpoint.schedule.alphas_cumprod(), []
    if snr_shift:
        alphas = DDPMScheduler.from_pretrained(tiny_model / "scheduler").alphas_cumprod
        assert alphas[500] > 1.5 * pipeline.checkpoint.schedule.alphas_cumprod()[500]
    for video, mask, caption, noises, times in zip(
        batch["video"], batch["mask"], batch["captions"], batch["noise"], batch["time"], strict=True
    ):
        clean, extra = pipeline.encode(video), pipeline.condition(video, mask)
        assert extra is not None
        for noise, time in zip(noises, times, strict=True):
            timestep = int(float(time) * 1000)
            a = float(alphas[timestep])
            x = a**0.5 * clean + (1 - a) ** 0.5 * noise
            v = pipeline.transformer(x, torch.tensor([timestep]), pipeline.text_encoder(caption), extra)
            total.append(float((v - (a**0.5 * noise - (1 - a) ** 0.5 * clean)).square().mean()))
    assert float(loss) == pytest.approx(sum(total) / 4, rel=1e-5)


@torch.no_grad()
def test_known_pixels_get_noise_where_the_configuration_asks_for_it(tiny_model, tmp_path):
    """V1.1's InP models: each clip by its own amount and seed, as the pipeline adds it; black gets none."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "transformer" / "config.json").read_text())
    (model / "transformer" / "config.json").write_text(json.dumps({**config, "add_noise_in_inpaint_model": True}))
    phase = phase_of(model, masks={"start": 0.5, "region": 0.5})
    batch, encoders, pipeline = batch_of(phase), Parts(phase).encoders, Pipeline.from_folder(model)
    video = batch["video"] * 2 - 1
    extra = encoders.conditioning(batch, video, encoders.encode(video))
    amounts, seeds = batch["reference_noise"], batch["reference_seed"]
    assert amounts[0] != amounts[1] and seeds[0] != seeds[1]
    for i in range(2):
        clip, mask = batch["video"][i], batch["mask"][i]
        expected = pipeline.condition(clip, mask, float(amounts[i]), int(seeds[i]))
        assert (extra[i : i + 1] - expected).abs().max() <= 1e-5
        assert (expected - pipeline.condition(clip, mask)).abs().max() > 0.01


def test_the_noise_on_known_pixels_is_drawn_as_in_videox_fun(tiny_model):
    """exp of a normal draw of mean -3 and deviation 0.5; 400 draws are within four standard errors."""
    batches = phase_batches(phase_of(tiny_model, steps=200), open_clips(Data(seed=5)))
    drawn = torch.cat([next(batches)["reference_noise"] for _ in range(200)]).log()
    assert abs(drawn.mean() + 3) < 4 * 0.5 / 400**0.5 and abs(drawn.std() - 0.5) < 4 * 0.5 / 800**0.5


def test_attention_by_products_is_attention():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(3))
    assert torch.allclose(product_attention(q, k, v, 3), sdpa(q, k, v, 3), atol=1e-6)


@torch.no_grad()
def test_a_clip_of_which_nothing_is_known_gets_zeros(tiny_model):
    """As in use, where the VAE is never asked to encode black; captions drop out by chance."""
    phase = phase_of(tiny_model, masks={"nothing": 1.0}, caption_dropout=0.5)
    batch, encoders = batch_of(phase), Parts(phase).encoders
    video = batch["video"] * 2 - 1
    assert not encoders.conditioning(batch, video, encoders.encode(video)).any()
    mask = batch["mask"].clone()
    mask[0, 0] = 0
    extra = encoders.conditioning({**batch, "mask": mask}, video, encoders.encode(video))
    assert extra[0].any() and not extra[1].any()
    texts = encoders.text(["red", "red", ""], torch.tensor([0.6, 0.4, 0.6]))
    assert not torch.equal(texts[0], texts[1]) and torch.equal(texts[1], texts[2])


@torch.no_grad()
def test_the_loss_of_the_vae_by_hand(tiny_model):
    phase = phase_of(tiny_model, "vae", kl_weight=0.5, masked=0.0)
    batch, task = batch_of(phase), Parts(phase).task
    pixels = (batch["video"] * 2 - 1).movedim(-1, 1)
    moments = torch.cat(list(task.vae.encode_stream(pixels)), dim=2)
    mean, logvar = moments[:, :16], moments[:, 16:]
    restored = task.vae.decode(mean + torch.exp(logvar / 2) * batch["noise"][:, 0])
    kl = -0.5 * (1 + logvar - mean**2 - torch.exp(logvar))
    errors = [(a - b).square().mean().sqrt() for a, b in zip(restored, pixels, strict=True)]
    expected = torch.stack(errors).log().mean() + 0.5 * kl.mean()
    assert float(task(batch)) == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_the_loss_of_a_small_decoder_by_hand(tiny_model):
    """Of the clips themselves, from latents that are not scaled; the VAE stays as it is."""
    phase = phase_of(tiny_model, "tiny_decoder", widths=(4, 4, 4, 4))
    batch, task = batch_of(phase), Parts(phase).task
    assert {name.split(".")[0] for name, p in task.named_parameters() if p.requires_grad} == {"decoder"}
    errors = []
    for video in batch["video"]:
        latent = Pipeline.from_folder(tiny_model).encode(video) / open_checkpoint(tiny_model).scale_factor
        made = task.decoder.decode(latent)[0].movedim(0, -1)
        errors.append((2 * made - 2 * video).square().mean().sqrt())
    assert float(task(batch)) == pytest.approx(float(torch.stack(errors).log().mean()), rel=1e-4)


def test_a_small_decoder_is_written_as_a_model_folder_has_it(tiny_model, tmp_path):
    phase = phase_of(tiny_model, "tiny_decoder", widths=(4, 5, 6, 7))
    task = Parts(phase).task
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    write_result(phase, dict(task.named_parameters()), folder)
    opened = open_checkpoint(folder)
    decoder = load_tiny_decoder(opened.tiny_decoder, dtype=torch.float32)
    assert decoder.widths == (4, 5, 6, 7) and open_checkpoint(tiny_model).tiny_decoder is None
    for name, value in task.decoder.state_dict().items():
        assert torch.allclose(decoder.state_dict()[name], value, rtol=1e-3, atol=1e-6), name
    export_half(folder, tmp_path / "half")
    assert open_checkpoint(tmp_path / "half").tiny_decoder is not None
    vae = phase_of(folder, "vae")
    write_result(vae, dict(Parts(vae).task.named_parameters()), tmp_path / "new", 0.9)
    assert open_checkpoint(tmp_path / "new").tiny_decoder is None, "another latent space"


def test_cells_that_show_known_pixels_alone():
    mask = torch.zeros(2, 9, 32, 48)
    mask[0, 4, 9, 47] = 1  # one pixel of the second latent frame, in its cell (1, 5)
    mask[1, 0] = 1  # the first frame
    known = known_cells(mask)
    assert known.shape == (2, 3, 4, 6)
    assert known[0, [0, 2]].all() and known[0, 1, 3].all() and known[0, 1, :, :4].all()
    assert not known[0, 1, :3, 4:].any(), "the cell and those around it"
    assert not known[1, 0].any() and known[1, 1:].all()


def test_the_vae_restores_a_masked_clip_or_the_whole_one(tiny_model):
    """By chance; what is to be generated is black in the masked one."""
    phase = phase_of(tiny_model, "vae", masked=0.5, batches=Batches(12, ((48, 32),), 5, 0.3, batch_size=2))
    batch = batch_of(phase)
    batch["chance"], batch["mask"][:, 1:] = torch.tensor([0.4, 0.6]), 1.0
    whole = (batch["video"] * 2 - 1).movedim(-1, 1)
    masked = torch.where(batch["mask"][:, None] >= 0.5, -1.0, whole)
    assert not torch.equal(masked, whole)
    for found, expected in zip(Parts(phase).task.versions(batch), ((masked, whole), (whole, masked)), strict=True):
        assert torch.equal(found[::2], expected[0][::2]) and torch.equal(found[1::2], expected[1][1::2])


@torch.no_grad()
def test_the_disagreement_of_masked_and_whole_clips_by_hand(tiny_model):
    five_frames = Batches(12, ((48, 32),), 5, 0.3, batch_size=2)
    phase = phase_of(tiny_model, "vae", masked=0.0, agreement_weight=2.0, batches=five_frames)
    batch, task = batch_of(phase), Parts(phase).task
    batch["mask"][:, :1], batch["mask"][:, 1:] = 0, 1  # the first frame alone is known
    plain = Parts(dataclasses.replace(phase, agreement_weight=0.0)).task
    whole, masked = (torch.cat(list(task.vae.encode_stream(v)), dim=2)[:, :16] for v in task.versions(batch))
    expected = (whole - masked)[:, :, 0].square().mean() / whole.square().mean()
    assert expected > 0.01, "group norm mixes what is known and what is not"
    assert float(task(batch) - plain(batch)) == pytest.approx(2 * float(expected), rel=1e-3)


def test_lora_starts_as_nothing_and_its_file_equals_its_layers(tiny_model, tmp_path):
    """Merging the file gives what training computed with the layers; nothing else is trained."""
    x, t, text = torch.randn(1, 16, 2, 4, 6), torch.tensor([500]), torch.randn(1, 7, 32)
    plain, trained, merged = (load_transformer(open_checkpoint(tiny_model)) for _ in range(3))
    add_lora(trained, rank=4, alpha=2.0)
    with torch.no_grad():
        assert torch.equal(trained(x, t, text), plain(x, t, text)), "B is zero at the start"
    layers = {name: p for name, p in trained.named_parameters() if p.requires_grad}
    assert len(layers) == 2 * 2 * 6 and all("lora_" in name for name in layers)
    assert {p.dtype for p in layers.values()} == {torch.float32}
    for parameter in layers.values():
        torch.nn.init.normal_(parameter, std=0.3)
    save_file(lora_file(layers, alpha=2.0), tmp_path / "lora.safetensors")
    apply_lora(merged, tmp_path / "lora.safetensors")
    with torch.no_grad():
        assert torch.allclose(trained(x, t, text), merged(x, t, text), atol=1e-5)
        assert not torch.allclose(trained(x, t, text), plain(x, t, text), atol=1e-2)


def test_a_lora_of_lower_rank_is_the_closest_one():
    """Singular values 3, 2 and 1 of its change: rank 2 leaves 1 of them, and rank 3 all. Its alpha is not its rank."""
    left, right = (torch.linalg.qr(torch.randn(size, 3, dtype=torch.float64))[0].float() for size in (8, 6))
    layer = "diffusion_model.transformer_blocks.0.attn1.to_q"
    up, down = left * torch.tensor([3.0, 2.0, 1.0]), 1.5 * right.T
    weights = {f"{layer}.lora_up.weight": up, f"{layer}.lora_down.weight": down, f"{layer}.alpha": torch.tensor(2.0)}
    for rank, lost in ((2, 1.0), (3, 0.0), (5, 0.0)):
        lower = lower_rank({**weights, "other": torch.ones(1)}, rank)
        found = lower[f"{layer}.lora_up.weight"] @ lower[f"{layer}.lora_down.weight"]
        found *= float(lower[f"{layer}.alpha"]) / len(lower[f"{layer}.lora_down.weight"])
        assert len(lower[f"{layer}.lora_down.weight"]) == min(rank, 3) and "other" in lower
        assert float((found - left @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ right.T).norm()) == pytest.approx(
            lost, abs=1e-5
        )


def test_lora_of_another_model(tiny_model, tmp_path):
    layer = "diffusion_model.transformer_blocks.9.attn1.to_q"
    parts = {"lora_down.weight": torch.zeros(2, 128), "lora_up.weight": torch.zeros(128, 2), "alpha": torch.ones(())}
    for state, words in (
        ({f"{layer}.{part}": value for part, value in parts.items()}, "transformer_blocks.9.attn1.to_q does not fit"),
        ({"other": torch.zeros(1)}, "no key that ends in .lora_down.weight"),
    ):
        save_file(state, tmp_path / "lora.safetensors")
        with pytest.raises(ValueError, match=words):
            apply_lora(load_transformer(open_checkpoint(tiny_model)), tmp_path / "lora.safetensors")


@pytest.mark.parametrize("amx, dtype", [(False, torch.bfloat16), (True, torch.float32)])
def test_convolutions_are_trained_in_float32_where_the_cpu_has_amx(tiny_model, tmp_path, monkeypatch, amx, dtype):
    """The gradient of oneDNN's bfloat16 convolution crashed there."""
    seen = set()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(Trainer, "run", lambda trainer, until: seen.add(convolution_dtype(trainer)))
    phase = phase_of(tiny_model, "vae", output=str(tmp_path), mixed_precision="bf16")
    run_phase(phase, cpu=True)
    assert seen == {dtype}


@pytest.mark.parametrize("unit", ["", "avx512_bf16", "amx_bf16"])
@pytest.mark.parametrize("precision", ["bf16", "no"])
@pytest.mark.parametrize("command", ["train", "encode"])
def test_bfloat16_on_a_cpu_without_it_is_named(tiny_model, tmp_path, monkeypatch, caplog, unit, precision, command):
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"architecture": "x86_64", "avx512_bf16": False, unit: True}
    )
    monkeypatch.setattr(Trainer, "run", lambda trainer, until: None)
    phase = phase_of(tiny_model, "full", output=str(tmp_path / "out"), mixed_precision=precision)
    if command == "train":
        run_phase(phase, cpu=True)
    else:
        Encoding(phase, tmp_path / "cache", Amount(1), PartialState(cpu=True)).run()
    warned = 'mixed_precision = "no" in the configuration' in caplog.text
    assert warned == (precision == "bf16" and not unit)


def convolution_dtype(trainer) -> torch.dtype:
    with trainer.accelerator.autocast():
        return trainer.task.vae.decoder.conv_in.conv(torch.zeros(1, 16, 3, 8, 8)).dtype


@pytest.mark.parametrize("task", ["full", "vae"])
def test_a_written_folder_opens_with_what_was_trained(tiny_model, tmp_path, task):
    """The transformer comes from a shard, as the 5B does, and is trained with another model's text encoder."""
    other = write_tiny_model(tmp_path / "other", seed=50)
    source = shutil.copytree(tiny_model, tmp_path / "model")
    if task == "full":
        (whole,) = (source / "transformer").glob("*.safetensors")
        index = {"weight_map": dict.fromkeys(load_file(whole), "a-00001-of-00001.safetensors")}
        whole.with_name(f"{whole.name}.index.json").write_text(json.dumps(index))
        whole.rename(whole.with_name("a-00001-of-00001.safetensors"))
    phase = phase_of(source, task, text_encoder=str(other), train_text_encoder=True)
    parts = Parts(phase)
    with torch.no_grad():
        for parameter in parts.task.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.5)
    write_result(phase, dict(parts.task.named_parameters()), tmp_path / "out", 0.9 if task == "vae" else None)
    export_half(tmp_path / "out", tmp_path / "half")
    expected = {"transformer": tiny_model, "vae": tiny_model, "text_encoder": other if task == "full" else tiny_model}
    trained = ("transformer", "text_encoder") if task == "full" else ("vae",)
    for folder, tolerance in ((tmp_path / "out", 0.0), (tmp_path / "half", 1e-2)):
        for part, origin in expected.items():
            (before,), (after,) = (list((root / part).glob("*.safetensors")) for root in (origin, folder))
            old, new = load_file(before), load_file(after)
            assert {value.dtype for value in new.values()} == {torch.float16 if tolerance else torch.float32}
            if folder.name == "half":  # older transformers read no file without it
                assert open_weights(after).metadata["format"] == "pt"
            for key in old:
                value = old[key] * (1.5 if part in trained else 1.0)
                assert torch.allclose(new[key].float(), value, atol=tolerance, rtol=1e-3), (part, key)
    if task == "vae":
        assert open_checkpoint(tmp_path / "half").scale_factor == 0.9


@pytest.mark.parametrize("sharded", [False, True])
def test_the_average_of_models_has_the_mean_of_their_weights(tiny_model, tmp_path, sharded):
    """And everything else from the first one."""
    folders = [shutil.copytree(tiny_model, tmp_path / name) for name in ("first", "second", "third")]
    file = Path("transformer", "diffusion_pytorch_model.safetensors")
    states = [load_file(folder / file) for folder in folders]
    for number, (folder, state) in enumerate(zip(folders, states, strict=True)):
        for name in state:
            state[name] = torch.randn(state[name].shape, generator=torch.Generator().manual_seed(number))
        save_file(state, folder / file)
        write_json(folder / "scheduler" / "scheduler_config.json", {"of": number})
    if sharded:
        shards = {f"a-{n + 1:05}-of-00002.safetensors": list(states[0])[n::2] for n in range(2)}
        for shard, names in shards.items():
            save_file({name: states[0][name] for name in names}, folders[0] / "transformer" / shard)
        index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
        write_json(folders[0] / f"{file}.index.json", index)
        (folders[0] / file).unlink()
    average_models(folders, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out" / "transformer").glob("*.safetensors*")] == [file.name]
    mean = load_file(tmp_path / "out" / file)
    assert {value.dtype for value in mean.values()} == {torch.float16} and set(mean) == set(states[0])
    for name, value in mean.items():
        expected = (states[0][name] + states[1][name] + states[2][name]) / 3
        assert torch.allclose(value.float(), expected, atol=2e-3), name
    assert json.loads((tmp_path / "out" / "scheduler" / "scheduler_config.json").read_text()) == {"of": 0}


def test_models_of_different_sizes_have_no_average(tiny_model, tmp_path):
    other = write_tiny_model(tmp_path / "other", "2b-text")
    with pytest.raises(CheckpointError, match="does not fit"):
        average_models([tiny_model, other], tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing half-written"


def test_a_folder_that_was_cut_off_has_no_weights_of_the_old_model(tiny_model, tmp_path, monkeypatch):
    def fail(*_) -> None:
        raise OSError("no space")

    phase = phase_of(tiny_model, train_text_encoder=True)
    monkeypatch.setattr(parts_module, "save_weights", fail)
    with pytest.raises(OSError, match="no space"):
        write_result(phase, {}, tmp_path / "out")
    left = sorted(str(path.relative_to(tmp_path / "out").parent) for path in tmp_path.rglob("*.safetensors"))
    assert left == ["vae"] and (tmp_path / "out" / "transformer" / "config.json").is_file()


def test_an_output_in_the_models_own_folder_is_not_copied_into_itself(tiny_model, tmp_path):
    """Neither are the run's checkpoints, also when it is exported to another place."""
    source = shutil.copytree(tiny_model, tmp_path / "model")
    phase = phase_of(source, output=str(source / "tuned"))
    (source / "tuned" / "run" / "checkpoint_0000001").mkdir(parents=True)
    state = {name: p.detach() for name, p in Parts(phase).task.named_parameters()}
    for output in (source / "tuned" / "model", source / "exported", tmp_path / "elsewhere"):
        write_result(phase, state, output)
        assert not list(output.rglob("run")) and not list(output.rglob(output.name))
        open_checkpoint(output).weights.load()


def test_weights_can_be_read_by_whoever_may_read_other_files(tmp_path):
    """ComfyUI often runs as another user."""
    path = tmp_path / "lora.safetensors"
    save_weights(path, {"weight": torch.ones(2)})
    write_json(tmp_path / "config.json", {})
    assert path.stat().st_mode == (tmp_path / "config.json").stat().st_mode
    save_weights(path, {"weight": torch.zeros(2)})
    assert float(load_file(path)["weight"].sum()) == 0


def test_the_scale_brings_latents_to_unit_deviation(tiny_model):
    pipeline = Pipeline.from_folder(tiny_model)
    video = torch.rand(2, 5, 32, 48, 3)
    scale = measure_scale(pipeline.vae, [video[:1], video[1:] / 4])
    video[1:] /= 4
    latent = pipeline.vae.encode((video * 2 - 1).movedim(-1, 1)) * scale
    assert float(latent.std()) == pytest.approx(1, rel=1e-3)

"""The Sampler, the Scheduler and ComfyUI's own sampling nodes agree."""

import pytest
import torch
from cogvideox_fun.sampling.schedule import NoiseSchedule
from cogvideox_fun.tools import comfyui_server as comfy
from graph import Failed, Lab, relative

DDIM = "cogvideox_ddim"


@pytest.fixture
def setting(lab):
    """A graph with a 5B model, prompts and an empty latent."""
    return lab.setting("videox-fun-5b")


def ksampler(graph, model, positive, negative, latent, **options):
    defaults = {"seed": 1, "steps": 4, "cfg": 6.0, "sampler_name": "ddim", "scheduler": "simple", "denoise": 1.0}
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return graph.node("KSampler", **inputs, **{**defaults, **options})


def sampler_custom(graph, model, positive, negative, latent, name, steps, spacing="auto", denoise=1.0):
    return graph.with_defaults(
        "SamplerCustom",
        {"MODEL": model, "LATENT": latent},
        **{"positive": positive, "negative": negative, "noise_seed": 1, "cfg": 6.0},
        sampler=graph.node("KSamplerSelect", sampler_name=name),
        sigmas=graph.fun("Scheduler", model=model, steps=steps, spacing=spacing, denoise=denoise),
    )


@pytest.mark.parametrize("steps", [4, 10, 50])
@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_ours_the_hosts_and_ksampler_agree(setting, steps, name):
    """Trailing spacing, steps that divide 1000: 1e-4, and 1.2e-4 at 4 steps (1.06e-4 seen).

    There ComfyUI's first Euler step goes from sigma 16384 to 5.4 in float32 and rounds away 1e-4 of the result.
    """
    tolerance = 1.2e-4 if steps == 4 else 1e-4
    graph, *rest = setting
    ours = graph.sampler(*rest, steps=steps)
    host = graph.sampler(*rest, steps=steps, sampler_name=name)
    ours, host, stock = graph.get(ours, host, ksampler(graph, *rest, steps=steps, sampler_name=name))
    assert relative(host, ours) <= tolerance
    assert relative(stock, ours) <= tolerance


@pytest.mark.parametrize("name", ["euler", "dpmpp_2m", "uni_pc"])
@pytest.mark.parametrize("spacing, denoise", [("trailing", 1.0), ("linspace", 1.0), ("leading", 0.5)])
def test_a_host_sampler_equals_scheduler_and_samplercustom(setting, name, spacing, denoise):
    graph, *rest = setting
    ours = graph.sampler(*rest, steps=5, sampler_name=name, spacing=spacing, denoise=denoise)
    ours, custom = graph.get(ours, sampler_custom(graph, *rest, name, 5, spacing, denoise))
    assert torch.equal(ours, custom)


@pytest.mark.parametrize("spacing", ["trailing", "linspace", "leading"])
@pytest.mark.parametrize("steps", [4, 30])
def test_scheduler(lab, steps, spacing):
    graph = lab.graph()
    (sigmas,) = graph.get(
        graph.fun("Scheduler", model=graph.loader("videox-fun-2b"), steps=steps, spacing=spacing, denoise=1.0)
    )
    schedule = NoiseSchedule(snr_shift=3.0)
    expected = schedule.sigmas()[schedule.timesteps(steps, spacing)]
    assert len(sigmas) == steps + 1 and sigmas[-1] == 0
    assert relative(sigmas[:-1], expected) <= 1e-5


def test_denoise_means_what_it_means_in_ksampler(setting):
    graph, model, positive, negative, latent = setting
    start = graph.sampler(model, positive, negative, latent, seed=9)
    rest = (model, positive, negative, start)
    runs = graph.sampler(*rest, denoise=0.5), ksampler(graph, *rest, denoise=0.5), graph.sampler(*rest, denoise=0.0)
    ours, stock, unchanged, before = graph.get(*runs, start)
    assert relative(stock, ours) <= 2e-4 and torch.equal(unchanged, before)


@pytest.mark.parametrize("steps", [6, 17])
def test_a_noise_mask_keeps_to_the_digit_at_odd_step_counts(setting, steps):
    """There VideoX-Fun's last step ends above timestep 0. What is kept must not keep its noise."""
    graph, model, positive, negative, latent = setting
    start = graph.sampler(model, positive, negative, latent, seed=9)
    mask = torch.zeros(1, 48, 80)
    mask[:, :, 40:] = 1
    masked = graph.node("SetLatentNoiseMask", samples=start, mask=graph.tensor("Mask", mask))
    before, after = graph.get(start, graph.sampler(model, positive, negative, masked, steps=steps))
    assert torch.allclose(after[..., :5], before[..., :5], atol=1e-5)


def test_a_noise_mask_of_all_frames_keeps_the_first(lab):
    """As Mask Resize 3D before Set Latent Noise Mask does it. So do a mask that is a frame longer, and bools."""
    graph, model, *prompts, latent = lab.setting("tiny-2b")
    start = graph.sampler(model, *prompts, latent, seed=9)
    frames = graph.get(start)[0].shape[2] * 4 - 3
    mask = torch.ones(frames + 1, 48, 80)
    mask[0] = 0
    whole, longer = graph.tensor("Mask", mask[:frames]), graph.tensor("Mask", mask)
    bools = graph.tensor("Mask", mask[:frames].bool())
    resized = graph.fun("MaskResize3D", mask=whole, latent=start, soft=True)
    masked = [graph.node("SetLatentNoiseMask", samples=start, mask=one) for one in (resized, whole, longer, bools)]
    before, expected, *found = graph.get(start, *(graph.sampler(model, *prompts, one, steps=3) for one in masked))
    assert all(torch.equal(one, expected) for one in found)
    kept = (found[0] - before).abs().amax((0, 1, 3, 4))
    assert kept[0] < 1e-5 and kept[1:].min() > 0.1


@pytest.mark.parametrize("amount", [2, 4])
@pytest.mark.parametrize("resized", [False, True])
def test_a_noise_mask_keeps_the_first_frame_of_every_repeated_video(lab, amount, resized):
    """Repeat Latent Batch repeats its frames, those of the video or those of the latent."""
    graph, model, *prompts, latent = lab.setting("tiny-2b")
    start = graph.sampler(model, *prompts, latent, seed=9)
    mask = torch.ones(graph.get(start)[0].shape[2] * 4 - 3, 48, 80)
    mask[0] = 0
    mask = graph.tensor("Mask", mask)
    if resized:
        mask = graph.fun("MaskResize3D", mask=mask, latent=start, soft=True)
    masked = graph.node("SetLatentNoiseMask", samples=start, mask=mask)
    repeated = graph.node("RepeatLatentBatch", samples=masked, amount=amount)
    before, found = graph.get(start, graph.sampler(model, *prompts, repeated, steps=3))
    assert found.shape[0] == amount
    kept = (found - before).abs().amax((1, 3, 4))
    assert kept[:, 0].max() < 1e-5 and kept[:, 1:].min() > 0.1


@pytest.mark.parametrize("latent_t", [1, 3])
def test_every_latent_of_a_batch_has_the_mask_of_its_own_number(lab, latent_t):
    """Of one picture each: the first keeps its left half, the second its right half."""
    graph, model, *prompts, _ = lab.setting("tiny-2b")
    latent = graph.fun("EmptyLatent", model=model, width=80, height=48, length=latent_t * 4 - 3, batch_size=2)
    start = graph.sampler(model, *prompts, latent, seed=9)
    mask = torch.zeros(2, 48, 80)
    mask[0, :, 40:] = mask[1, :, :40] = 1
    masked = graph.node("SetLatentNoiseMask", samples=start, mask=graph.tensor("Mask", mask))
    before, after = graph.get(start, graph.sampler(model, *prompts, masked, steps=3))
    change = (after - before).abs()
    left, right = change[..., :5].amax((1, 2, 3, 4)), change[..., 5:].amax((1, 2, 3, 4))
    assert max(left[0], right[1]) < 1e-5 and min(left[1], right[0]) > 0.1


def test_three_videos_of_three_latent_frames_share_a_mask_of_their_nine_frames(lab):
    graph, model, *prompts, _ = lab.setting("tiny-2b")
    latent = graph.fun("EmptyLatent", model=model, width=80, height=48, length=9, batch_size=3)
    start = graph.sampler(model, *prompts, latent, seed=9)
    mask = torch.ones(9, 48, 80)
    mask[0] = 0
    masked = graph.node("SetLatentNoiseMask", samples=start, mask=graph.tensor("Mask", mask))
    before, after = graph.get(start, graph.sampler(model, *prompts, masked, steps=3))
    kept = (after - before).abs().amax((1, 3, 4))
    assert kept[:, 0].max() < 1e-5 and kept[:, 1:].min() > 0.1


def test_a_mask_on_a_conditioning_has_the_latents_frames_or_one(lab):
    """Of all frames of the video, it gives an error that says what to do."""
    graph, model, positive, negative, latent = lab.setting("tiny-2b")
    latent_t = graph.get(latent)[0].shape[2]

    def run(frames: int):
        mask = graph.tensor("Mask", torch.ones(frames, 48, 80))
        options = {"strength": 1.0, "set_cond_area": "default"}
        masked = graph.node("ConditioningSetMask", conditioning=positive, mask=mask, **options)
        return graph.sampler(model, masked, negative, latent, steps=2)

    plain, one, several = graph.get(graph.sampler(model, positive, negative, latent, steps=2), run(1), run(latent_t))
    assert torch.equal(one, several) and torch.allclose(one, plain, atol=1e-5)
    length = latent_t * 4 - 3
    with pytest.raises(Failed, match=f"conditioning has {length} frames, but the latent {latent_t}: put Mask Resize"):
        graph.get(run(length))


@pytest.mark.parametrize("is_differential", [False, True])
def test_a_soft_noise_mask_means_what_it_means_in_comfyui(setting, is_differential):
    """What is kept in part is mixed in at every step, and not once more at the end."""
    graph, model, positive, negative, latent = setting
    start = graph.sampler(model, positive, negative, latent, seed=9)
    mask = graph.tensor("Mask", torch.linspace(0, 1, 80).expand(1, 48, 80))
    masked = graph.node("SetLatentNoiseMask", samples=start, mask=mask)
    if is_differential:
        model = graph.with_defaults("DifferentialDiffusion", {"MODEL": model})
    runs = [graph.sampler(model, positive, negative, masked, steps=10, sampler_name=name) for name in (DDIM, "euler")]
    ours, host = graph.get(*runs)
    assert relative(ours, host) <= 2e-4


def test_a_sampler_that_another_pack_adds_after_this_one(lab):
    def put(there: bool) -> None:
        graph = lab.graph()
        graph.node("ProbeLateSampler", name="late", there=there)
        lab.run(graph.workflow)

    put(True)
    try:
        graph, *rest = lab.setting("tiny-2b")
        late, euler = graph.get(*(graph.sampler(*rest, steps=3, sampler_name=name) for name in ("late", "euler")))
    finally:
        put(False)
    assert torch.equal(late, euler)


def test_a_schedule_of_fewer_levels(setting):
    """ComfyUI's lcm has 50 of the 1000."""
    graph, model, *rest = setting
    patched = graph.node("ModelSamplingDiscrete", model=model, sampling="lcm", zsnr=False)
    ours, host = graph.get(*(graph.sampler(patched, *rest, steps=10, sampler_name=name) for name in (DDIM, "euler")))
    assert torch.isfinite(ours).all() and relative(ours, host) <= 2e-4


@pytest.mark.long
def test_the_same_seed_gives_the_same_video_twice_and_in_another_process(host, lab, tmp_path):
    def video(lab: Lab, seed: int, prompt: str):
        graph = lab.graph()
        model = graph.loader("tiny-2b")
        positive, negative = graph.prompts(model[1], prompt)
        latent = graph.fun("EmptyLatent", width=80, height=48, length=9, batch_size=1)
        sampled = graph.sampler(model, positive, negative, latent, seed=seed)
        return graph.get(graph.fun("VAEDecode", vae=model[2], latent=sampled, tile_size=0, overlap=64))[0]

    first = video(lab, 5, "a cat")
    video(lab, 6, "a dog")  # what ComfyUI keeps of the first run is replaced
    lab.server.post("/free", {"unload_models": True, "free_memory": True})
    assert torch.equal(video(lab, 5, "a cat"), first)
    assert not torch.equal(video(lab, 6, "a cat"), first)

    (tmp_path / "models").symlink_to(lab.base / "models")
    (tmp_path / "custom_nodes").mkdir()
    (tmp_path / "custom_nodes" / "probe").symlink_to(lab.base / "custom_nodes" / "probe")
    with comfy.serve(host, tmp_path) as server:
        assert torch.equal(video(Lab(server, tmp_path), 5, "a cat"), first)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_latent_in_half_precision_is_sampled_like_one_in_full(lab, dtype):
    """Another pack may give one. Older ComfyUIs draw the noise in its type, and at sigma 16384 that is beyond fp16."""
    graph, model, *prompts, _ = lab.setting("tiny-5b")
    latents = [graph.tensor("Latent", torch.zeros(1, 16, 3, 6, 10, dtype=kind)) for kind in (dtype, torch.float32)]
    half, full = graph.get(*(graph.sampler(model, *prompts, latent, steps=2) for latent in latents))
    assert half.dtype == torch.float32 and torch.equal(half, full)

"""Whole sampling runs: the authors' own, then every variant and task against diffusers' classes run beside ours.

1e-3 absolute on latents of size 5, float32; about 2e-5 is seen.
"""

import pytest
import reference
import torch
import torch.nn.functional as F
from cogvideox_fun.model_loading import standalone as pipelines
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.sampling.masks import build_start_end
from cogvideox_fun.sampling.schedule import add_noise
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

TOLERANCE = 1e-3
RUNS = [("2b", "i2v"), ("5b", "i2v_end"), ("5b", "inpaint"), ("v1.5", "i2v"), ("v1.5", "t2v")]
SCALE = {"2b": 1.15258426, "5b": 0.7, "v1.5": 0.7, "2b-control": 1.15258426}
SHIFT = {"2b": 3.0, "5b": 1.0, "v1.5": 1.0, "2b-control": 3.0}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The authors' tiny model of each variant, through the pack's own loading."""
    found = {}
    for variant, scale in SCALE.items():
        folder = reference.write_model(tmp_path_factory.mktemp("models") / variant, variant, scale)
        checkpoint = open_checkpoint(folder)
        parts = pipelines.load_transformer(checkpoint), pipelines.load_vae(checkpoint.vae)
        found[variant] = pipelines.Pipeline(checkpoint, *parts, text_encoder=None)
    return found


def inputs_of(task: str, data: dict, length: int):
    """(video, mask) of a task from a reference file's pictures."""
    start, end = reference.image(data["start_rgb_u8"]), reference.image(data["end_rgb_u8"])
    if task == "inpaint":
        return data["video_u8"].float() / 255, data["maskimg_u8"][None].float() / 255
    images = {"i2v": (start, None), "i2v_end": (start, end), "t2v": (None, None), "v2v": (None, None)}[task]
    return build_start_end(80, 48, length, *images)


@pytest.mark.parametrize("variant, task", RUNS)
def test_runs_of_the_authors(models, variant, task):
    model, data = models[variant], reference.load(f"pipeline_{variant}")
    extra = model.condition(*inputs_of(task, data, reference.metadata(f"pipeline_{variant}")["frames"]))
    expected = reference.channels_second(data[f"{task}.inpaint_latents"])[:1]
    assert ((torch.zeros_like(expected) if extra is None else extra) - expected).abs().max() <= 1e-4

    steps = []
    noise = reference.channels_second(data["noise"])
    texts = data["prompt_embeds"], data["negative_prompt_embeds"]
    out = model.sample(noise, *texts, extra, steps=4, cfg=6.0, callback=lambda _i, _d, x: steps.append(x))
    assert (reference.channels_second(out) - data[f"{task}.final"]).abs().max() <= TOLERANCE
    steps = torch.stack([reference.channels_second(x) for x in steps])
    assert (steps - data[f"{task}.steps"]).abs().max() <= TOLERANCE


def test_video_to_video_from_the_clip_on(models):
    """Their start is a draw from the VAE's distribution, here of seed 0, noised; the mode is far from it."""
    model, data = models["2b"], reference.load("pipeline_2b")
    clip = data["video_u8"].float() / 255
    x, noise, noised = (reference.channels_second(data[f"v2v07_N10.addnoise_{n}"]) for n in ("x", "noise", "out"))
    start = model.encode(clip, seed=0)
    assert (start - x).abs().max() <= 1e-4 < 1 < (model.encode(clip) - x).abs().max()
    alpha = float(model.checkpoint.schedule.alphas_cumprod()[int(data["v2v07_N10.addnoise_t"])])
    assert (add_noise(start, noise, alpha) - noised).abs().max() <= 1e-4
    texts = data["prompt_embeds"], data["negative_prompt_embeds"]
    out = model.sample(noise, *texts, start=start, steps=7, cfg=6.0, denoise=0.7)
    assert (reference.channels_second(out) - data["v2v07_N10.final"]).abs().max() <= TOLERANCE


class Oracle:
    """The authors' pipeline in a few lines of torch around diffusers' transformer, VAE and scheduler."""

    def __init__(self, variant: str, grid: tuple[int, int, int]):
        config = reference.metadata(f"transformer_{variant}_weights")
        config.pop("add_noise_in_inpaint_model")
        self.transformer = CogVideoXTransformer3DModel(**config).eval().requires_grad_(False)
        self.transformer.load_state_dict(reference.load(f"transformer_{variant}_weights"))
        self.vae = AutoencoderKLCogVideoX(**reference.metadata("vae_weights")).eval().requires_grad_(False)
        self.vae.load_state_dict(reference.load("vae_weights"))
        self.scale = SCALE[variant]
        self.rope = None
        t, h, w = grid
        if variant.startswith(
            "2b"
        ):  # diffusers computes the table anew off 60x90: put the authors' interpolation in its place
            embed = self.transformer.patch_embed
            table = embed._get_positional_embeddings(60, 90, 49)[0, 226:].view(13, 30, 45, -1)
            table = F.interpolate(table.movedim(-1, 0)[None], size=(13, h, w), mode="trilinear")[0].movedim(0, -1)
            table = torch.cat([torch.zeros(226, table.shape[-1]), table.flatten(0, 2)])[None, : 226 + t * h * w]
            embed._get_positional_embeddings = lambda *_args, **_options: table
            embed.sample_height = 0  # not the run's, so that it asks for the table
        elif variant == "5b":
            # the crop region of a 3 x 5 grid in 30 x 45 is 27 x 45, from 2 (half to even) to 29
            self.rope = self.numpy_rope(2, 29, h, 0, 45, w, t)
        else:
            self.rope = get_3d_rotary_pos_embed(64, None, (h, w), t // 2, grid_type="slice", max_size=(150, 150))

    @staticmethod
    def numpy_rope(top, bottom, h, left, right, w, t):
        """diffusers' own rotary function per axis over the authors' grid, which excludes the end."""
        import numpy as np
        from diffusers.models.embeddings import get_1d_rotary_pos_embed

        ys = np.linspace(top, bottom, h, endpoint=False, dtype=np.float32)
        xs = np.linspace(left, right, w, endpoint=False, dtype=np.float32)
        axes = [(16, np.arange(t, dtype=np.float32)), (24, ys), (24, xs)]
        parts = [get_1d_rotary_pos_embed(dim, grid, use_real=True) for dim, grid in axes]
        views = [(-1, 1, 1), (1, -1, 1), (1, 1, -1)]
        return tuple(
            torch.cat(
                [p[i].view(*view, p[i].shape[-1]).expand(t, h, w, -1) for p, view in zip(parts, views, strict=True)],
                dim=-1,
            ).flatten(0, 2)
            for i in (0, 1)
        )

    def condition(self, video, mask):
        mask = (mask >= 0.5).float().expand(len(video), -1, -1)
        if mask.all():
            return None
        masked = torch.where(mask[..., None] < 0.5, video * 2 - 1, -torch.ones(()))
        latent = self.vae.encode(masked.movedim(-1, 0)[None]).latent_dist.mode() * self.scale
        known, size = (1 - mask)[None, None], latent.shape[3:]
        first = F.interpolate(known[:, :, :1], (1, *size), mode="trilinear")
        rest = F.interpolate(known[:, :, 1:], (latent.shape[2] - 1, *size), mode="trilinear")
        return torch.cat([torch.cat([first, rest], 2) * self.scale, latent], 1)

    def run(self, variant, noise, positive, negative, extra, start, steps, strength):
        scheduler = CogVideoXDDIMScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            clip_sample=False,
            snr_shift_scale=SHIFT[variant],
            timestep_spacing="trailing",
        )
        scheduler.set_timesteps(steps)
        timesteps = scheduler.timesteps[steps - min(int(steps * strength), steps) :]
        x = noise if strength == 1 else scheduler.add_noise(start, noise, timesteps[:1])
        if extra is None:
            extra = torch.zeros(1, 17, *noise.shape[2:])
        text = torch.cat([negative, positive])
        for t in timesteps:
            inputs = torch.cat([x, extra], 1).movedim(1, 2).repeat(2, 1, 1, 1, 1)
            v = self.transformer(inputs, text, t.expand(2), image_rotary_emb=self.rope).sample.movedim(1, 2)
            uncond, cond = v.chunk(2)
            x = scheduler.step(uncond + 6.0 * (cond - uncond), t, x).prev_sample
        return x


@pytest.mark.parametrize("task", ["t2v", "i2v", "i2v_end", "inpaint", "v2v"])
@pytest.mark.parametrize("variant", ["2b", "5b", "v1.5"])
@torch.no_grad()
def test_every_task_equals_diffusers(models, variant, task):
    model, data = models[variant], reference.load(f"pipeline_{variant}")
    length = reference.metadata(f"pipeline_{variant}")["frames"]
    noise = reference.channels_second(data["noise"])
    oracle = Oracle(variant, (noise.shape[2], 3, 5))
    video, mask = inputs_of(task, data, length)
    texts = data["prompt_embeds"], data["negative_prompt_embeds"]

    start, steps, denoise = None, 4, 1.0
    if task == "v2v":
        clip = data["video_u8"].float() / 255
        start, steps, denoise = model.encode(clip), 7, 0.7
        expected_start = oracle.vae.encode((clip * 2 - 1).movedim(-1, 0)[None]).latent_dist.mode() * oracle.scale
        assert (start - expected_start).abs().max() <= 1e-4
    ours = model.sample(noise, *texts, model.condition(video, mask), start, steps=steps, cfg=6.0, denoise=denoise)
    total = 10 if task == "v2v" else 4
    expected = oracle.run(variant, noise, *texts, oracle.condition(video, mask), start, total, denoise)
    assert (ours - expected).abs().max() <= TOLERANCE


@torch.no_grad()
def test_control_equals_diffusers(models):
    """The control video's latent beside the noise, as in diffusers' Fun control pipeline; it changes the video."""
    model, data = models["2b-control"], reference.load("pipeline_2b")
    noise, clip = reference.channels_second(data["noise"]), data["video_u8"].float() / 255
    texts = data["prompt_embeds"], data["negative_prompt_embeds"]
    oracle = Oracle("2b-control", (noise.shape[2], 3, 5))
    control = oracle.vae.encode((clip * 2 - 1).movedim(-1, 0)[None]).latent_dist.mode() * oracle.scale
    expected = oracle.run("2b-control", noise, *texts, control, None, 4, 1.0)
    ours = model.sample(noise, *texts, model.encode(clip), steps=4, cfg=6.0)
    assert (ours - expected).abs().max() <= TOLERANCE
    assert (model.sample(noise, *texts, steps=4, cfg=6.0) - expected).abs().max() > 0.1

"""Every kind of checkpoint with every feature that it has, on a tiny model of that kind.

What a feature computes is tested to the digit elsewhere; here, that it runs on that kind and does what it is for.
"""

from pathlib import Path

import pytest
import torch
from cogvideox_fun.model_loading.files.checkpoint import SAVED_CONFIG, encode_config, open_checkpoint
from graph import ENCODE, relative
from quantised import write_gguf
from safetensors.torch import save_file

SIZE = {"width": 80, "height": 48}
STEPS = 8  # where a cache is to save some


class Bench:
    """A tiny model in a graph, and what most features need of it."""

    def __init__(self, lab, variant: str):
        self.lab, self.variant = lab, variant
        self.length = 13 if variant.startswith(("v1.5", "void")) else 9
        self.graph = lab.graph()
        self.model = self.graph.loader(f"tiny-{variant}")
        self.pair = dict(zip(("positive", "negative"), self.graph.prompts(self.model[1]), strict=True))

    def node(self, name: str, **inputs):
        return self.graph.fun(name, **inputs)

    def empty(self, length: int):
        return self.node("EmptyLatent", length=length, batch_size=1, **SIZE)

    def clip(self, seed: int, length: int | None = None):
        shape = length or self.length, SIZE["height"], SIZE["width"], 3
        return self.graph.tensor("Image", torch.rand(shape, generator=torch.Generator().manual_seed(seed)))

    def encode(self, video):
        return self.node("VAEEncode", vae=self.model[2], video=video, **ENCODE)

    def sample(self, conditioning=None, model=None, latent=None, **options):
        """A sampled latent; the conditioning is a node with a positive and a negative output."""
        pair = (conditioning[0], conditioning[1]) if conditioning else self.pair.values()
        return self.graph.sampler(
            model or self.model, *pair, latent or self.empty(self.length), **{"steps": 2, **options}
        )

    def differ(self, *samples) -> None:
        """Run them: all finite, of the same shape, and the first one unlike each of the others."""
        first, *others = self.graph.get(*samples)
        assert torch.isfinite(first).all()
        for other in others:
            assert other.shape == first.shape and relative(other, first) > 1e-3

    def calls(self, model, **options) -> list[str]:
        """The shapes that the transformer is given while a finite latent is sampled."""
        path = self.lab.path(".txt")
        counted = self.graph.node("ProbeCalls", model=model, path=path)
        (out,) = self.graph.get(self.sample(model=counted, **options))
        assert torch.isfinite(out).all()
        return Path(path).read_text().splitlines()


def text(bench):
    other = dict(enumerate(bench.graph.prompts(bench.model[1], "a blue cat runs left at night")))
    bench.differ(bench.sample(), bench.sample(other))


def images(bench, **given):
    built = bench.node("StartEndImage", length=bench.length, fit="crop", **SIZE, **given)
    return bench.graph.inpaint(bench.model, bench.model[2], built[0], built[1], *bench.pair.values())


def start(bench):
    image = bench.clip(1, 1)
    if bench.variant.endswith("image"):
        latents = {"image_latent": bench.encode(image), "latent": bench.empty(bench.length)}
        found = bench.node("ImageConditioning", **bench.pair, **latents)
    else:
        found = images(bench, start_image=image)
    bench.differ(bench.sample(found), bench.sample())


def start_and_end(bench):
    first, last = bench.clip(1, 1), bench.clip(2, 1)
    both, one = images(bench, start_image=first, end_image=last), images(bench, start_image=first)
    bench.differ(bench.sample(both), bench.sample(one), bench.sample())


def video(bench):
    one, other = (bench.sample(latent=bench.encode(bench.clip(seed)), denoise=0.5) for seed in (1, 2))
    bench.differ(one, other, bench.sample())


def region(bench):
    mask = torch.zeros(bench.length, SIZE["height"], SIZE["width"])
    mask[:, 10:30, 20:50] = 1
    mask, clip, vae = bench.graph.tensor("Mask", mask), bench.clip(1), bench.model[2]
    if bench.variant != "void":
        found = bench.graph.inpaint(bench.model, vae, clip, mask, *bench.pair.values())
    elif bench.lab.has("VOIDInpaintConditioning"):
        given = {"vae": vae, "video": clip, "quadmask": mask, "length": bench.length, "batch_size": 1}
        found = bench.graph.node("VOIDInpaintConditioning", **bench.pair, **given, **SIZE)
    else:
        pytest.skip("this ComfyUI has no VOIDInpaintConditioning")
    bench.differ(bench.sample(found), bench.sample())


def control(bench):
    whole = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
    clips = [bench.encode(bench.clip(seed)) for seed in (1, 2)]
    found = [bench.node("ControlConditioning", **bench.pair, control_latent=clip, **whole) for clip in clips]
    bench.differ(*map(bench.sample, found), bench.sample())


def lora(bench):
    name, layer = "matrix.safetensors", "transformer.transformer_blocks.1.attn1.to_v"
    generator = torch.Generator().manual_seed(1)
    down, up = (0.5 * torch.randn(*shape, generator=generator) for shape in ((4, 128), (128, 4)))
    folder = bench.lab.base / "models" / "loras"
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, folder / name)
    patched = bench.node("LoraLoader", model=bench.model, lora_name=name, strength=1.0)
    bench.differ(bench.sample(model=patched), bench.sample())


def windows(bench):
    options = {"context_overlap": 4, "context_schedule": "standard_static", "fuse_method": "pyramid"}
    longer = bench.node("ContextWindows", model=bench.model, context_length=bench.length, **options)
    seen = bench.calls(longer, latent=bench.empty(2 * bench.length + 3))
    assert len(seen) >= 2 * 2 and set(seen) == {f"[2, 16, {(bench.length - 1) // 4 + 1}, 6, 10]"}


def caches(bench):
    options = {"reuse_threshold": 3.0, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
    for node in ("EasyCache", "LazyCache"):
        cached = bench.graph.node(node, model=bench.model, **options)
        assert 0 < len(bench.calls(cached, steps=STEPS)) < STEPS


def compiled(bench):
    path = bench.lab.path(".txt")
    model = bench.graph.node("ProbeCompile", model=bench.model, path=path)
    ours, plain = bench.graph.get(bench.sample(model=model), bench.sample())
    assert relative(ours, plain) <= 1e-4 and Path(path).read_text(), "a block was compiled"


def fp8(bench):
    small = bench.graph.loader(f"tiny-{bench.variant}", "fp8_e4m3fn")
    ours, plain = bench.graph.get(bench.sample(model=small), bench.sample())
    assert 1e-4 < relative(ours, plain) < 0.5


def gguf(bench):
    models = bench.lab.base / "models"
    if not list((bench.lab.base / "custom_nodes").glob("ComfyUI-GGUF")):
        pytest.skip("needs the node pack ComfyUI-GGUF in ComfyUI's custom_nodes, with its requirements")
    name = f"matrix-{bench.variant}.gguf"
    opened = open_checkpoint(models / "CogVideoX_Fun" / f"tiny-{bench.variant}")
    state = {**opened.weights.load(), SAVED_CONFIG: encode_config(opened.saved_config)}
    write_gguf(state, models / "diffusion_models" / name)
    ours, plain = bench.graph.get(bench.sample(model=bench.graph.loader(name)), bench.sample())
    assert 1e-5 < relative(ours, plain) < 0.1, "eight bits a weight: near, not the same"


ALL = [video, lora, windows, caches, compiled, fp8, gguf]
INPAINT = [*ALL, text, start, start_and_end, region]
CHECKPOINTS = {
    "2b": INPAINT,
    "5b": INPAINT,
    "v1.5": INPAINT,
    "2b-control": [*ALL, control],
    "5b-control": [*ALL, control],
    "2b-text": [*ALL, text],
    "5b-text": [*ALL, text],
    "v1.5-text": [*ALL, text],
    "5b-image": [*ALL, start],
    "v1.5-image": [*ALL, start],
    "void": [*ALL, region],
}


@pytest.mark.parametrize("variant, feature", [(name, one) for name, tested in CHECKPOINTS.items() for one in tested])
def test_cell(lab, variant, feature):
    feature(Bench(lab, variant))

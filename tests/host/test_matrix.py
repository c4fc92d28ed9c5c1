"""Every kind of checkpoint with every feature that it has, on a tiny model of that kind: the README's table.

What a feature computes is tested to the digit elsewhere; here, that it runs on that kind and does what it is for.
"""

from pathlib import Path

import matrix
import pytest
import torch
from cogvideox_fun.model_loading.files.checkpoint import SAVED_CONFIG, encode_config, open_checkpoint
from graph import ENCODE
from quantised import write_gguf
from safetensors.torch import save_file

WIDTH, HEIGHT = 80, 48
STEPS = 8  # where a cache is to save some


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


class Bench:
    """A tiny model in a graph, and what most features need of it."""

    def __init__(self, lab, variant: str):
        self.lab, self.variant = lab, variant
        self.length = 13 if variant.startswith(("v1.5", "void")) else 9
        self.graph = lab.graph()
        self.model = self.graph.loader(f"tiny-{variant}")
        self.prompts = self.graph.prompts(self.model[1])
        self.latent = self.empty(self.length)

    def empty(self, length: int):
        return self.graph.fun("EmptyLatent", width=WIDTH, height=HEIGHT, length=length, batch_size=1)

    def clip(self, seed: int, length: int | None = None):
        shape = length or self.length, HEIGHT, WIDTH, 3
        return self.graph.tensor("Image", torch.rand(shape, generator=torch.Generator().manual_seed(seed)))

    def encode(self, video):
        return self.graph.fun("VAEEncode", vae=self.model[2], video=video, **ENCODE)

    def sample(self, model=None, conditioning=None, latent=None, **options):
        positive, negative = conditioning or self.prompts
        options = {"steps": 2, **options}
        return self.graph.sampler(model or self.model, positive, negative, latent or self.latent, **options)

    def differ(self, *samples, by: float = 1e-3) -> None:
        """Run them: all finite, of the same shape, and the first one unlike each of the others."""
        first, *others = self.graph.get(*samples)
        assert torch.isfinite(first).all()
        for other in others:
            assert other.shape == first.shape and relative(other, first) > by


def text(bench):
    other = bench.graph.prompts(bench.model[1], "a blue cat runs left at night")
    bench.differ(bench.sample(), bench.sample(conditioning=other))


def images(bench, **given):
    size = {"width": WIDTH, "height": HEIGHT, "length": bench.length, "fit": "crop"}
    built = bench.graph.fun("StartEndImage", **size, **given)
    found = bench.graph.inpaint(bench.model, bench.model[2], built[0], built[1], *bench.prompts)
    return found[0], found[1]


def start(bench):
    if not bench.variant.endswith("image"):
        return bench.differ(bench.sample(conditioning=images(bench, start_image=bench.clip(1, 1))), bench.sample())
    one = bench.encode(bench.clip(1, 1))
    positive, negative = bench.prompts
    pair = {"positive": positive, "negative": negative}
    found = bench.graph.fun("ImageConditioning", **pair, image_latent=one, latent=bench.latent)
    return bench.differ(bench.sample(conditioning=(found[0], found[1])), bench.sample())


def start_and_end(bench):
    first, last = bench.clip(1, 1), bench.clip(2, 1)
    both, one = images(bench, start_image=first, end_image=last), images(bench, start_image=first)
    bench.differ(bench.sample(conditioning=both), bench.sample(conditioning=one), bench.sample())


def video(bench):
    one, other = (bench.sample(latent=bench.encode(bench.clip(seed)), denoise=0.5) for seed in (1, 2))
    bench.differ(one, other, bench.sample())


def region(bench):
    mask = torch.zeros(bench.length, HEIGHT, WIDTH)
    mask[:, 10:30, 20:50] = 1
    positive, negative = bench.prompts
    if bench.variant != "void":
        found = bench.graph.inpaint(
            bench.model, bench.model[2], bench.clip(1), bench.graph.tensor("Mask", mask), positive, negative
        )
    else:
        if "VOIDInpaintConditioning" not in bench.lab.server.get("/object_info"):
            pytest.skip("this host has no VOIDInpaintConditioning")
        size = {"width": WIDTH, "height": HEIGHT, "length": bench.length, "batch_size": 1}
        parts = {"vae": bench.model[2], "video": bench.clip(1), "quadmask": bench.graph.tensor("Mask", mask)}
        found = bench.graph.node("VOIDInpaintConditioning", positive=positive, negative=negative, **parts, **size)
    bench.differ(bench.sample(conditioning=(found[0], found[1])), bench.sample())


def control(bench):
    def controlled(seed):
        positive, negative = bench.prompts
        whole = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
        pair = {"positive": positive, "negative": negative}
        found = bench.graph.fun("ControlConditioning", **pair, control_latent=bench.encode(bench.clip(seed)), **whole)
        return found[0], found[1]

    bench.differ(*(bench.sample(conditioning=controlled(seed)) for seed in (1, 2)), bench.sample())


def lora(bench):
    name, layer = "matrix.safetensors", "transformer.transformer_blocks.1.attn1.to_v"
    generator = torch.Generator().manual_seed(1)
    down, up = (0.5 * torch.randn(*shape, generator=generator) for shape in ((4, 128), (128, 4)))
    folder = bench.lab.base / "models" / "loras"
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, folder / name)
    patched = bench.graph.fun("LoraLoader", model=bench.model, lora_name=name, strength=1.0)
    bench.differ(bench.sample(patched), bench.sample())


def windows(bench):
    clip, path = 2 * bench.length + 3, bench.lab.path(".txt")
    counted = bench.graph.node("ProbeCalls", model=bench.model, path=path)
    options = {"context_overlap": 4, "context_schedule": "standard_static", "fuse_method": "pyramid"}
    longer = bench.graph.fun("ContextWindows", model=counted, context_length=bench.length, **options)
    (out,) = bench.graph.get(bench.sample(longer, latent=bench.empty(clip)))
    assert out.shape[2] == (clip - 1) // 4 + 1 and torch.isfinite(out).all()
    seen = Path(path).read_text().splitlines()
    assert len(seen) >= 2 * 2 and set(seen) == {f"[2, 16, {(bench.length - 1) // 4 + 1}, 6, 10]"}


def caches(bench):
    for node in ("EasyCache", "LazyCache"):
        options = {"reuse_threshold": 3.0, "start_percent": 0.15, "end_percent": 0.95, "verbose": False}
        path = bench.lab.path(".txt")
        cached = bench.graph.node(node, model=bench.model, **options)
        counted = bench.graph.node("ProbeCalls", model=cached, path=path)
        (out,) = bench.graph.get(bench.sample(counted, steps=STEPS))
        assert torch.isfinite(out).all() and 0 < len(Path(path).read_text().splitlines()) < STEPS


def compiled(bench):
    path = bench.lab.path(".txt")
    model = bench.graph.node("ProbeCompile", model=bench.model, path=path)
    ours, plain = bench.graph.get(bench.sample(model), bench.sample())
    assert relative(ours, plain) <= 1e-4 and Path(path).read_text().splitlines(), "a block was compiled"


def fp8(bench):
    small = bench.graph.loader(f"tiny-{bench.variant}", "fp8_e4m3fn")
    ours, plain = bench.graph.get(bench.sample(small), bench.sample())
    assert 1e-4 < relative(ours, plain) < 0.5


def gguf(bench):
    if not list((bench.lab.base / "custom_nodes").glob("ComfyUI-GGUF")):
        pytest.skip("needs the node pack ComfyUI-GGUF in the host's custom_nodes, with its requirements")
    name = f"matrix-{bench.variant}.gguf"
    opened = open_checkpoint(bench.lab.base / "models" / "CogVideoX_Fun" / f"tiny-{bench.variant}")
    state = {**opened.weights.load(), SAVED_CONFIG: encode_config(opened.saved_config)}
    write_gguf(state, bench.lab.base / "models" / "diffusion_models" / name)
    ours, plain = bench.graph.get(bench.sample(bench.graph.loader(name)), bench.sample())
    assert 1e-5 < relative(ours, plain) < 0.1, "eight bits a weight: near, not the same"


FEATURES = dict(
    zip(
        matrix.COLUMNS,
        (text, start, start_and_end, video, region, control, lora, windows, caches, compiled, fp8, gguf),
        strict=True,
    )
)


@pytest.mark.parametrize("variant, feature", matrix.CELLS)
def test_cell(lab, variant, feature):
    FEATURES[feature](Bench(lab, variant))

"""What can only be seen inside ComfyUI's process, with stand-ins for what needs a GPU.

``python in_process.py COMFYUI MODEL``, with the ComfyUI's own Python and a tiny model's folder; prints JSON.
"""

import collections
import json
import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[2] / "tools"), str(Path(__file__).parents[1] / "helpers")]
from pretend_cuda import replaced  # noqa: E402
from pretended import start  # noqa: E402

CPU = torch.device("cpu")


class Stub:
    """In place of `triton_kernels` and of ComfyUI's ``model_prefetch``: notes its calls."""

    def __init__(self):
        self.calls = []

    def norm_rotate_(self, x, *_rest):
        self.calls.append("norm_rotate_")
        return x

    def norm_modulate(self, x, *_rest):
        self.calls.append("norm_modulate")
        return x

    def make_prefetch_queue(self, queue, device, options):
        self.calls.append(len(queue))
        return queue

    def prefetch_queue_pop(self, queue, device, block):
        self.calls.append(block)


def norms() -> dict[str, bool]:
    """For each case whether Triton's kernels were used; where not, the numbers are those of `blocks`."""
    from cogvideox_fun.model_loading.comfyui import kernels
    from cogvideox_fun.model_loading.networks import blocks

    stub = Stub()
    with replaced(kernels, triton_kernels=lambda *_: stub):
        chosen = kernels.comfy_norms(CPU, torch.float32)
    x, modulation = torch.randn(2, 5, 4, 64), torch.randn(2, 6 * 256)
    rope = blocks.rotation_matrices(torch.polar(torch.ones(5, 32), torch.rand(5, 32)))

    def norm(width: int, **attributes):
        made = torch.nn.LayerNorm(width).requires_grad_(False)
        torch.nn.init.normal_(made.weight)
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    cases = {
        "plain": (x, {}),
        "not contiguous": (torch.randn(2, 4, 5, 64).transpose(1, 2), {}),
        "with a gradient": (x.clone().requires_grad_(), {}),
        "patched": (x, {"weight_function": [lambda weight: weight]}),
        "patched in parts": (x, {"weight_lowvram_function": lambda weight: weight}),
        "forward replaced": (x, {"forward": lambda x: torch.nn.functional.layer_norm(x, x.shape[-1:])}),
    }
    found = {}
    for name, (given, attributes) in cases.items():
        stub.calls.clear()
        small, wide, tokens = norm(64, **attributes), norm(256, **attributes), given.flatten(2)
        rotated = chosen["norm_rotate"](given.clone(memory_format=torch.preserve_format), small, rope)
        if not given.is_contiguous():
            tokens = tokens.transpose(0, 1).contiguous().transpose(0, 1)
        modulated = chosen["norm_modulate"](tokens, wide, modulation, 2)
        found[name] = stub.calls == ["norm_rotate_", "norm_modulate"]
        if not stub.calls:
            torch.testing.assert_close(rotated, blocks.norm_rotate(given.clone(), small, rope))
            torch.testing.assert_close(modulated, blocks.norm_modulate(tokens.clone(), wide, modulation, 2))
        else:
            assert found[name], stub.calls
    packed = norm(64)
    packed.weight.data = packed.weight.data.to(torch.float8_e4m3fn)
    found["packed"] = kernels.is_plain_on(packed, CPU)
    found["on another device"] = kernels.is_plain_on(norm(64).to("meta"), CPU)
    return found


def kitchen() -> float | None:
    """The largest difference of comfy-kitchen's rotation from ours, or None where this ComfyUI has none."""
    from cogvideox_fun.model_loading.comfyui import compat
    from cogvideox_fun.model_loading.networks import blocks

    rotate = getattr(getattr(compat.quant_ops, "ck", None), "apply_rope1_", None)
    if rotate is None:
        return None
    x = torch.randn(2, 4, 5, 64)
    rope = blocks.rotation_matrices(torch.polar(torch.ones(5, 32), torch.rand(5, 32)))
    return (rotate(x.clone(), rope) - blocks.rotate(x.clone(), rope)).abs().max().item()


def fetched() -> dict:
    """The order in which ComfyUI's queue of weights is asked, and how often a call casts each layer's weights."""
    import comfy.ops
    from cogvideox_fun.model_loading.comfyui import compat, model
    from cogvideox_fun.model_loading.networks.config import TransformerConfig
    from tiny_model import TINY, VARIANTS, random_weights

    config = TransformerConfig(**{**TINY, "num_layers": 3}, **VARIANTS["5b"])
    transformer = model.ComfyTransformer(config, operations=comfy.ops.manual_cast).requires_grad_(False)
    transformer.load_state_dict(random_weights(transformer, seed=0))
    blocks, casts, stub, cast = list(transformer.transformer_blocks), collections.Counter(), Stub(), None

    def counted(layer, *args, **options):
        casts[layer] += 1
        return cast(layer, *args, **options)

    inputs = torch.randn(1, 16, 3, 6, 10), torch.tensor([500]), torch.randn(1, 9, 32)
    cast = comfy.ops.cast_bias_weight
    with replaced(compat, model_prefetch=stub), replaced(comfy.ops, cast_bias_weight=counted):
        transformer(*inputs, transformer_options={})
        unasked, casts_of_a_call = len(stub.calls), dict(casts)
        transformer(*inputs, transformer_options={"prefetch_dynamic_vbars": True})
    layers = [layer for layer in transformer.modules() if list(layer.parameters(recurse=False))]
    order = [stub.calls[0], *(None if block is None else blocks.index(block) for block in stub.calls[1:])]
    return {"unasked": unasked, "order": order, "casts": sorted({casts_of_a_call.get(layer, 0) for layer in layers})}


def mapped_from_a_file(weight: torch.Tensor) -> bool:
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5)
        first, last = (int(end, 16) for end in span.split("-"))
        if first <= weight.data_ptr() < last:
            return ".safetensors" in name
    return False


def pinned(patcher, key: str) -> list:
    """Whether a weight lies in a file before ComfyUI pins it, and after ComfyUI refused to; of what is pinned, whether
    it lies in a file and whether its value is kept."""
    import comfy.model_management
    import comfy.utils

    seen = []
    before = comfy.utils.get_attr(patcher.model, key)
    found = [mapped_from_a_file(before)]
    if hasattr(comfy.model_management, "pin_memory"):
        answers = iter([False, True])
        pins = {"MAX_PINNED_MEMORY": 1e12, "pin_memory": lambda weight: seen.append(weight) or next(answers)}
        with replaced(comfy.model_management, **pins):
            patcher.pin_weight_to_device(key)
            found.append(mapped_from_a_file(comfy.utils.get_attr(patcher.model, key)))
            patcher.pin_weight_to_device(key)
        del seen[0]  # the copy that was refused
    return found + [[mapped_from_a_file(weight), bool((weight == before).all())] for weight in seen]


def made_when_loaded(folder: str) -> bool:
    """Whether models are the same where ComfyUI's layers make their parameters when they are loaded, as with dynamic
    VRAM on a GPU."""
    import comfy.memory_management
    import comfy.utils
    from cogvideox_fun.model_loading.comfyui.load import load_model
    from safetensors.torch import load_file

    def loaded() -> dict[str, torch.Tensor]:
        dtypes = "fp8_e4m3fn", "bf16"
        states = {dtype: load_model(folder, dtype).model.diffusion_model.state_dict() for dtype in dtypes}
        return {f"{dtype} {name}": value for dtype, state in states.items() for name, value in state.items()}

    def load_safetensors(path: str):  # ComfyUI's own needs comfy-aimdo's driver then
        return load_file(path), None

    expected = loaded()
    with (
        replaced(comfy.memory_management, aimdo_enabled=True),
        replaced(comfy.utils, load_safetensors=load_safetensors),
    ):
        found = loaded()
    same = [found[name].dtype == value.dtype and torch.equal(found[name].float(), value.float())
            for name, value in expected.items()]  # fmt: skip
    return found.keys() == expected.keys() and all(same)


def positions_kept(patcher) -> list[int]:
    """How many grids' positions are kept before and after the callbacks of unloading, which every patcher calls."""
    import comfy.patcher_extension

    transformer = patcher.model.diffusion_model
    transformer.positions((2, 3, 5), torch.empty(1), transformer.position_options)
    kept = [len(transformer._positions)]
    for callback in patcher.get_all_callbacks(comfy.patcher_extension.CallbacksMP.ON_DETACH):
        callback(patcher, True)
    return [*kept, len(transformer._positions)]


def vae_dtypes(folder: Path) -> list[str]:
    """What the VAE computes in on GPUs with bf16 and fp16, with fp16 alone, and with neither."""
    import comfy.model_management
    from cogvideox_fun.model_loading.comfyui.vae import ComfyVAE

    found = []
    for has in ((True, True), (False, True), (False, False)):
        bf16, fp16 = (lambda *_args, answer=answer, **_options: answer for answer in has)
        with replaced(comfy.model_management, should_use_bf16=bf16, should_use_fp16=fp16):
            found.append(str(ComfyVAE(folder, device=torch.device("cuda")).vae_dtype))
    return found


def default_dtypes(folder: Path) -> dict[str, list[str]]:
    """What a 2B of each dtype is stored in by default: on a GPU with bf16 and fp16, with fp16 alone, with neither."""
    import comfy.model_management
    from cogvideox_fun.model_loading.comfyui.load import CogVideoXFunConfig, choose_dtypes, open_checkpoint, read_file

    found = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        checkpoint = open_checkpoint(folder, read_file)
        tensors = checkpoint.weights.tensors
        tensors.update({name: info._replace(dtype=dtype) for name, info in tensors.items()})
        found[str(dtype)] = []
        for has in ((True, True), (False, True), (False, False)):
            bf16, fp16 = (lambda *_args, answer=answer, **_options: answer for answer in has)
            with replaced(comfy.model_management, should_use_bf16=bf16, should_use_fp16=fp16):
                stored, _ = choose_dtypes(checkpoint, CogVideoXFunConfig(checkpoint), "default")
            found[str(dtype)].append(str(stored))
    return found


def too_large(folder: Path) -> list:
    """Whether a VAE decodes in tiles where whole frames need more memory than the device has, or as much; the log."""
    import comfy.model_management
    from cogvideox_fun.model_loading.comfyui import vae

    own = vae.ComfyVAE(folder, device=CPU, dtype=torch.float32)
    latent = torch.randn(1, 16, 3, 6, 34, generator=torch.Generator().manual_seed(0))
    tiles = own.decode_tiled(latent, tile_x=vae.OOM_TILE // 8, tile_y=vae.OOM_TILE // 8, overlap=vae.OOM_OVERLAP // 8)
    needed, said, found = own._memory_decode(latent.shape, torch.float32), [], []
    for total in (needed - 1, needed):
        with (
            replaced(comfy.model_management, get_total_memory=lambda device, total=total: total),
            replaced(vae.log, warning=lambda message, *values: said.append(message % values)),
        ):
            found.append(torch.equal(own.decode(latent), tiles))
            own.decode_tiled(latent, tile_x=16, tile_y=16, overlap=4)  # tiles of one's own stay as they are
    return [found, said]


def short_of_memory(model) -> list:
    """How many pictures a preview shows where its decoder needs more memory than there is, and what the log says."""
    import comfy.model_management
    from cogvideox_fun.model_loading.comfyui import previews

    class Decoder(torch.nn.Linear):
        def decode_stream(self, *_args):
            raise comfy.model_management.OOM_EXCEPTION("no memory")

    def full(*_args):
        raise comfy.model_management.OOM_EXCEPTION("no memory")

    shown, warnings = [], []
    latents = torch.randn(1, 16, 3, 6, 10)
    with replaced(previews.log, warning=lambda text, *values: warnings.append(text % values)):
        preview = previews.MovingPreview(model, shown.append)
        preview.budget.share = 1e9
        preview.decoder, preview.tried = Decoder(1, 1), True
        for _ in range(2):
            preview(latents, late=True)
        with replaced(previews, find_decoder=lambda model: Path("a.safetensors"), load_tiny_decoder=full):
            previews.MovingPreview(model, shown.append)(latents, late=True)
    return [len(shown), warnings]


def failing(model) -> list:
    """What the log says of three previews where Pillow can write no WebP, and how many were tried."""
    from cogvideox_fun.model_loading.comfyui import previews

    tried, warnings = [], []

    def to_webp(frames, _milliseconds):
        tried.append(len(frames))
        raise KeyError("WEBP")

    preview = previews.MovingPreview(model, lambda picture: None)
    with replaced(previews, to_webp=to_webp), replaced(previews.log, warning=lambda text, **_: warnings.append(text)):
        for _ in range(3):
            preview(torch.randn(1, 16, 3, 6, 10), late=False)
    return [len(tried), warnings]


def affordable(model, seconds: float, first: int = 25) -> dict:
    """What 100 steps of a second show. A coarse preview takes 10 ms and loading a decoder half a second.

    Args:
        seconds: of the decoder for a latent frame; 1 ms for each of its pictures comes to it.
        first: the step from which sharp previews are worth it.
    """
    from cogvideox_fun.model_loading.comfyui import previews
    from cogvideox_fun.model_loading.networks.vae import decode_chunks

    now, written, shown, decoded = [0.0], [], [], []

    def takes(duration: float) -> None:
        now[0] += duration

    class Decoder(torch.nn.Linear):
        def decode_stream(self, latents, to):
            for chunk in decode_chunks(latents.shape[2]):
                takes(seconds * (chunk.stop - chunk.start))
                decoded.append(chunk.stop - chunk.start)
                yield torch.zeros(1, 3, 4 * decoded[-1] - 3 * (not chunk.start), 8, 8)

    def load_decoder(*_):
        takes(0.5)
        return Decoder(1, 1)

    def coarse(latents, _factors):
        takes(0.005)
        return torch.zeros(latents.shape[1], 3, 1, 1)

    def to_webp(frames, milliseconds):
        takes(0.001 * len(frames))
        assert len(frames) == len(milliseconds)
        written.append(len(frames))
        return b""

    preview = previews.MovingPreview(model, lambda picture: shown.append(written[-1]))
    preview.budget = previews.Budget(clock=lambda: now[0])
    with replaced(previews, rgb_frames=coarse, load_decoder=load_decoder, to_webp=to_webp):
        for step in range(100):
            takes(1)
            preview(torch.randn(1, 16, 5, 6, 10), late=step >= first)
    budget = preview.budget
    return {"shown": shown, "decoded": sum(decoded), "spent": budget.spent, "share": budget.spent / budget.elapsed}


def declared(folder: str) -> list[float]:
    """The memory that ComfyUI is told of for a call, with products in bf16 and in fp8."""
    import comfy.ops
    from cogvideox_fun.model_loading.comfyui.load import load_model

    found = []
    for operations in (comfy.ops.manual_cast, comfy.ops.fp8_ops):
        model = load_model(folder, "fp8_e4m3fn", {"custom_operations": operations}).model
        model.manual_cast_dtype = torch.bfloat16
        found.append(model.memory_required([1, 16, 3, 6, 10]))
    return found


def main(comfyui: str, folder: str) -> None:
    start(comfyui)
    from cogvideox_fun.model_loading.comfyui import compat
    from cogvideox_fun.model_loading.comfyui.load import load_model
    from cogvideox_fun.model_loading.comfyui.vae import ComfyVAE

    patcher, vae = load_model(folder), ComfyVAE(Path(folder) / "vae", device=CPU, dtype=torch.float32)
    found = {
        "norms": norms(),
        "kitchen": kitchen(),
        "fetched": fetched(),
        "pinned": [
            pinned(patcher, "diffusion_model.transformer_blocks.0.attn1.to_q.weight"),
            pinned(vae.patcher, "decoder.conv_in.conv.weight"),
        ],
        "made when loaded": made_when_loaded(folder) if compat.model_prefetch else None,
        "declared": declared(folder),
        "positions": positions_kept(patcher),
        "short of memory": short_of_memory(patcher.model),
        "failing": failing(patcher.model),
        "affordable": [affordable(patcher.model, *case) for case in [(0.001, 1), (0.08,), (0.1,), (3.0,)]],
        "vae": vae_dtypes(Path(folder) / "vae"),
        "too large": too_large(Path(folder) / "vae"),
        "2B": default_dtypes(Path(folder)),
    }
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

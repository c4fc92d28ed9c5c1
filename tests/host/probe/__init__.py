"""A node pack for the tests: tensors in and out of a graph, counts of what is called, failures at a chosen place.

Each function is a node; ``check_latent`` would be ProbeCheckLatent.
"""

import contextlib
import copy
import ctypes
import functools
import gc
import json
import operator
import os
import sys
import time
from pathlib import Path

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.patcher_extension
import comfy.samplers
import numpy
import torch
from safetensors.torch import load_file, save_file

PAUSE_SECONDS = 60
NODE_CLASS_MAPPINGS = {}


class AnyType(str):
    def __ne__(self, _other):
        return False


def node(returns: str | None = None, *, output: bool = False, is_list: bool = False, **inputs: str):
    """Make a function a node, from the type that it returns and the types of its inputs; ``*`` fits every type.

    Args:
        is_list: it returns a list, and a node behind it runs once for each value.
        output: run it though no other node needs its result. A node that returns nothing is always run.
    """

    def register(function):
        def execute(_self, **given):
            result = function(**given)
            return (result,) if returns and not isinstance(result, dict | tuple) else result

        name = "Probe" + "".join(word.capitalize() for word in function.__name__.split("_"))
        types = {key: (AnyType(kind) if kind == "*" else kind, {}) for key, kind in inputs.items()}
        members = {
            "RETURN_TYPES": (AnyType(returns) if returns == "*" else returns,) if returns else (),
            "OUTPUT_IS_LIST": (is_list,) if returns else (),
            "FUNCTION": "execute",
            "CATEGORY": "probe",
            "OUTPUT_NODE": output or returns is None,
            "INPUT_TYPES": classmethod(lambda _cls: {"required": types}),
            "VALIDATE_INPUTS": classmethod(lambda _cls, **_inputs: True),
            "execute": execute,
        }
        NODE_CLASS_MAPPINGS[name] = type(name, (), members)
        return function

    return register


def wrapped(model, wrapper):
    """A MODEL whose transformer is called by ``wrapper(executor, x, timestep, ...)``."""
    model = model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
    return model


def write_line(path: str, text) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(f"{text}\n")


# tensors into a graph and out of it


class FixedNoise:
    seed = 0

    def __init__(self, value):
        self.value = value

    def generate_noise(self, _latent):
        return self.value


@node("*", kind="STRING", path="STRING")
def tensor(kind, path):
    value = load_file(path)["value"]
    made = {"LATENT": {"samples": value}, "NOISE": FixedNoise(value), "CONDITIONING": [[value, {}]]}
    return (made.get(kind, value),)


@node("*", text="STRING")
def text(text):
    return text


@node("*", text="STRING")
def number(text):
    return int(text) if text.lstrip("-").isdigit() else float(text)


@node("*", text="STRING")
def numpy_number(text):
    return numpy.float32(text)


@node(name="STRING", there="BOOLEAN")
def late_sampler(name, there):
    """Add or remove a copy of Euler among ComfyUI's samplers, as a pack does that is imported after this one."""
    names = comfy.samplers.KSampler.SAMPLERS
    if there:
        setattr(comfy.k_diffusion.sampling, f"sample_{name}", comfy.k_diffusion.sampling.sample_euler)
        names.append(name)
    else:
        names.remove(name)
    return {"ui": {}}


@node(value="*", path="STRING")
def save(value, path):
    """Save the tensor of a LATENT, IMAGE, MASK, SIGMAS or CONDITIONING."""
    if isinstance(value, dict):
        value = value["samples"]
    elif isinstance(value, list):
        value = value[0][0]
    save_file({"value": value.contiguous().clone()}, path)
    return {"ui": {"text": [str(list(value.shape))]}}


@node("*", is_list=True, first="*", second="*")
def pair(first, second):
    return [first, second]


# a MODEL looked at


@node("MODEL", output=True, model="MODEL", path="STRING")
def model(model, path):
    """The types of its weights and of its computing, and the SIGMAS of four steps."""
    weights = (value for value in model.model.diffusion_model.state_dict().values() if value.numel())
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    save_file({"sigmas": sigmas}, path)
    dtypes = sorted({str(value.dtype) for value in weights})
    return {"ui": {"dtypes": dtypes, "compute": [str(model.model.manual_cast_dtype)]}, "result": (model,)}


@node("MODEL", model="MODEL", path="STRING")
def calls(model, path):
    """Write the shape that the transformer is given in every call."""

    def wrapper(executor, x, *args, **kwargs):
        write_line(path, list(x.shape))
        return executor(x, *args, **kwargs)

    return wrapped(model, wrapper)


@node("MODEL", model="MODEL", path="STRING")
def inputs(model, path):
    """Save what the transformer is given in every call: ``x0``, ``x1`` ... and the timesteps ``t0``, ``t1`` ..."""
    seen = {}

    def wrapper(executor, x, timestep, *args, **kwargs):
        index = len(seen) // 2
        seen[f"x{index}"], seen[f"t{index}"] = x.clone(), timestep.float().clone()
        save_file(seen, path)
        return executor(x, timestep, *args, **kwargs)

    return wrapped(model, wrapper)


@node("IMAGE", model="MODEL", latent="LATENT")
def preview(model, latent):
    """The picture that ComfyUI's samplers would show of a LATENT."""
    import latent_preview
    import numpy
    from comfy.cli_args import LatentPreviewMethod, args

    before, args.preview_method = args.preview_method, LatentPreviewMethod.Latent2RGB
    try:
        previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
    finally:
        args.preview_method = before
    _, picture, _ = previewer.decode_latent_to_preview_image("JPEG", model.model.process_latent_in(latent["samples"]))
    return torch.from_numpy(numpy.array(picture)).float()[None] / 255


# a MODEL or CONDITIONING changed by ComfyUI's own means


def override_attention(model, attention):
    model.model_options["transformer_options"]["optimized_attention_override"] = attention


@node(returns="*", share="*", model="*")
def preview_share(share, model):
    """A MODEL whose previews may take another share of the time of sampling."""
    (previews,) = (module for name, module in sys.modules.items() if name.endswith("comfyui.previews"))
    budget = functools.partial(previews.Budget, share=share)

    def wrapper(executor, *args, **kwargs):
        kept, previews.Budget = previews.Budget, budget
        try:
            return executor(*args, **kwargs)
        finally:
            previews.Budget = kept

    model = model.clone()
    model.add_wrapper(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, wrapper)
    return model


@node("MODEL", model="MODEL", factor="FLOAT")
def attention(model, factor):
    """A MODEL whose attention is multiplied by a factor."""
    model = model.clone()
    override_attention(model, lambda original, *args, **kwargs: original(*args, **kwargs) * factor)
    return model


@node("MODEL", model="MODEL", path="STRING")
def compile(model, path):
    """A MODEL with every block compiled, where a graph break raises, and with the attention that GPUs use."""
    from comfy.ldm.modules.attention import attention_pytorch
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    def backend(graph, _inputs):
        write_line(path, len(graph.graph.nodes))
        return graph.forward

    torch._dynamo.reset()  # it compiles at most eight models in one process
    model = model.clone()
    blocks = range(len(model.model.diffusion_model.transformer_blocks))
    keys = [f"diffusion_model.transformer_blocks.{index}" for index in blocks]
    set_torch_compile_wrapper(model, backend=backend, keys=keys, fullgraph=True)
    override_attention(model, lambda _original, *args, **kwargs: attention_pytorch(*args, **kwargs))
    return model


@node("MODEL", model="MODEL")
def deep_clone(model):
    """The copy of a MODEL that ComfyUI makes for another device, here for the same one."""
    copied = model.deepclone_multigpu(new_load_device=model.load_device)
    assert copied.model is not model.model
    return copied


@node("CONDITIONING", conditioning="CONDITIONING", latent="LATENT")
def concat(conditioning, latent):
    """A latent as a conditioning's concat_latent_image, without a mask, as Control models take it."""
    import node_helpers

    return node_helpers.conditioning_set_values(conditioning, {"concat_latent_image": latent["samples"]})


@node("MODEL")
def foreign_model():
    """A MODEL of ComfyUI's own, of another family."""
    import comfy.model_base
    import comfy.model_patcher
    import comfy.supported_models_base

    config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True})
    made = comfy.model_base.BaseModel(config)
    return comfy.model_patcher.ModelPatcher(made, torch.device("cpu"), torch.device("cpu"))


# failures at a chosen place


@node("MODEL", model="MODEL", step="INT", value="STRING", path="STRING")
def fail(model, step, value, path):
    """A MODEL that answers with one such value from a step on; the timesteps that it is asked for go to the file."""
    seen = []

    def wrapper(executor, x, timesteps, *args, **kwargs):
        timestep = float(timesteps.flatten()[0])
        if timestep not in seen:
            seen.append(timestep)
            write_line(path, timestep)
        answer = executor(x, timesteps, *args, **kwargs)
        if len(seen) >= step:
            answer.view(-1)[0] = float(value)
        return answer

    return wrapped(model, wrapper)


@node("*", value="*", module="STRING", call="INT", path="STRING")
def pause(value, module, call, path):
    """A MODEL, CLIP or VAE that waits, at a call of one of its modules, until ComfyUI is told to interrupt.

    Every call of the module writes a line to the file.
    """
    count = 0

    def hook(_module, _args):
        nonlocal count
        count += 1
        write_line(path, count)
        deadline = time.monotonic() + PAUSE_SECONDS
        while count == call and not comfy.model_management.processing_interrupted():
            if time.monotonic() > deadline:
                raise TimeoutError(f"no interrupt came in {PAUSE_SECONDS} seconds")
            time.sleep(0.01)

    operator.attrgetter(module)(value).register_forward_pre_hook(hook)
    return value


@node("VAE", vae="VAE", times="INT", path="STRING")
def out_of_memory(vae, times, path):
    """A VAE that is out of memory in the second chunk of its first runs; the tile size of each goes to the file."""
    left = times
    vae = copy.copy(vae)
    inner = vae.first_stage_model = copy.copy(vae.first_stage_model)

    def hook_of(chunks):
        def hook(_module, _args):
            if next(chunks):
                raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")

        return hook

    for name, coder, unit in (("encode", inner.encoder, 1), ("decode", inner.decoder, 8)):
        run = getattr(inner, name)

        def limited(source, run=run, coder=coder, unit=unit, **options):
            nonlocal left
            write_line(path, options["tile"] * unit)
            if not left:
                return run(source, **options)
            left -= 1
            handle = coder.conv_in.register_forward_pre_hook(hook_of(iter(range(1000))))
            try:
                return run(source, **options)
            finally:
                handle.remove()

        object.__setattr__(inner, name, limited)
    return vae


@node("*", value="*", folder="STRING")
def shorten(value, folder):
    """Anything, passed on after files are cut to their first bytes in place, as by a download that begins again."""
    for path in Path(folder).rglob("*.*"):
        if path.suffix in (".safetensors", ".gguf"):
            os.truncate(path, 100)
    return value


# the whole process


@node("*", value="*", count="INT")
def collect(value, count):
    """Anything, passed on after Python has looked for reference cycles; another count runs it again."""
    gc.collect()
    return value


@node(count="INT")
def trim(count):
    """Give free memory back to the system, and say how many bytes the tensors that are left have."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}
    return {"ui": {"text": [str(sum(held.values()))]}}


def anonymous_bytes() -> int:
    """RssAnon of ComfyUI's process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


@node(folder="STRING", weight_dtype="STRING")
def loading(folder, weight_dtype):
    """Anonymous bytes that loading a model folder takes, over its transformer's file."""
    (load,) = (module.load_model for name, module in sys.modules.items() if name.endswith("comfyui.load"))
    (file,) = Path(folder, "transformer").glob("*.safetensors")
    load(folder, weight_dtype)  # what stays for good: modules, kernels, buffers
    gc.collect()
    before = anonymous_bytes()
    model = load(folder, weight_dtype)
    assert model.model_size() > 0
    return {"ui": {"text": [str((anonymous_bytes() - before) / file.stat().st_size)]}}


FORBIDDEN = (
    *("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "urllib.", "http.", "ftplib."),
    *("subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "webbrowser."),
    *("os.remove", "os.rename", "os.symlink", "os.link", "os.truncate", "os.chmod", "shutil.", "pickle.find_class"),
)
watching = {"path": ""}


def listen(event: str, args: tuple) -> None:
    """Write down connections, processes, pickles, changed files, and the files that are read, written and executed."""
    if not watching["path"]:
        return
    if event.startswith(FORBIDDEN):
        kind, what = event, str(args)[:300]
    elif event == "open" and isinstance(args[1], str):
        kind, what = "write" if set(args[1]) & set("wax+") else "read", str(args[0])
    elif event == "exec":
        kind, what = "exec", args[0].co_filename
    else:
        return
    path, watching["path"] = watching["path"], ""  # the line below opens a file itself
    with contextlib.suppress(OSError):
        write_line(path, json.dumps([kind, what]))
    watching["path"] = path


@node(path="STRING", count="INT")
def watch(path, count):
    """Listen from now on, into a file; without one, no longer."""
    if "hooked" not in watching:
        sys.addaudithook(listen)
        watching["hooked"] = True
    watching["path"] = path
    return {"ui": {"text": [path]}}


from . import video_masks  # noqa: E402, F401  its nodes are registered, too

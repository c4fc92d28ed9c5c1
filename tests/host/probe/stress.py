"""Probes that break a run at a chosen place."""

import copy
import ctypes
import gc
import operator
import os
import time
from pathlib import Path

import torch

PAUSE_SECONDS = 60


class AnyType(str):
    def __ne__(self, _other):
        return False


class ProbeFail:
    """A MODEL whose transformer answers with a value from a step on; the timesteps it is asked for go to a file."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "fail"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        inputs = {"model": ("MODEL",), "step": ("INT", {"default": 1}), "value": ("STRING", {"default": "nan"})}
        return {"required": {**inputs, "path": ("STRING", {"default": ""})}}

    def fail(self, model, step, value, path):
        import comfy.patcher_extension

        seen = []

        def wrapper(executor, x, timesteps, *args, **kwargs):
            timestep = float(timesteps.flatten()[0])
            if timestep not in seen:
                seen.append(timestep)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(f"{timestep}\n")
            answer = executor(x, timesteps, *args, **kwargs)
            if len(seen) >= step:
                answer.view(-1)[0] = float(value)  # one value of the video
            return answer

        model = model.clone()
        model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
        return (model,)


class ProbePause:
    """A MODEL, CLIP or VAE that waits, at a call of one of its modules, until the host is told to interrupt.

    Every call of the module writes a line to the file.
    """

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "pause"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        text = ("STRING", {"default": ""})
        inputs = {"value": (AnyType("*"), {}), "module": text, "call": ("INT", {"default": 1}), "path": text}
        return {"required": inputs}

    @classmethod
    def VALIDATE_INPUTS(cls, **_inputs):
        return True

    def pause(self, value, module, call, path):
        import comfy.model_management

        calls = 0

        def hook(_module, _args):
            nonlocal calls
            calls += 1
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{calls}\n")
            deadline = time.monotonic() + PAUSE_SECONDS
            while calls == call and not comfy.model_management.processing_interrupted():
                if time.monotonic() > deadline:
                    raise TimeoutError(f"no interrupt came in {PAUSE_SECONDS} seconds")
                time.sleep(0.01)

        operator.attrgetter(module)(value).register_forward_pre_hook(hook)
        return (value,)


class ProbeOutOfMemory:
    """A VAE whose first runs break off at their second chunk; every run writes its tile size in pixels to the file."""

    RETURN_TYPES = ("VAE",)
    FUNCTION = "shrink"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        inputs = {"vae": ("VAE",), "times": ("INT", {"default": 1}), "path": ("STRING", {"default": ""})}
        return {"required": inputs}

    def shrink(self, vae, times, path):
        import comfy.model_management

        left = times
        vae = copy.copy(vae)
        model = vae.first_stage_model = copy.copy(vae.first_stage_model)
        for name, coder, unit in (("encode", model.encoder, 1), ("decode", model.decoder, 8)):
            run = getattr(model, name)

            def limited(source, run=run, coder=coder, unit=unit, **options):
                nonlocal left
                with open(path, "a", encoding="utf-8") as file:
                    file.write(f"{options['tile'] * unit}\n")
                chunks = iter(range(1000))

                def hook(_module, _args):
                    if next(chunks):
                        raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")

                if not left:
                    return run(source, **options)
                left -= 1
                handle = coder.conv_in.register_forward_pre_hook(hook)
                try:
                    return run(source, **options)
                finally:
                    handle.remove()

            object.__setattr__(model, name, limited)
        return (vae,)


class ProbeText:
    """A text that fits every input."""

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "give"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": ""})}}

    def give(self, text):
        return (text,)


class ProbeNumber:
    """A number written as Python, that fits every input."""

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "give"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"text": ("STRING", {"default": "0"})}}

    def give(self, text):
        return (int(text) if text.lstrip("-").isdigit() else float(text),)


class ProbeShorten:
    """Anything, passed on once files are cut to their first bytes in place, as by a download that begins again."""

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "shorten"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (AnyType("*"), {}), "folder": ("STRING", {"default": ""})}}

    @classmethod
    def VALIDATE_INPUTS(cls, **_inputs):
        return True

    def shorten(self, value, folder):
        for path in Path(folder).rglob("*.*"):
            if path.suffix in (".safetensors", ".gguf"):
                os.truncate(path, 100)
        return (value,)


class ProbeCollect:
    """Anything, passed on once Python has looked for reference cycles; the count is there to run it again."""

    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "collect"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (AnyType("*"), {}), "count": ("INT", {"default": 0})}}

    @classmethod
    def VALIDATE_INPUTS(cls, **_inputs):
        return True

    def collect(self, value, count):
        gc.collect()
        return (value,)


class ProbeTrim:
    """Hand the memory that nothing holds back to the system, and say how many bytes the tensors that are left have."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "trim"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"count": ("INT", {"default": 0})}}

    def trim(self, count):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        tensors = [found for found in gc.get_objects() if issubclass(type(found), torch.Tensor)]
        held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t.device.type == "cpu"}
        return {"ui": {"text": [str(sum(held.values()))]}}

"""A custom node pack for the tests: tensors in and out of a real host's graph. Linked in beside the pack."""

import comfy.samplers
import torch
from safetensors.torch import load_file, save_file

from .memory import ProbeLoading
from .stress import (
    AnyType,
    ProbeCollect,
    ProbeFail,
    ProbeNumber,
    ProbeOutOfMemory,
    ProbePause,
    ProbeShorten,
    ProbeText,
    ProbeTrim,
)


def read(path: str, key: str) -> torch.Tensor:
    return load_file(path)[key]


class _Load:
    FUNCTION = "load"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"path": ("STRING", {"default": ""}), "key": ("STRING", {"default": ""})}}


class ProbeLatent(_Load):
    RETURN_TYPES = ("LATENT",)

    def load(self, path, key):
        return ({"samples": read(path, key)},)


class ProbeImage(_Load):
    RETURN_TYPES = ("IMAGE",)

    def load(self, path, key):
        return (read(path, key),)


class ProbeMask(_Load):
    RETURN_TYPES = ("MASK",)

    def load(self, path, key):
        return (read(path, key),)


class ProbeConditioning(_Load):
    RETURN_TYPES = ("CONDITIONING",)

    def load(self, path, key):
        return ([[read(path, key), {}]],)


class FixedNoise:
    seed = 0

    def __init__(self, noise):
        self.noise = noise

    def generate_noise(self, _latent):
        return self.noise


class ProbeNoise(_Load):
    RETURN_TYPES = ("NOISE",)

    def load(self, path, key):
        return (FixedNoise(read(path, key)),)


class ProbeSave:
    """Save the tensor of a LATENT, IMAGE, MASK, SIGMAS or CONDITIONING."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "save"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"value": (AnyType("*"), {}), "path": ("STRING", {"default": ""})}}

    @classmethod
    def VALIDATE_INPUTS(cls, **_inputs):
        return True

    def save(self, value, path):
        if isinstance(value, dict):
            value = value["samples"]
        elif isinstance(value, list):
            value = value[0][0]
        save_file({"value": value.contiguous().clone()}, path)
        return {"ui": {"text": [str(list(value.shape))]}}


class ProbeModel:
    """What a MODEL is, and how often its transformer is called while another node samples with it."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "describe"
    CATEGORY = "probe"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "path": ("STRING", {"default": ""})}}

    def describe(self, model, path):
        weights = {k: v for k, v in model.model.diffusion_model.state_dict().items() if v.numel()}
        dtypes = sorted({str(v.dtype) for v in weights.values()})
        compute = str(model.model.manual_cast_dtype)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
        save_file({"sigmas": sigmas}, path)
        return {"ui": {"dtypes": dtypes, "compute": [compute]}, "result": (model,)}


class ProbeCalls:
    """Count the transformer's calls, by the host's own DIFFUSION_MODEL wrappers, into a file per call."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "count"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "path": ("STRING", {"default": ""})}}

    def count(self, model, path):
        import comfy.patcher_extension

        def wrapper(executor, x, *args, **kwargs):
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{list(x.shape)}\n")
            return executor(x, *args, **kwargs)

        model = model.clone()
        model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
        return (model,)


class ProbeInputs:
    """Save what the transformer is given in every call: ``x0``, ``x1`` ... and the timesteps ``t0``, ``t1`` ..."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "watch"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "path": ("STRING", {"default": ""})}}

    def watch(self, model, path):
        import comfy.patcher_extension

        seen = {}

        def wrapper(executor, x, timestep, *args, **kwargs):
            number = len(seen) // 2
            seen[f"x{number}"], seen[f"t{number}"] = x.clone(), timestep.float().clone()
            save_file(seen, path)
            return executor(x, timestep, *args, **kwargs)

        model = model.clone()
        model.add_wrapper(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, wrapper)
        return (model,)


class ProbeAttention:
    """A MODEL whose attention another node has replaced, by the host's own option: twice the host's."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "replace"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "factor": ("FLOAT", {"default": 2.0})}}

    def replace(self, model, factor):
        def attention(original, *args, **kwargs):
            return original(*args, **kwargs) * factor

        model = model.clone()
        model.model_options["transformer_options"]["optimized_attention_override"] = attention
        return (model,)


class ProbeCompile:
    """A MODEL with every block compiled by the host's own helper, where a break raises, and with cards' attention."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "compile"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "path": ("STRING", {"default": ""})}}

    def compile(self, model, path):
        from comfy.ldm.modules.attention import attention_pytorch
        from comfy_api.torch_helpers import set_torch_compile_wrapper

        def attention(_original, *args, **kwargs):
            return attention_pytorch(*args, **kwargs)

        def backend(graph, _inputs):
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{len(graph.graph.nodes)}\n")
            return graph.forward

        torch._dynamo.reset()  # eight models compiled in one process are as many as it takes
        model = model.clone()
        blocks = range(len(model.model.diffusion_model.transformer_blocks))
        keys = [f"diffusion_model.transformer_blocks.{index}" for index in blocks]
        set_torch_compile_wrapper(model, backend=backend, keys=keys, fullgraph=True)
        model.model_options["transformer_options"]["optimized_attention_override"] = attention
        return (model,)


class ProbePreview:
    """The picture that the host's sampler would show of a LATENT, by its own previewer, as an IMAGE."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "show"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "latent": ("LATENT",)}}

    def show(self, model, latent):
        import latent_preview
        import numpy
        from comfy.cli_args import LatentPreviewMethod, args

        before, args.preview_method = args.preview_method, LatentPreviewMethod.Latent2RGB
        try:
            previewer = latent_preview.get_previewer(model.load_device, model.model.latent_format)
        finally:
            args.preview_method = before
        _, picture, _ = previewer.decode_latent_to_preview_image(
            "JPEG", model.model.process_latent_in(latent["samples"])
        )
        return (torch.from_numpy(numpy.array(picture)).float()[None] / 255,)


class ProbeDeepClone:
    """The copy of a MODEL that the host makes for another device, here for the same one."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "copy"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",)}}

    def copy(self, model):
        copied = model.deepclone_multigpu(new_load_device=model.load_device)
        assert copied.model is not model.model
        return (copied,)


class ProbeSmallCard:
    """A VAE on a card so small that only tiles fit: whole frames run out of memory."""

    RETURN_TYPES = ("VAE",)
    FUNCTION = "shrink"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"vae": ("VAE",)}}

    def shrink(self, vae):
        import copy

        import comfy.model_management

        vae = copy.copy(vae)
        model = vae.first_stage_model = copy.copy(vae.first_stage_model)
        for name in ("encode", "decode"):
            run = getattr(model, name)

            def limited(source, run=run, **options):
                if not options["tile"]:
                    raise comfy.model_management.OOM_EXCEPTION("CUDA out of memory")
                return run(source, **options)

            object.__setattr__(model, name, limited)
        return (vae,)


class ProbeConcat:
    """A latent as a conditioning's concat_latent_image, without a mask, as Control models take it."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "concat"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"conditioning": ("CONDITIONING",), "latent": ("LATENT",)}}

    def concat(self, conditioning, latent):
        import node_helpers

        values = {"concat_latent_image": latent["samples"]}
        return (node_helpers.conditioning_set_values(conditioning, values),)


class ProbeForeignModel:
    """A MODEL of the host's own, of another family."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "probe"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}

    def make(self):
        import comfy.model_base
        import comfy.model_patcher
        import comfy.supported_models_base

        config = comfy.supported_models_base.BASE({"disable_unet_model_creation": True})
        model = comfy.model_base.BaseModel(config)
        return (comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu")),)


NODE_CLASS_MAPPINGS = {
    c.__name__: c
    for c in (
        ProbeLatent,
        ProbeImage,
        ProbeMask,
        ProbeConditioning,
        ProbeNoise,
        ProbeSave,
        ProbeModel,
        ProbeCalls,
        ProbeInputs,
        ProbeConcat,
        ProbeAttention,
        ProbeCompile,
        ProbePreview,
        ProbeDeepClone,
        ProbeSmallCard,
        ProbeForeignModel,
        ProbeLoading,
        ProbeCollect,
        ProbeFail,
        ProbeOutOfMemory,
        ProbeNumber,
        ProbePause,
        ProbeShorten,
        ProbeText,
        ProbeTrim,
    )
}

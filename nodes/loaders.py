"""Model files to MODEL, CLIP and VAE."""

import logging
from collections.abc import Callable
from pathlib import Path

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..model_loading.comfyui.clip import load_clip
from ..model_loading.comfyui.compat import can_add_nodes
from ..model_loading.comfyui.load import WEIGHT_DTYPES, load_model
from ..model_loading.comfyui.lora import add_lora
from ..model_loading.comfyui.vae import load_vae
from ..model_loading.errors import shown
from ..model_loading.files import checkpoint
from . import common
from .messages import show_message
from .model_files import FIRST, LORAS, MODELS, OWN_MODELS, TEXT_ENCODERS, VAES, base_of, load_once, loaded

NANO = "nano is made for 128 x 128 pixels and 17 frames; the (nano) templates say which words it knows"

log = logging.getLogger(__name__)


class ModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "loaders",
            "checkpoint loader, load diffusion model, load video model, cogvideox loader, LoadCogVideoXFunModel, "
            "DownloadAndLoadCogVideoModel, CogVideoXModelLoader, DownloadAndLoadCogVideoGGUFModel",
            node_id="CogVideoXFunModelLoader",
            display_name="Load CogVideoX-Fun Model",
            description="Load a CogVideoX-Fun model folder, or a single transformer file, as MODEL, CLIP and VAE.",
            inputs=[
                MODELS.input(
                    "model",
                    "A model folder in models/CogVideoX_Fun (or Fun_Models, VideoX_Fun, CogVideo, diffusers), or a "
                    "single file in models/diffusion_models.",
                ),
                common.choice(
                    "weight_dtype",
                    WEIGHT_DTYPES,
                    "How the weights are stored. default: what suits the file and your GPU. fp8 halves the memory and "
                    "loses some quality. 5B models overflow in fp16, so they compute in bf16 or fp32.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="For the sampler and all nodes that take a MODEL."),
                io.Clip.Output(
                    display_name="CLIP", tooltip="For CLIP Text Encode. Empty if there is no text_encoder."
                ),
                io.Vae.Output(display_name="VAE", tooltip="Encodes and decodes videos. Empty if there is no vae."),
            ],
            enable_expand=True,
        )

    @classmethod
    def validate_inputs(cls, model):
        return MODELS.check(model)

    @classmethod
    def fingerprint_inputs(cls, model="", **_inputs):
        return MODELS.fingerprint(model, base_of)

    @classmethod
    def execute(cls, model=FIRST, weight_dtype="default") -> io.NodeOutput:
        common.one_of("weight_dtype", weight_dtype, WEIGHT_DTYPES)
        name, path = MODELS.choose(model)
        opened = checkpoint.open_checkpoint(path)
        # a loader is added for parts of the chosen folder alone, since it finds them by the name in its menu
        graph = GraphBuilder() if can_add_nodes() and opened.base is None else None
        clip = vae = None
        if opened.text_encoder is not None:
            parts = opened.text_encoder, opened.tokenizer
            clip = load_part(TextEncoderLoader, f"{name}/text_encoder", graph, load_clip, *parts)
        else:
            log.warning("%s has no text_encoder: load one with Load CogVideoX-Fun Text Encoder", shown(path))
        if opened.vae is not None:
            vae = load_part(VAELoader, f"{name}/vae", graph, load_vae, opened.vae)
        else:
            log.warning("%s has no vae: load one with Load CogVideoX-Fun VAE", shown(path))
        if path.is_relative_to(OWN_MODELS):
            show_message(NANO)
        expanded = graph.finalize() if graph and graph.nodes else None
        return io.NodeOutput(load_model(path, weight_dtype), clip, vae, expand=expanded)


def load_part(loader: type[io.ComfyNode], name: str, graph: GraphBuilder | None, load: Callable, *paths: Path | None):
    """What ``load`` made of a part's files before. Otherwise add the part's loader to the running graph.

    Without a graph, load it now. ComfyUI keeps the results of added nodes when another input of the node that added
    them changes.
    """
    found = loaded(load, *paths)
    if found is not None:
        return found
    if graph is None:
        return load_once(load, *paths)
    schema = loader.GET_SCHEMA()
    return graph.node(schema.node_id, **{schema.inputs[0].id: name}).out(0)


class TextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "loaders",
            "t5, t5xxl, clip loader, load clip, text encoder, CLIPLoader",
            node_id="CogVideoXFunTextEncoderLoader",
            display_name="Load CogVideoX-Fun Text Encoder",
            description="Load a T5-XXL file, or the text encoder and the tokenizer of a model folder, as CLIP.",
            inputs=[
                TEXT_ENCODERS.input(
                    "text_encoder",
                    "A T5-XXL safetensors file in models/text_encoders, or the text_encoder of a model folder.",
                )
            ],
            outputs=[io.Clip.Output(display_name="CLIP", tooltip="For CLIP Text Encode.")],
        )

    @classmethod
    def validate_inputs(cls, text_encoder):
        return TEXT_ENCODERS.check(text_encoder)

    @classmethod
    def fingerprint_inputs(cls, text_encoder="", **_inputs):
        return TEXT_ENCODERS.fingerprint(text_encoder, tokenizer_of)

    @classmethod
    def execute(cls, text_encoder=FIRST) -> io.NodeOutput:
        _, path = TEXT_ENCODERS.choose(text_encoder)
        return io.NodeOutput(load_once(load_clip, path, tokenizer_of(path)))


def tokenizer_of(path):
    """The tokenizer folder beside a text encoder's folder, if there is one."""
    return checkpoint.tokenizer_beside(path) if path is not None and path.is_dir() else None


class VAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "loaders",
            "load vae, vae loader, CogVideoXVAELoader, 3d vae, taehv, taecvx, tiny vae, draft",
            node_id="CogVideoXFunVAELoader",
            display_name="Load CogVideoX-Fun VAE",
            description="Load a CogVideoX VAE, which works on a few frames at a time, or a small decoder for drafts.",
            inputs=[
                VAES.input(
                    "vae_name",
                    "A CogVideoX VAE in models/vae, or the vae of a model folder. Or taecvx in models/vae_approx: it "
                    "decodes drafts quickly, and can't encode.",
                )
            ],
            outputs=[io.Vae.Output(display_name="VAE", tooltip="Encodes and decodes videos.")],
        )

    @classmethod
    def validate_inputs(cls, vae_name):
        return VAES.check(vae_name)

    @classmethod
    def fingerprint_inputs(cls, vae_name="", **_inputs):
        return VAES.fingerprint(vae_name)

    @classmethod
    def execute(cls, vae_name=FIRST) -> io.NodeOutput:
        _, path = VAES.choose(vae_name)
        return io.NodeOutput(load_once(load_vae, path))


class LoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "loaders",
            "lora loader, load lora, reward lora, LoadCogVideoXFunLora, CogVideoLoraSelect, CogVideoLoraSelectComfy",
            node_id="CogVideoXFunLoraLoader",
            display_name="Load CogVideoX-Fun LoRA",
            description="Add a CogVideoX LoRA, in any key style, to a MODEL. For several LoRAs, chain this node.",
            inputs=[
                common.model_input(),
                LORAS.input("lora_name", "A safetensors file in models/loras."),
                common.number(
                    "strength",
                    (1.0, -100.0, 100.0, 0.01),
                    "Strength of the LoRA; 0 is off, negative values invert it.",
                ),
            ],
            outputs=[common.model_output()],
        )

    @classmethod
    def validate_inputs(cls, lora_name):
        return LORAS.check(lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name="", **_inputs):
        return LORAS.fingerprint(lora_name)

    @classmethod
    def execute(cls, model, lora_name=FIRST, strength=1.0) -> io.NodeOutput:
        common.check_numbers(strength=strength)
        _, path = LORAS.choose(lora_name)
        return io.NodeOutput(add_lora(model, path, strength))

"""Model files to MODEL, CLIP and VAE."""

import logging
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder
from comfy_execution.utils import get_executing_context

from ..model_loading.comfyui.clip import load_clip
from ..model_loading.comfyui.load import WEIGHT_DTYPES, load_model
from ..model_loading.comfyui.lora import add_lora
from ..model_loading.comfyui.vae import load_vae
from ..model_loading.errors import listed, shown
from ..model_loading.files import checkpoint
from ..model_loading.files import t5 as text_encoder
from . import common

log = logging.getLogger(__name__)


def check(found: dict[str, Path], name: str | None, what: str, kind: str) -> bool | str:
    """Whether a name is listed, else what to say; see `common.choose`. The host gives None for a name that comes from
    another node, which `execute` checks."""
    return True if name is None or name in found else common.missing(found, name, what, kind)


def fingerprint(found: dict[str, Path], name: str | None) -> str:
    """Changes when what a name stands for is replaced; for a name from another node, when anything listed is."""
    return (
        common.fingerprint(found.get(name)) if name is not None else ";".join(map(common.fingerprint, found.values()))
    )


class ModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunModelLoader",
            search_aliases=(
                "checkpoint loader",
                "load diffusion model",
                "load video model",
                "cogvideox loader",
                "LoadCogVideoXFunModel",
                "DownloadAndLoadCogVideoModel",
                "CogVideoXModelLoader",
                "DownloadAndLoadCogVideoGGUFModel",
            ),
            display_name="Load CogVideoX-Fun Model",
            category=f"{common.CATEGORY}/loaders",
            description="Load a CogVideoX-Fun model folder, or a single transformer file, as MODEL, CLIP and VAE.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(common.find_models()) or [common.NO_MODEL],
                    tooltip="A repository in models/CogVideoX_Fun (or Fun_Models, VideoX_Fun, CogVideo, "
                    "diffusers), or a single file in models/diffusion_models. A folder without text encoder or "
                    "VAE still gives the MODEL.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="How the weights are stored. default: what suits the file and your card. fp8 halves the "
                    "memory at some cost in quality; norms, embeddings and the output layer stay as in the file. fp16 "
                    "overflows in the 5B models, which compute in bf16.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL", tooltip="For the sampler and every node that takes a MODEL."),
                io.Clip.Output(display_name="CLIP", tooltip="For CLIP Text Encode; empty without a text_encoder."),
                io.Vae.Output(display_name="VAE", tooltip="For encoding and decoding videos; empty without a vae."),
            ],
            enable_expand=True,
        )

    @classmethod
    def validate_inputs(cls, model):
        return check(common.find_models(), model, "model", "diffusion_models")

    @classmethod
    def fingerprint_inputs(cls, model="", **_inputs):
        return fingerprint(common.find_models(), model)

    @classmethod
    def execute(cls, model=common.FIRST, weight_dtype="default") -> io.NodeOutput:
        common.one_of("weight_dtype", weight_dtype, WEIGHT_DTYPES)
        found = common.find_models()
        path = common.choose(found, model, "model", "diffusion_models")
        opened, name = checkpoint.open_checkpoint(path), next(name for name in found if found[name] == path)
        # --cache-none keeps nothing, and on 0.3.64 it can't run what a node adds to the graph
        graph = GraphBuilder() if get_executing_context() and not args.cache_none else None
        clip = vae = None
        if opened.text_encoder is not None:
            clip = common.held(load_clip, opened.text_encoder, opened.tokenizer)
            clip = clip or load_part(TextEncoderLoader, f"{name}/text_encoder", graph)
        else:
            log.warning("%s has no text_encoder: load one with Load CogVideoX-Fun Text Encoder", shown(path))
        if opened.vae is not None:
            vae = common.held(load_vae, opened.vae) or load_part(VAELoader, f"{name}/vae", graph)
        else:
            log.warning("%s has no vae: load one with Load CogVideoX-Fun VAE", shown(path))
        expanded = graph.finalize() if graph and graph.nodes else None
        return io.NodeOutput(load_model(path, weight_dtype), clip, vae, expand=expanded)


def load_part(loader: type[io.ComfyNode], name: str, graph: GraphBuilder | None):
    """A part of a model folder by its own loader: as a node of the graph that ComfyUI is running, whose output it
    keeps when another input of the model's loader changes; without a graph, loaded now."""
    if graph is None:
        return loader.execute(name).result[0]
    schema = loader.GET_SCHEMA()
    return graph.node(schema.node_id, **{schema.inputs[0].id: name}).out(0)


class TextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunTextEncoderLoader",
            search_aliases=("t5", "t5xxl", "clip loader", "load clip", "text encoder", "CLIPLoader"),
            display_name="Load CogVideoX-Fun Text Encoder",
            category=f"{common.CATEGORY}/loaders",
            description="Load a T5-XXL file, or a model folder's text encoder with its own tokenizer, as CLIP. "
            "Prompts are padded and cut to 226 tokens.",
            inputs=[
                io.Combo.Input(
                    "text_encoder",
                    options=list(cls.found()) or [common.NO_MODEL],
                    tooltip="A T5-XXL safetensors file in models/text_encoders (fp16, bf16 or fp8), or the "
                    "text_encoder of a model folder.",
                )
            ],
            outputs=[io.Clip.Output(display_name="CLIP", tooltip="For CLIP Text Encode.")],
        )

    @staticmethod
    def found():
        return common.find_parts("text_encoder", "text_encoders", text_encoder.is_t5_file)

    @classmethod
    def validate_inputs(cls, text_encoder):
        return check(cls.found(), text_encoder, "text encoder", "text_encoders")

    @classmethod
    def fingerprint_inputs(cls, text_encoder="", **_inputs):
        found = cls.found()
        path = found.get(text_encoder)
        tokenizer = checkpoint.tokenizer_beside(path) if path is not None and path.is_dir() else None
        return fingerprint(found, text_encoder) + (common.fingerprint(tokenizer) if tokenizer else "")

    @classmethod
    def execute(cls, text_encoder=common.FIRST) -> io.NodeOutput:
        path = common.choose(cls.found(), text_encoder, "text encoder", "text_encoders")
        tokenizer = checkpoint.tokenizer_beside(path) if path.is_dir() else None
        return io.NodeOutput(common.once(load_clip, path, tokenizer))


class VAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunVAELoader",
            search_aliases=("load vae", "vae loader", "CogVideoXVAELoader", "3d vae"),
            display_name="Load CogVideoX-Fun VAE",
            category=f"{common.CATEGORY}/loaders",
            description="Load a CogVideoX VAE that streams a video in the authors' chunks.",
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=list(cls.found()) or [common.NO_MODEL],
                    tooltip="A CogVideoX VAE in models/vae, or the vae of a model folder.",
                )
            ],
            outputs=[io.Vae.Output(display_name="VAE", tooltip="For encoding and decoding videos.")],
        )

    @staticmethod
    def found():
        return common.find_parts("vae", "vae", checkpoint.is_vae_file)

    @classmethod
    def validate_inputs(cls, vae_name):
        return check(cls.found(), vae_name, "VAE", "vae")

    @classmethod
    def fingerprint_inputs(cls, vae_name="", **_inputs):
        return fingerprint(cls.found(), vae_name)

    @classmethod
    def execute(cls, vae_name=common.FIRST) -> io.NodeOutput:
        return io.NodeOutput(common.once(load_vae, common.choose(cls.found(), vae_name, "VAE", "vae")))


class LoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunLoraLoader",
            search_aliases=(
                "lora loader",
                "load lora",
                "reward lora",
                "LoadCogVideoXFunLora",
                "CogVideoLoraSelect",
                "CogVideoLoraSelectComfy",
            ),
            display_name="Load CogVideoX-Fun LoRA",
            category=f"{common.CATEGORY}/loaders",
            description="Add a LoRA to a MODEL, in any style that CogVideoX LoRAs come in. Chain several for several "
            "LoRAs.",
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX-Fun model."),
                io.Combo.Input(
                    "lora_name",
                    options=list(common.single_files("loras")) or [common.NO_MODEL],
                    tooltip="A safetensors file in models/loras.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-100.0,
                    max=100.0,
                    step=0.01,
                    tooltip="What the LoRA's change is multiplied by; 0 is none, below 0 its opposite.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler.")],
        )

    @staticmethod
    def missing(files, name):
        """What to say of a LoRA that is not found."""
        if not files:
            problem = "no LoRA found"
        elif not name:
            problem = f"no LoRA is chosen, expected one of those found ({listed(files)})"
        else:
            problem = f"the LoRA {shown(name)} is not among those found ({listed(files)})"
        folders = ", ".join(folder_paths.get_folder_paths("loras"))
        return f"{problem}: put a safetensors file into {folders}, then refresh"

    @classmethod
    def validate_inputs(cls, lora_name):
        files = common.single_files("loras")
        return True if lora_name is None or lora_name in files else cls.missing(files, lora_name)

    @classmethod
    def fingerprint_inputs(cls, lora_name="", **_inputs):
        return fingerprint(common.single_files("loras"), lora_name)

    @classmethod
    def execute(cls, model, lora_name=common.FIRST, strength=1.0) -> io.NodeOutput:
        common.check_numbers(strength=strength)
        files = common.single_files("loras")
        if lora_name is common.FIRST:
            lora_name = next(iter(files), "")
        if not isinstance(lora_name, str) or lora_name not in files:
            raise ValueError(cls.missing(files, lora_name))
        return io.NodeOutput(add_lora(model, files[lora_name], strength))

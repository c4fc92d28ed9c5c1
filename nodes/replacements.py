"""Nodes of other packs that one node of this pack replaces, for ComfyUI's own replacement of missing nodes.

Only nodes are listed that work without a change to others. Some settings are lost: ``GPU_memory_mode`` of the model
loader (with qfloat8 it is ``weight_dtype`` fp8_e4m3fn here), ``precision`` of LoadCogVideoX_Fun_Model, and the tiles
of the decoder, which decodes without tiles. tools/convert_workflow.py keeps these and does the rest.
"""

from ..model_loading.comfyui import compat

MODEL = "CogVideoXFunModelLoader"
LORA = "CogVideoXFunLoraLoader"

# old id, new id, {old input: new input}, {new input: value}, old widgets in the order in which they are saved
ONE_TO_ONE = [
    (
        "LoadCogVideoXFunModel",
        MODEL,
        {"model": "model", "precision": "weight_dtype"},
        {},
        "model model_type GPU_memory_mode precision",
    ),
    ("LoadCogVideoX_Fun_Model", MODEL, {"model": "model"}, {"weight_dtype": "default"}, "model"),
    *(
        (
            old,
            LORA,
            {"cogvideoxfun_model": "model", "lora_name": "lora_name", "strength_model": "strength"},
            {},
            widgets,
        )
        for old, widgets in (
            ("LoadCogVideoXFunLora", "lora_name strength_model lora_cache"),
            ("LoadCogVideoX_Fun_Lora", "lora_name strength_model"),
        )
    ),
    ("CogVideoXVAELoader", "CogVideoXFunVAELoader", {"model_name": "vae_name"}, {}, "model_name precision"),
    (
        "CogVideoDecode",
        "CogVideoXFunVAEDecode",
        {"vae": "vae", "samples": "latent"},
        {"tile_size": 0, "overlap": 64},
        "",
    ),
]


async def register() -> None:
    """Tell ComfyUI, where it has node replacement. The first output replaces the first."""
    for old, new, inputs, values, widgets in ONE_TO_ONE:
        await compat.replace_node(old, new, inputs, values, widgets.split())

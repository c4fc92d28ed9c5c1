"""Which variant a transformer is, from the names and shapes of its tensors and from its configuration."""

import re
from collections.abc import Mapping

from ..errors import CheckpointError, listed
from ..networks.config import TransformerConfig

Shapes = Mapping[str, tuple[int, ...]]

# ComfyUI's own names of a CogVideoX transformer's parameters -> the hub's.
NATIVE_NAMES = (
    (r"^blocks\.(\d+)\.(q|k|v)\.", r"transformer_blocks.\1.attn1.to_\2."),
    (r"^blocks\.(\d+)\.(norm_q|norm_k)\.", r"transformer_blocks.\1.attn1.\2."),
    (r"^blocks\.(\d+)\.attn_out\.", r"transformer_blocks.\1.attn1.to_out.0."),
    (r"^blocks\.(\d+)\.ff_proj\.", r"transformer_blocks.\1.ff.net.0.proj."),
    (r"^blocks\.(\d+)\.ff_out\.", r"transformer_blocks.\1.ff.net.2."),
    (r"^blocks\.(\d+)\.", r"transformer_blocks.\1."),
    (r"^(time|ofs)_embedding_linear_(\d)\.", r"\1_embedding.linear_\2."),
)


def hub_name(native: str) -> str:
    """A parameter's name on the hub from ComfyUI's own; a hub name is left as it is."""
    for pattern, replacement in NATIVE_NAMES:
        name, count = re.subn(pattern, replacement, native)
        if count:
            return name
    return native


# For single files without a configuration: heads -> what the shapes do not tell.
VARIANTS_BY_HEADS = {
    30: {"num_layers": 30, "use_rotary_positional_embeddings": False},
    48: {"num_layers": 42, "use_rotary_positional_embeddings": True},
}
# V1.5 counts integer positions, so its trained grid only states what it was trained on.
V15_SAMPLE = {"sample_width": 300, "sample_height": 300, "sample_frames": 85, "patch_bias": False}


def shape_fields(shapes: Shapes) -> dict:
    """The configuration fields that the shapes fix, under the hub's names.

    Raises:
        CheckpointError: the tensors are not those of a CogVideoX transformer.
    """
    needed = ("patch_embed.proj.weight", "patch_embed.text_proj.weight", "time_embedding.linear_1.weight")
    missing = [name for name in needed if name not in shapes]
    if missing:
        raise CheckpointError(
            f"this is not a CogVideoX transformer: {missing[0]} is missing, it holds {listed(sorted(shapes)[:3])}: "
            "choose a CogVideoX-Fun model"
        )
    proj = shapes["patch_embed.proj.weight"]
    patch_t = 2 if len(proj) == 2 else None
    ofs = shapes.get("ofs_embedding.linear_1.weight")
    return {
        "num_attention_heads": proj[0] // 64,
        "num_layers": len({name.split(".")[1] for name in shapes if name.startswith("transformer_blocks.")}),
        "in_channels": proj[1] if patch_t is None else proj[1] // 8,
        "patch_size_t": patch_t,
        "time_embed_dim": shapes["time_embedding.linear_1.weight"][0],
        "text_embed_dim": shapes["patch_embed.text_proj.weight"][1],
        "ofs_embed_dim": ofs[0] if ofs else None,
    }


def detect(shapes: Shapes, config: Mapping | None) -> TransformerConfig:
    """The configuration of a transformer from its written configuration, if there is one, and its shapes.

    Raises:
        CheckpointError: another family, an unknown variant, or a configuration that the shapes contradict.
    """
    fields = shape_fields(shapes)
    if config is None:
        heads = fields["num_attention_heads"]
        if heads not in VARIANTS_BY_HEADS:
            raise CheckpointError(
                f"the transformer has {heads} heads and the file carries no configuration: only 30 heads (2B) and "
                "48 heads (5B) are known from shapes; load the model's folder with its config.json"
            )
        config = {**VARIANTS_BY_HEADS[heads], **(V15_SAMPLE if fields["patch_size_t"] else {}), **fields}
        # A rotary model that stores a table learned it. The table of a 2B is computed, even if the file holds it.
        stored = "patch_embed.pos_embedding" in shapes
        config["use_learned_positional_embeddings"] = stored and config["use_rotary_positional_embeddings"]
    result = TransformerConfig.from_dict(config)
    for name, value in fields.items():
        if getattr(result, name) != value:
            raise CheckpointError(
                f"the configuration says {name} = {getattr(result, name)!r}, but the weights' shapes say {value!r}: "
                "the configuration belongs to another model"
            )
    return result

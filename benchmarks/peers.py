"""diffusers' CogVideoX models, built as the pack's own are, to be measured beside them."""

from ..model_loading.networks.config import TransformerConfig
from ..model_loading.networks.vae import VAEConfig


def shared_options(config: TransformerConfig) -> dict:
    """What diffusers' and ComfyUI's transformers are both asked for, by the same names as ours."""
    names = ("num_attention_heads", "num_layers", "in_channels", "text_embed_dim", "use_rotary_positional_embeddings")
    return {name: getattr(config, name) for name in names}


def diffusers_transformer(config: TransformerConfig, latent_h: int, latent_w: int):
    """diffusers' transformer of a configuration, for latents of one size."""
    from diffusers import CogVideoXTransformer3DModel

    return CogVideoXTransformer3DModel(
        **shared_options(config), sample_height=latent_h, sample_width=latent_w
    ).requires_grad_(False)


def diffusers_vae(config: VAEConfig):
    """diffusers' VAE of a configuration."""
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * len(config.block_out_channels),
        up_block_types=("CogVideoXUpBlock3D",) * len(config.block_out_channels),
        block_out_channels=config.block_out_channels,
        latent_channels=config.latent_channels,
        layers_per_block=config.layers_per_block,
    ).requires_grad_(False)

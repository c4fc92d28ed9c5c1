"""Write a tiny CogVideoX-Fun model with random weights, in hub layout.

It has every part that a real one has, so that loaders, samplers and ComfyUI run as they would. Its videos are noise.
"""

import dataclasses
import io
from pathlib import Path

import torch
from cogvideox_fun.model_loading.files.detect import V15_SAMPLE
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.transformer import CogVideoXTransformer
from cogvideox_fun.model_loading.networks.vae import CogVideoXVAE, VAEConfig
from cogvideox_fun.training.tasks import hub

TEXT_DIM = 32
WORDS = (
    "a the of in on and with to from over under red green blue yellow white black small large bright dark ball cat "
    "dog horse cup coffee rocket sky sea sand grass mountain city street face woman man moves turns flies runs walks "
    "left right up down slowly fast camera video photo start end blurry low quality distorted bad day night sun rain"
).split()

TINY = {"num_attention_heads": 2, "num_layers": 2, "time_embed_dim": 32, "text_embed_dim": TEXT_DIM}
TINY_VAE = VAEConfig(block_out_channels=(8, 16, 16, 16), layers_per_block=1, norm_num_groups=4)
V15 = {"use_rotary_positional_embeddings": True, "patch_size_t": 2, **V15_SAMPLE}
VARIANTS = {
    "2b": {"in_channels": 33},
    "5b": {"in_channels": 33, "use_rotary_positional_embeddings": True},
    "v1.5": {"in_channels": 33, **V15},
    "2b-control": {"in_channels": 32},
    "5b-control": {"in_channels": 32, "use_rotary_positional_embeddings": True},
    "2b-text": {"in_channels": 16},
    "5b-text": {"in_channels": 16, "use_rotary_positional_embeddings": True},
    "v1.5-text": {"in_channels": 16, **V15},
    # CogVideoX's own image-to-video models; the first knows one size, 80 x 48 here
    "5b-image": {
        "in_channels": 32,
        "use_rotary_positional_embeddings": True,
        "use_learned_positional_embeddings": True,
        "sample_width": 10,
        "sample_height": 6,
        "sample_frames": 9,
    },
    "v1.5-image": {"in_channels": 32, "ofs_embed_dim": 32, **V15},
    "void": {"in_channels": 48, **V15},
}


def random_weights(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Weights of a size that keeps activations near one, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, parameter in module.state_dict().items():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            state[name] = 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
        else:
            state[name] = noise / parameter[0].numel() ** 0.5
    return state


def tiny_transformer(variant: str, heads: int = 2, **options) -> CogVideoXTransformer:
    """A transformer of a variant of `VARIANTS`, without gradients."""
    config = TransformerConfig(**{**TINY, "num_attention_heads": heads}, **VARIANTS[variant])
    model = CogVideoXTransformer(config, **options).requires_grad_(False)
    model.load_state_dict(random_weights(model, seed=0))
    return model


def tiny_vae() -> CogVideoXVAE:
    model = CogVideoXVAE(TINY_VAE).requires_grad_(False)
    model.load_state_dict(random_weights(model, seed=0))
    return model


def tokenizer_model() -> bytes:
    """A sentencepiece model over `WORDS` with T5's ids: pad 0, end 1, unknown 2."""
    import sentencepiece

    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS), *WORDS]),
        model_writer=writer,
        vocab_size=128,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return writer.getvalue()


def write_text_encoder(folder: Path, seed: int) -> None:
    import transformers

    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer" / "spiece.model").write_bytes(tokenizer_model())
    config = transformers.T5Config(
        vocab_size=128, d_model=TEXT_DIM, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"
    )
    model = transformers.T5EncoderModel(config)
    model.load_state_dict(random_weights(model, seed))
    hub.write_text_encoder(folder, model)


def write_tiny_model(folder: str | Path, variant: str = "2b", seed: int = 0) -> Path:
    """Write a model of about 3 MB.

    Args:
        folder: made if it does not exist.
        variant: a key of `VARIANTS`.
    """
    folder = Path(folder)
    config = TransformerConfig(**TINY, **VARIANTS[variant])
    scale = {"scaling_factor": config.default_scale_factor, "invert_scale_latents": config.ofs_embed_dim is not None}
    vae = dataclasses.replace(TINY_VAE, **scale)
    hub.write_configs(folder, config, vae, config.default_schedule)
    hub.save_weights(folder / hub.FILES["transformer"], random_weights(CogVideoXTransformer(config), seed))
    hub.save_weights(folder / hub.FILES["vae"], random_weights(CogVideoXVAE(vae), seed + 1))
    write_text_encoder(folder, seed + 2)
    return folder

"""The nano model: a CogVideoX-Fun of the 2B kind that is small enough to be trained and run on two cores.

`write_untrained` makes the folder that its training starts from: configurations, tokenizer, and weights from a seed.
"""

import json
from pathlib import Path

import torch

from ..model_loading.config import TransformerConfig
from ..model_loading.transformer import CogVideoXTransformer
from ..model_loading.vae import CogVideoXVAE, VAEConfig
from . import shapes
from .hub import FILES, save_weights, write_configs, write_json, write_text_encoder

TEXT_DIM = 64
TEXT_TOKENS = 16  # a sentence of the grammar is at most ten words

TRANSFORMER = TransformerConfig(
    num_attention_heads=4,
    num_layers=6,
    in_channels=33,
    time_embed_dim=128,
    text_embed_dim=TEXT_DIM,
    # the trained table: 128 x 128 pixels, 17 frames
    sample_width=16,
    sample_height=16,
    sample_frames=17,
    max_text_seq_length=TEXT_TOKENS,
    spatial_interpolation_scale=1.0,
)
VAE = VAEConfig(block_out_channels=(16, 32, 64, 64), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0)


def tokenizer_json() -> dict:
    """A tokenizer of whole words in the format of the ``tokenizers`` library, with T5's pad 0, end 1, unknown 2."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["<pad>", "</s>", "<unk>", *shapes.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return json.loads(tokenizer.to_str())


def initialise(transformer: CogVideoXTransformer) -> None:
    """Start as the identity: the output and every gate are zero (adaLN-Zero; Peebles and Xie 2022)."""
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
        if name == "proj_out" or name.endswith(("norm1.linear", "norm2.linear", "norm_out.linear")):
            torch.nn.init.zeros_(module.weight)


def untrained_text_encoder():
    import transformers

    config = transformers.T5Config(
        vocab_size=len(shapes.vocabulary()) + 3,
        d_model=TEXT_DIM,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
    )
    model = transformers.T5EncoderModel(config)
    torch.nn.init.normal_(model.shared.weight)
    return model


def write_untrained(folder: str | Path, seed: int = 0) -> Path:
    """Write the untrained model in hub layout."""
    folder = Path(folder)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer, vae, text_encoder = CogVideoXTransformer(TRANSFORMER), CogVideoXVAE(VAE), untrained_text_encoder()
        initialise(transformer)
    write_configs(folder, TRANSFORMER, VAE, TRANSFORMER.default_schedule)
    save_weights(folder / FILES["transformer"], transformer.state_dict())
    save_weights(folder / FILES["vae"], vae.state_dict())
    write_text_encoder(folder, text_encoder)
    write_json(folder / "tokenizer" / "tokenizer.json", tokenizer_json())
    write_json(folder / "tokenizer" / "tokenizer_config.json", {"model_max_length": TEXT_TOKENS})
    return folder

"""T5: a folder's tokenizer and configuration.

Every prompt becomes one chunk of 226 tokens, or of fewer if the folder's tokenizer_config.json says so. It is padded
with id 0 and truncated with its end token kept; there is no attention mask. VideoX-Fun does the same.
"""

import dataclasses
import logging
from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import CheckpointError, shown
from ..networks.config import TEXT_TOKENS
from .safetensors_files import Weights, header_names, read_json

log = logging.getLogger(__name__)

PAD, END = 0, 1
PROJECTIONS = ("gated-gelu", "gated-gelu_new", "gated-relu", "gelu", "gelu_new", "relu")  # that ComfyUI's T5 knows


class FolderTokenizer:
    """The tokenizer of a model folder: ``spiece.model`` through sentencepiece, else ``tokenizer.json``.

    Called with a text it returns ``{"input_ids": [..., END]}``, as ComfyUI's tokenizers expect. ``length`` is the
    number of tokens of a prompt: ``model_max_length`` of ``tokenizer_config.json``, but at most 226.
    """

    def __init__(self, folder: Path):
        self.length = prompt_length(Path(folder))
        spiece, fast = Path(folder) / "spiece.model", Path(folder) / "tokenizer.json"
        if spiece.is_file():
            import sentencepiece

            processor = sentencepiece.SentencePieceProcessor()
            try:
                processor.LoadFromSerializedProto(spiece.read_bytes())
            except RuntimeError as error:
                raise CheckpointError("is no sentencepiece model: download it again", spiece) from error
            self._encode, self.decode = processor.encode, processor.decode
            self._vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
        else:
            import tokenizers

            try:
                tokenizer = tokenizers.Tokenizer.from_file(str(fast))
            except Exception as error:  # the library raises bare Exceptions
                raise CheckpointError(f"is no tokenizer ({error}): download it again", fast) from error
            tokenizer.no_padding()  # `fit_tokens` pads and cuts; a file may ask for millions of tokens
            tokenizer.no_truncation()
            self._encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
            self.decode = tokenizer.decode
            self._vocab = tokenizer.get_vocab()

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [*self._encode(text), END]}

    def get_vocab(self) -> dict[str, int]:
        return self._vocab


def prompt_length(folder: Path) -> int:
    """How many tokens a tokenizer's folder says a prompt has, at most 226.

    Raises:
        CheckpointError: its ``tokenizer_config.json`` is broken.
    """
    path = folder / "tokenizer_config.json"
    length = read_json(path).get("model_max_length", TEXT_TOKENS) if path.is_file() else TEXT_TOKENS
    if type(length) not in (int, float) or not length >= 1:
        raise CheckpointError(f"has model_max_length {length!r}, expected a number from 1", path)
    return int(min(length, TEXT_TOKENS))


def fit_tokens(tokens: list, decode=None, end=END, pad=PAD, length: int = TEXT_TOKENS) -> list:
    """Pad or truncate a list of tokens that ends with ``end`` to ``length``; what is cut goes to the log.

    Args:
        tokens: ids, or anything else that ``end`` and ``pad`` are of the same kind as.
        decode: a list of the cut tokens -> text, for the log.
    """
    if len(tokens) > length:
        cut = tokens[length - 1 : -1]
        text = f': "{shown(decode(cut))}" was left out' if decode else ""
        log.warning("the prompt has %d tokens, the model reads %d%s", len(tokens), length, text)
        tokens = [*tokens[: length - 1], end]
    return [*tokens, *[pad] * (length - len(tokens))]


def tokenize(tokenizer: FolderTokenizer, prompt: str) -> torch.Tensor:
    """A prompt as [1, L] ids; L is 226, or what the folder says."""
    return torch.tensor([fit_tokens(tokenizer(prompt)["input_ids"], tokenizer.decode, length=tokenizer.length)])


def comfy_t5_config(config: dict) -> dict:
    """A transformers T5 configuration in the terms of ComfyUI's T5.

    Raises:
        CheckpointError: a T5 that ComfyUI's class can't be.
    """
    kind, projection = config.get("model_type", "t5"), config.get("feed_forward_proj", "relu")
    if kind != "t5" or projection not in PROJECTIONS:
        raise CheckpointError(
            f"the text encoder is a {kind!r} with feed_forward_proj {projection!r}, expected 't5' with one of "
            f"{', '.join(PROJECTIONS)}: choose another text encoder"
        )
    sizes = {name: config.get(name) for name in ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")}
    if not all(type(size) is int for size in sizes.values()):
        raise CheckpointError(f"the text encoder's sizes are {sizes}, expected whole numbers: download it again")
    return {
        **sizes,
        "dense_act_fn": "relu" if "relu" in projection else "gelu_pytorch_tanh",
        "is_gated_act": projection.startswith("gated-"),
        "model_type": "t5",
    }


def check_t5(config: dict, weights: Weights) -> None:
    """Raise a CheckpointError unless a T5 of this configuration has the weights' sizes.

    Args:
        config: from `comfy_t5_config`.
        weights: from `t5_weights`.
    """
    width, first = config["d_model"], "encoder.block.0.layer"
    expected = {
        "shared.weight": (config["vocab_size"], width),
        f"{first}.0.SelfAttention.q.weight": (config["num_heads"] * config["d_kv"], width),
        f"{first}.0.SelfAttention.relative_attention_bias.weight": (32, config["num_heads"]),
        f"{first}.1.DenseReluDense.wo.weight": (width, config["d_ff"]),
    }
    for name, shape in expected.items():
        found = weights.shapes.get(name, shape)
        if found != shape:
            raise CheckpointError(
                f"does not fit its configuration: {name} is {list(found)}, expected {list(shape)}: other T5s than "
                "T5-XXL need their folder with config.json",
                weights.path,
            )
    blocks = {name.split(".")[2] for name in weights.tensors if name.startswith("encoder.block.")}
    if len(blocks) != config["num_layers"]:
        raise CheckpointError(
            f"has {len(blocks)} blocks, expected {config['num_layers']}: download it again", weights.path
        )


def check_vocabulary(tokenizer: str | Path, vocabulary: Iterable[int], size: int, text_encoder: Path) -> None:
    """Raise a CheckpointError if a tokenizer gives ids that a T5 has no embedding for.

    Args:
        tokenizer: where it comes from, for the message.
        vocabulary: its ids.
        size: how many embeddings the T5 has.
        text_encoder: the T5's folder or file.
    """
    largest = max(vocabulary, default=0)
    if largest >= size:
        raise CheckpointError(
            f"gives ids up to {largest}, but the text encoder {text_encoder} has embeddings for {size}: put the "
            "model's own tokenizer folder beside it",
            tokenizer,
        )


def t5_weights(weights: Weights) -> Weights:
    """The encoder's weights under the names both T5s use, from a file or folder that may also hold a decoder.

    Raises:
        CheckpointError: no T5 encoder.
    """
    kept = {k: v for k, v in weights.tensors.items() if not k.startswith(("decoder.", "lm_head."))}
    tied = kept.pop("encoder.embed_tokens.weight", None)
    if tied is not None:
        kept.setdefault("shared.weight", tied)
    for name in ("encoder.final_layer_norm.weight", "shared.weight"):
        if name not in kept:
            raise CheckpointError(f"is no T5 encoder, it lacks {name}: choose another file", weights.path)
    return dataclasses.replace(weights, tensors=kept)


def is_t5_file(path: Path) -> bool:
    """Whether a file's header is that of a T5 encoder, whatever its name."""
    return header_names(path, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")

"""T5: the folder's own tokenizer and configuration, and the encoder without a host.

Every prompt becomes one chunk of 226 tokens, or of fewer where the folder's tokenizer_config.json says so: padded with
id 0, truncated with its end token kept, no attention mask, as the authors do.
"""

import logging
import reprlib
from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import CheckpointError, shown
from ..networks.config import TEXT_TOKENS
from .checkpoint import naming
from .safetensors_files import Weights, header_names, open_weights, read_json

log = logging.getLogger(__name__)

PAD, END = 0, 1


class FolderTokenizer:
    """The tokenizer of a model folder: ``spiece.model`` through sentencepiece, else ``tokenizer.json``.

    Called with a text it returns ``{"input_ids": [..., END]}``, as the host's tokenizers expect. ``length`` is the
    tokens of a prompt: ``model_max_length`` of ``tokenizer_config.json``, and never more than the models' 226.
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
                raise CheckpointError(f"{spiece} is no sentencepiece model: download it again") from error
            self._encode, self.decode = processor.encode, processor.decode
            self._vocab = {processor.id_to_piece(i): i for i in range(processor.get_piece_size())}
        elif fast.is_file():
            import tokenizers

            try:
                tokenizer = tokenizers.Tokenizer.from_file(str(fast))
            except Exception as error:  # the library raises bare Exceptions
                raise CheckpointError(f"{fast} is no tokenizer ({error}): download it again") from error
            tokenizer.no_padding()  # `fit_tokens` pads and cuts; a file may ask for millions of tokens
            tokenizer.no_truncation()
            self._encode = lambda text: tokenizer.encode(text, add_special_tokens=False).ids
            self.decode = tokenizer.decode
            self._vocab = tokenizer.get_vocab()
        else:
            raise CheckpointError(f"{folder} holds neither spiece.model nor tokenizer.json: download the folder again")

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
        raise CheckpointError(f"{path} has model_max_length {length!r}, expected a number from 1")
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
    """A transformers T5 configuration in the terms of the host's T5.

    Raises:
        CheckpointError: a T5 that the host's class can't be.
    """
    fixed = {
        "relative_attention_num_buckets": 32,
        "relative_attention_max_distance": 128,
        "layer_norm_epsilon": 1e-6,
        "model_type": "t5",
    }
    for name, expected in fixed.items():
        if config.get(name, expected) != expected:
            raise CheckpointError(
                f"{name} is {reprlib.repr(config[name])} in the text encoder's configuration, expected {expected!r}"
            )
    projection = str(config.get("feed_forward_proj", "relu"))
    gated, activation = projection.startswith("gated-"), projection.removeprefix("gated-")
    activation = str(config.get("dense_act_fn", activation))
    activations = {"gelu_new": "gelu_pytorch_tanh", "gelu": "gelu_pytorch_tanh", "relu": "relu"}
    if activation not in activations:
        raise CheckpointError(
            f"the text encoder's activation is {reprlib.repr(activation)}, expected one of {list(activations)}"
        )
    names = ("d_model", "d_kv", "d_ff", "num_heads", "num_layers", "vocab_size")
    for name in names:
        if config.get(name) is None:
            raise CheckpointError(f"the text encoder's configuration lacks {name}: download it again")
        if type(config[name]) is not int or config[name] < 1:
            raise CheckpointError(
                f"{name} is {reprlib.repr(config[name])} in the text encoder's configuration, expected a whole number "
                "from 1"
            )
    return {
        **{name: config[name] for name in names},
        "dense_act_fn": activations[activation],
        "is_gated_act": config.get("is_gated_act", gated),
        "model_type": "t5",
    }


def check_t5_config(config: dict, weights: Weights) -> None:
    """Raise a CheckpointError unless a T5 of this configuration has the weights' sizes, before one is made of it.

    Args:
        config: in the host's terms.
        weights: from `t5_weights`.
    """
    width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
    expected = {
        "shared.weight": (config["vocab_size"], width),
        "encoder.block.0.layer.0.SelfAttention.q.weight": (inner, width),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (32, config["num_heads"]),
        "encoder.block.0.layer.1.DenseReluDense.wo.weight": (width, config["d_ff"]),
    }
    for name, shape in expected.items():
        found = weights.tensors[name].shape if name in weights.tensors else None
        if found is not None and found != shape:
            raise CheckpointError(f"{name} has the shape {list(found)}, expected {list(shape)}")
    blocks = {name.split(".")[2] for name in weights.tensors if name.startswith("encoder.block.")}
    if len(blocks) != config["num_layers"]:
        raise CheckpointError(
            f"the text encoder has {len(blocks)} blocks, but {config['num_layers']} are expected: download it again"
        )


def check_vocabulary(tokenizer: str | Path, vocabulary: Iterable[int], config: dict, text_encoder: Path) -> None:
    """Raise a CheckpointError if a tokenizer gives ids that a T5 of this configuration has no embedding for.

    Args:
        tokenizer: where it comes from, for the message.
        vocabulary: its ids.
        text_encoder: the T5's folder or file.
    """
    largest = max(vocabulary, default=0)
    if largest >= config["vocab_size"]:
        raise CheckpointError(
            f"{tokenizer} gives ids up to {largest}, but the text encoder {text_encoder} has embeddings for "
            f"{config['vocab_size']}: put the model's own tokenizer folder beside it"
        )


def t5_weights(weights: Weights) -> Weights:
    """The encoder's weights under the names both T5s use, from a file or folder that may also hold a decoder.

    Raises:
        CheckpointError: no T5 encoder.
    """
    kept = {k: v for k, v in weights.tensors.items() if not k.startswith(("decoder.", "lm_head."))}
    if "shared.weight" not in kept and "encoder.embed_tokens.weight" in kept:
        kept["shared.weight"] = kept["encoder.embed_tokens.weight"]
    kept.pop("encoder.embed_tokens.weight", None)
    if "encoder.final_layer_norm.weight" not in kept or "shared.weight" not in kept:
        raise CheckpointError(
            f"{weights.name} is no T5 encoder: it lacks encoder.final_layer_norm.weight or shared.weight"
        )
    return weights.of(kept)


def is_t5_file(path: Path) -> bool:
    """Whether a file's header is that of a T5 encoder, whatever its name."""
    return header_names(path, "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight")


class TextEncoder:
    """T5 without a host: transformers' ``T5EncoderModel`` with the folder's weights and tokenizer."""

    def __init__(self, folder: Path, tokenizer: Path, dtype: torch.dtype = torch.float32):
        import transformers

        values, weights = read_json(Path(folder) / "config.json"), t5_weights(open_weights(folder))
        self.tokenizer = FolderTokenizer(tokenizer)
        with naming(Path(folder)):
            config = comfy_t5_config(values)
            check_t5_config(config, weights)
            check_vocabulary(tokenizer, self.tokenizer.get_vocab().values(), config, Path(folder))
        self.model = transformers.T5EncoderModel(transformers.T5Config.from_dict(values)).eval().to(dtype)
        state = weights.load()
        missing, _ = self.model.load_state_dict(state, strict=False)
        missing = [key for key in missing if key != "encoder.embed_tokens.weight"]  # tied to shared.weight
        if missing:
            raise CheckpointError(f"{folder} lacks {missing[0]}: download it again")

    @torch.no_grad()
    def __call__(self, prompt: str) -> torch.Tensor:
        """Features of a prompt, [1, L, d_model]."""
        return self.model(input_ids=tokenize(self.tokenizer, prompt)).last_hidden_state

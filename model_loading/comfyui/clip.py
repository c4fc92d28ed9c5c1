"""The CLIP: ComfyUI's T5 with a folder's own configuration and tokenizer, or a T5-XXL file with ComfyUI's."""

import functools
import logging
import math
import types
from pathlib import Path

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.t5
import folder_paths

from ..errors import naming, shown
from ..files.safetensors_files import is_quantization, open_weights, read_json
from ..files.t5 import (
    END,
    PAD,
    FolderTokenizer,
    check_t5,
    check_vocabulary,
    comfy_t5_config,
    fit_tokens,
    t5_weights,
)
from ..networks.config import TEXT_TOKENS
from .compat import new_clip
from .files import read_file
from .quantized import read_quantization

log = logging.getLogger(__name__)

# What `read_quantization` found -> the name of the model option that tells a text encoder of it.
OPTIONS = {"quant_config": "quantization_metadata", "scaled_fp8": "scaled_fp8"}

T5_XXL = {
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 24,
    "vocab_size": 32128,
    "dense_act_fn": "gelu_pytorch_tanh",
    "is_gated_act": True,
    "model_type": "t5",
}


class OneChunk:
    """A tokenizer of ComfyUI's that makes one chunk of 226 tokens, or of as many as its folder says."""

    length = TEXT_TOKENS

    def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
        (tokens,) = super().tokenize_with_weights(text, return_word_ids, **kwargs)
        # the last one: a prompt may hold a literal </s>
        end = max(i for i, token in enumerate(tokens) if isinstance(token[0], int) and token[0] == END)
        rest = (1.0, 0) if return_word_ids else (1.0,)
        return [
            fit_tokens(tokens[: end + 1], self._decode_tokens, end=(END, *rest), pad=(PAD, *rest), length=self.length)
        ]

    def _decode_tokens(self, tokens) -> str:
        return self.tokenizer.decode([int(token[0]) for token in tokens if isinstance(token[0], int)])


class ComfyT5Tokenizer(OneChunk, comfy.text_encoders.sd3_clip.T5XXLTokenizer):
    """ComfyUI's T5 tokenizer."""


class FolderT5Tokenizer(OneChunk, comfy.sd1_clip.SDTokenizer):
    """The tokenizer of a model folder.

    Args:
        folder: see `FolderTokenizer`.
        embedding_size: the width of the text features, for textual inversions.
    """

    def __init__(self, folder: Path, embedding_size: int, embedding_directory=None, tokenizer_data=None):
        super().__init__(
            tokenizer_path=folder,
            tokenizer_class=types.SimpleNamespace(from_pretrained=FolderTokenizer),
            pad_with_end=False,
            embedding_directory=embedding_directory,
            embedding_size=embedding_size,
            embedding_key="t5xxl",
            has_start_token=False,
            pad_to_max_length=False,
            max_length=99999999,
            tokenizer_data=tokenizer_data or {},
        )
        self.length = self.tokenizer.length


def clip_target(config: dict, folder: Path | None) -> comfy.supported_models_base.ClipTarget:
    """What ComfyUI's CLIP is built of.

    Args:
        config: of the T5, in ComfyUI's terms.
        folder: the tokenizer's; None for ComfyUI's T5 tokenizer.
    """
    tokenizer = ComfyT5Tokenizer if folder is None else functools.partial(FolderT5Tokenizer, folder, config["d_model"])
    encoder = functools.partial(
        comfy.sd1_clip.SDClipModel,
        layer="last",
        textmodel_json_config=dict(config),
        special_tokens={"end": END, "pad": PAD},
        model_class=comfy.text_encoders.t5.T5,
        enable_attention_masks=False,  # as VideoX-Fun: pad positions take part
        return_attention_masks=False,
    )
    return comfy.supported_models_base.ClipTarget(
        functools.partial(comfy.sd1_clip.SD1Tokenizer, tokenizer=tokenizer, name="t5xxl"),
        functools.partial(comfy.sd1_clip.SD1ClipModel, clip_model=encoder, name="t5xxl"),
    )


def load_clip(path: str | Path, tokenizer: str | Path | None = None, disable_dynamic: bool = False):
    """Load T5 as a CLIP.

    Args:
        path: a ``text_encoder`` folder with its config.json, or a single T5-XXL file.
        tokenizer: the tokenizer's folder; None for ComfyUI's T5 tokenizer.
        disable_dynamic: set by ComfyUI when it makes an independent copy.

    Raises:
        CheckpointError: what is wrong with the files, and what to do.
    """
    path = Path(path)
    weights = t5_weights(open_weights(path, read_file))
    with naming(path):
        config = comfy_t5_config(read_json(path / "config.json")) if path.is_dir() else dict(T5_XXL)
    check_t5(config, weights)
    with naming(path):
        state, found = read_quantization(weights.load(), weights.metadata)
    model_options = {OPTIONS[name]: value for name, value in found.items()}
    model_options["dtype"] = weights.tensors["encoder.final_layer_norm.weight"].dtype
    clip = new_clip(
        clip_target(config, Path(tokenizer) if tokenizer else None),
        dict(state),
        disable_dynamic,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=sum(math.prod(info.shape) for info in weights.tensors.values()),
        model_options=model_options,
    )
    expected = clip.cond_stage_model.t5xxl.transformer.state_dict()
    weights.check({key: value for key, value in expected.items() if not is_quantization(key)})
    check_vocabulary(tokenizer or "ComfyUI's T5 tokenizer", clip.tokenizer.t5xxl.inv_vocab, config["vocab_size"], path)
    clip.patcher.cached_patcher_init = (reload_clip_patcher, (str(path), str(tokenizer) if tokenizer else None))
    if tokenizer is None and path.is_dir():
        log.warning("%s has no tokenizer beside it: using ComfyUI's T5 tokenizer", shown(path))
    log.info("%s: T5, tokenizer %s", shown(path), shown(tokenizer or "of ComfyUI"))
    return clip


def reload_clip_patcher(path: str, tokenizer: str | None, disable_dynamic: bool = False):
    return load_clip(path, tokenizer, disable_dynamic).patcher

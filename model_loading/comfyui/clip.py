"""The CLIP: the host's T5 with a folder's own configuration and tokenizer, or a T5-XXL file with the host's."""

import logging
import math
from pathlib import Path

import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.t5
import folder_paths

from ..errors import CheckpointError, naming, shown
from ..files.safetensors_files import is_quantization, open_weights, read_json
from ..files.t5 import (
    END,
    PAD,
    FolderTokenizer,
    check_vocabulary,
    comfy_t5_config,
    fit_tokens,
    prompt_length,
    t5_weights,
)
from ..networks.config import TEXT_TOKENS
from .compat import accepts
from .files import read_file
from .quantized import read_quantization

log = logging.getLogger(__name__)

OPTIONS = {"quant_config": "quantization_metadata", "scaled_fp8": "scaled_fp8"}  # of a text encoder's quantisation

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


def make_tokenizer(folder: Path | None, embedding_size: int):
    """A tokenizer class for the host's CLIP: the folder's own, or the host's T5 tokenizer."""
    length = TEXT_TOKENS if folder is None else prompt_length(folder)
    if folder is None:
        Base, options = comfy.text_encoders.sd3_clip.T5XXLTokenizer, {}
    else:
        Base = comfy.sd1_clip.SDTokenizer

        class Loader:  # the host calls from_pretrained on what it is given
            @staticmethod
            def from_pretrained(path, **_options):
                return FolderTokenizer(path)

        options = {
            "tokenizer_path": folder,
            "tokenizer_class": Loader,
            "pad_with_end": False,
            "embedding_size": embedding_size,
            "embedding_key": "t5xxl",
            "has_start_token": False,
            "pad_to_max_length": False,
            "max_length": 99999999,
        }

    class T5Tokenizer(Base):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {}, **options)

        def tokenize_with_weights(self, text, return_word_ids=False, **kwargs):
            """One chunk of 226 tokens, or of as many as the folder says, whatever the prompt's length."""
            (tokens,) = super().tokenize_with_weights(text, return_word_ids, **{**kwargs, "min_length": 0})
            tokens = tokens[: next((i for i, token in enumerate(tokens) if is_id(token, END)), len(tokens)) + 1]
            rest = (1.0, 0) if return_word_ids else (1.0,)
            return [fit_tokens(tokens, self._decode_tokens, end=(END, *rest), pad=(PAD, *rest), length=length)]

        def _decode_tokens(self, tokens) -> str:
            return self.tokenizer.decode([int(token[0]) for token in tokens if isinstance(token[0], int)])

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory=None, tokenizer_data=None):
            super().__init__(
                embedding_directory=embedding_directory,
                tokenizer_data=tokenizer_data or {},
                clip_name="t5xxl",
                tokenizer=T5Tokenizer,
                name="t5xxl",
            )

    return Tokenizer


def is_id(token: tuple, value: int) -> bool:
    return isinstance(token[0], int) and token[0] == value


def make_encoder(config: dict):
    """A text encoder class for the host's CLIP from a T5 configuration in the host's terms."""

    class T5Model(comfy.sd1_clip.SDClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device,
                layer="last",
                textmodel_json_config=dict(config),
                dtype=dtype,
                special_tokens={"end": END, "pad": PAD},
                model_class=comfy.text_encoders.t5.T5,
                enable_attention_masks=False,  # the authors let pad positions take part
                return_attention_masks=False,
                model_options=model_options or {},
            )

    class T5ClipModel(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device="cpu", dtype=None, model_options=None):
            super().__init__(
                device=device, dtype=dtype, name="t5xxl", clip_model=T5Model, model_options=model_options or {}
            )

    return T5ClipModel


def quantization(state: dict, metadata: dict) -> tuple[dict, dict]:
    """The host's way to read a quantised (scaled fp8) T5: (state, model options)."""
    state, found = read_quantization(state, metadata)
    return state, {OPTIONS[name]: value for name, value in found.items()}


def load_clip(path: str | Path, tokenizer: str | Path | None = None, disable_dynamic: bool = False):
    """Load T5 as the host's CLIP.

    Args:
        path: a ``text_encoder`` folder with its config.json, or a single T5-XXL file.
        tokenizer: the folder's tokenizer; None for the host's own T5 tokenizer.
        disable_dynamic: for the host, when it makes an independent copy.

    Raises:
        CheckpointError: what is wrong with the files, and what to do.
    """
    path = Path(path)
    weights = t5_weights(open_weights(path, read_file))
    with naming(path):
        config = comfy_t5_config(read_json(path / "config.json")) if path.is_dir() else dict(T5_XXL)
    embeddings = weights.tensors["shared.weight"].shape
    if embeddings != (config["vocab_size"], config["d_model"]):
        raise CheckpointError(
            f"does not fit its configuration: shared.weight is {list(embeddings)}, expected "
            f"{[config['vocab_size'], config['d_model']]}: other T5s than T5-XXL need their folder with config.json",
            path,
        )
    state, model_options = quantization(weights.load(), weights.metadata)
    model_options["dtype"] = weights.tensors["encoder.final_layer_norm.weight"].dtype

    target = comfy.supported_models_base.ClipTarget(
        make_tokenizer(Path(tokenizer) if tokenizer else None, config["d_model"]), make_encoder(config)
    )
    options = {
        "embedding_directory": folder_paths.get_folder_paths("embeddings"),
        "parameters": sum(math.prod(info.shape) for info in weights.tensors.values()),
        "model_options": model_options,
    }
    if accepts(comfy.sd.CLIP.__init__, "disable_dynamic"):
        options["disable_dynamic"] = disable_dynamic
    if accepts(comfy.sd.CLIP.__init__, "state_dict"):
        clip = comfy.sd.CLIP(target, state_dict=[dict(state)], **options)
    else:
        clip = comfy.sd.CLIP(target, **options)
        clip.load_sd(dict(state))
    weights.check(encoder_state(clip))
    check_vocabulary(tokenizer or "ComfyUI's T5 tokenizer", clip.tokenizer.t5xxl.inv_vocab, config["vocab_size"], path)
    clip.patcher.cached_patcher_init = (reload_clip_patcher, (str(path), str(tokenizer) if tokenizer else None))
    if tokenizer is None and path.is_dir():
        log.warning("%s has no tokenizer beside it: using the host's T5 tokenizer", shown(path))
    log.info("%s: T5, tokenizer %s", shown(path), shown(tokenizer or "of the host"))
    return clip


def encoder_state(clip) -> dict:
    """The parameters that the host's T5 expects from a file; quantised ones have other names and are left out."""
    parameters = clip.cond_stage_model.t5xxl.transformer.state_dict()
    return {key: value for key, value in parameters.items() if not is_quantization(key)}


def reload_clip_patcher(path: str, tokenizer: str | None, disable_dynamic: bool = False):
    return load_clip(path, tokenizer, disable_dynamic).patcher

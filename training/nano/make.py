"""The nano model: a CogVideoX-Fun of the 2B kind that can be trained and run on two CPU cores.

`write_untrained` makes the folder that training starts from. `train_nano` makes the folder that comes with the pack.
"""

import dataclasses
import json
import logging
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ...model_loading.networks.config import TransformerConfig
from ...model_loading.networks.transformer import CogVideoXTransformer
from ...model_loading.networks.vae import CogVideoXVAE, Downsample3D, ResnetBlock3D, SpatialNorm3D, VAEConfig
from ..data import scenes
from ..data.shapes import NEW_SHAPE
from ..loop.config import ConfigError, Phase, read_phase
from ..loop.encode import Amount, Encoding
from ..loop.phase import processes, run_phase
from ..loop.progress import plot_losses, read_losses, shorten
from ..loop.state import newest, read_run
from ..tasks.hub import (
    FILES,
    save_weights,
    write_configs,
    write_json,
    write_text_encoder,
    write_transformer_config,
)
from ..tasks.parts import LORA_FILE, export_half, write_lora_model, write_preview
from ..tasks.start import start_model

log = logging.getLogger(__name__)

TEXT_DIM = 64
TEXT_TOKENS = 16  # a sentence of the grammar has at most 13 words

TRANSFORMER = TransformerConfig(
    num_attention_heads=5,
    num_layers=5,
    in_channels=33,
    time_embed_dim=96,
    text_embed_dim=TEXT_DIM,
    # the trained table: 128 x 128 pixels, 17 frames
    sample_width=16,
    sample_height=16,
    sample_frames=17,
    max_text_seq_length=TEXT_TOKENS,
    spatial_interpolation_scale=1.0,
)
VAE = VAEConfig(block_out_channels=(16, 16, 64, 64), layers_per_block=1, norm_num_groups=4, scaling_factor=1.0)


def tokenizer_json() -> dict:
    """A tokenizer of whole words in the format of the ``tokenizers`` library, with T5's pad 0, end 1, unknown 2."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = ["<pad>", "</s>", "<unk>", *scenes.vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return json.loads(tokenizer.to_str())


def initialise(transformer: CogVideoXTransformer) -> None:
    """Initialise as the identity: the output and every gate are zero (AdaLN-Zero; Peebles and Xie 2022)."""
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.xavier_uniform_(module.weight)
            torch.nn.init.zeros_(module.bias)
        if name == "proj_out" or name.endswith(("norm1.linear", "norm2.linear", "norm_out.linear")):
            torch.nn.init.zeros_(module.weight)


# For the comparison of position tables: a smaller model, whose trained table is that of 64 x 64 pixels
SMALL_TRANSFORMER = dataclasses.replace(
    TRANSFORMER, num_attention_heads=4, num_layers=4, sample_width=8, sample_height=8
)


CONFIGS = Path(__file__).parents[1] / "configs"
# nano_<phase>.toml, in order
PHASES = ("vae_1", "vae_2", "transformer", "lora", "few_steps", "control")
WHOLE = ("transformer", "vae_2", "vae_1")  # whose results are whole models, the last one first
TOGETHER = 32  # clips that are encoded at once
ROW_STEPS = 20  # steps of a row in the loss tables that come with the pack
# Where the time is given: each phase's share of it, with its encoding
SHARES = {"vae_1": 60.0, "vae_2": 120.0, "transformer": 200.0, "lora": 20.0, "few_steps": 40.0, "control": 40.0}
LORAS = {"lora": f"{NEW_SHAPE}.safetensors", "few_steps": "few_steps.safetensors"}  # their names in the pack
TRIED_STEPS = 48  # done first; the second half is timed, when the batches that workers prepared early are used up
SLOWER = 1.05  # later steps may take this much longer
COLLECT_SECONDS = 10.0  # to write the result

PREVIEW_SEED, PREVIEW_CLIPS = 15, 16  # the clips that the previews' factors are fitted to

CARRIER = 2.0  # a constant added to the encoder's channels, with alternating signs


def initialise_vae(vae: CogVideoXVAE) -> None:
    """Initialise group norms so that they change the signal little.

    Group norm divides by the standard deviation of a whole chunk. So masking a part of a clip would change the latents
    of the known rest. A constant is therefore added to the channels with alternating signs: it dominates the standard
    deviation, and the norm's scale and shift remove it. The decoder's norms start with a scale of one.
    """
    for module in vae.encoder.modules():
        if isinstance(module, ResnetBlock3D):
            _carry(module.conv1.conv.bias)
            torch.nn.init.zeros_(module.conv2.conv.bias)
            if module.conv_shortcut is not None:
                _ignore_carrier(module.conv_shortcut.weight)
                _carry(module.conv_shortcut.bias)
        elif isinstance(module, Downsample3D):
            _ignore_carrier(module.conv.weight)
            _carry(module.conv.bias)
        elif isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.constant_(module.weight, CARRIER)
            _carry(module.bias, -CARRIER)
    _carry(vae.encoder.conv_in.conv.bias)
    with torch.no_grad():
        vae.encoder.conv_out.conv.bias[vae.config.latent_channels :] = -6.0  # log-variance: almost no noise
        for module in vae.decoder.modules():
            if isinstance(module, SpatialNorm3D):
                module.conv_y.conv.weight *= 0.5
                torch.nn.init.ones_(module.conv_y.conv.bias)
                torch.nn.init.zeros_(module.conv_b.conv.bias)


@torch.no_grad()
def _carry(bias: torch.Tensor, value: float = CARRIER) -> None:
    """Set a bias to ``value`` with alternating signs."""
    bias[0::2], bias[1::2] = value, -value


@torch.no_grad()
def _ignore_carrier(weight: torch.Tensor) -> None:
    """Make a convolution's response to the constant zero. weight: out in ..."""
    pattern = torch.ones(weight.shape[1], *[1] * (weight.dim() - 2))
    pattern[1::2] = -1
    weight -= (weight * pattern).mean(1, keepdim=True) * pattern


def untrained_text_encoder():
    import transformers

    config = transformers.T5Config(
        vocab_size=len(scenes.vocabulary()) + 3,
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
        initialise_vae(vae)
    write_configs(folder, TRANSFORMER, VAE, TRANSFORMER.default_schedule)
    save_weights(folder / FILES["transformer"], transformer.state_dict())
    save_weights(folder / FILES["vae"], vae.state_dict())
    write_text_encoder(folder, text_encoder)
    write_json(folder / "tokenizer" / "tokenizer.json", tokenizer_json())
    write_json(folder / "tokenizer" / "tokenizer_config.json", {"model_max_length": TEXT_TOKENS})
    return folder


def write_small(folder: str | Path, nano: Path, seed: int = 0) -> Path:
    """Write an untrained `SMALL_TRANSFORMER` with the VAE and the text encoder of a nano model."""
    folder = Path(folder)
    shutil.copytree(nano, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("lora", "control", "training"))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        transformer = CogVideoXTransformer(SMALL_TRANSFORMER)
        initialise(transformer)
    write_transformer_config(folder, SMALL_TRANSFORMER)
    save_weights(folder / FILES["transformer"], transformer.state_dict())
    return folder


def train_nano(
    output: str | Path, names: Sequence[str] = PHASES, source: str | Path | None = None, minutes: float = 0.0
) -> None:
    """Train the nano model phase by phase, and collect it; an interrupted run continues.

    Args:
        output: see `collect_nano`.
        names: some of `PHASES`, in their order. Those that are left out have to be done, or the first one needs a
            ``source``. The result also has the parts of the phases before the first one that are done.
        source: the model that the first phase starts from; None: the one in its configuration, untrained at first.
        minutes: choose the steps of each phase so that all of it takes about this time; 0: as configured. A run that
            is continued shares out the time anew among the phases that are not done.

    Raises:
        ConfigError: no phase with a whole model is done or among the names, or there are several processes and a time.
    """
    end = time.monotonic() + 60 * minutes
    everything = {name: read_phase(CONFIGS / f"nano_{name}.toml") for name in PHASES}
    done = {name for name, phase in everything.items() if (Path(phase.output) / "model").is_dir()}
    names = [name for name in PHASES if name in names]
    before = PHASES[: PHASES.index(names[0])]
    collected = [name for name in PHASES if name in names or (name in done and name in before)]
    if not set(collected) & set(WHOLE):
        raise ConfigError(f"the phases are {names}, expected one of {list(WHOLE)} among them, or done before")
    phases = {name: everything[name] for name in names}
    if source is not None:
        phases[names[0]] = dataclasses.replace(phases[names[0]], model=str(source))
    with processes() as state:
        if minutes and state.num_processes > 1:
            raise ConfigError(f"{state.num_processes} processes can't share out a time, expected 1: leave minutes out")
        if state.is_main_process and source is None and names[0] == PHASES[0]:
            write_untrained(phases[names[0]].model)
        state.wait_for_everyone()
        for number, (name, phase) in enumerate(phases.items()):
            if minutes and name in done:
                log.info("%s: done before", phase.output)
                continue
            share = SHARES[name] / sum(SHARES[later] for later in names[number:] if later not in done)
            until = time.monotonic() + share * (end - time.monotonic() - COLLECT_SECONDS)
            if name == "control" and state.is_main_process and newest(Path(phase.output) / "run") is None:
                shutil.rmtree(phase.model, ignore_errors=True)  # that of an earlier transformer
                start_model(Path(everything["transformer"].output) / "model", phase.model, "control")
            state.wait_for_everyone()
            if phase.data.cache:
                Encoding(phase, phase.data.cache, Amount(epochs=1), state, "bfloat16", together=TOGETHER).run()
            run_phase(fitted(phase, until) if minutes else phase)
        if state.is_main_process:
            collect_nano({name: Path(everything[name].output) for name in collected}, output)


def fitted(phase: Phase, until: float) -> Phase:
    """A phase with as many steps as fit into the time. Its first ones are done to measure how long a step takes.

    The learning rate of these is the same whatever the number of steps is, since they are in its warm-up.

    Args:
        until: by `time.monotonic`, when the phase must end; the second start of the phase is counted.
    """
    before, began = steps_done(phase), time.monotonic()
    run_phase(dataclasses.replace(phase, steps=10**6), until=TRIED_STEPS)
    now = time.monotonic()
    rows, done = read_losses(Path(phase.output) / "run" / "loss.csv"), steps_done(phase)
    taken = statistics.fmean(row["step_seconds"] for row in rows[-TRIED_STEPS // 2 :])
    start = max(now - began - (done - before) * taken, 0)  # of the model, the workers and the GPU; it comes once more
    steps = done + max(int((until - now - start) / (SLOWER * taken)), 1)
    log.info("%s: %d steps of %.3f s", phase.output, steps, taken)
    return dataclasses.replace(phase, steps=steps)


def steps_done(phase: Phase) -> int:
    """The step of a phase's newest checkpoint."""
    checkpoint = newest(Path(phase.output) / "run")
    return read_run(checkpoint)["step"] if checkpoint else 0


def collect_nano(outputs: dict[str, Path], output: str | Path) -> None:
    """Write the pack's folder from the phases' results: model in float16, LoRAs, Control model, losses and curves.

    LoRAs, a Control model and a small decoder that it has from before are removed: they belong to another model.

    Args:
        outputs: the folders of phases of `PHASES`. The model is that of the last phase that trained it.
    """
    output = Path(output)
    for name in ("lora", "control", "tiny_decoder"):
        shutil.rmtree(output / name, ignore_errors=True)
    export_half(next(outputs[name] for name in WHOLE if name in outputs) / "model", output)
    shown = (scenes.random_scene(PREVIEW_SEED, index) for index in range(PREVIEW_CLIPS))
    write_preview(output, [scenes.render(scene, 17, 128, 128) for scene in shown])
    for name in LORAS.keys() & outputs.keys():
        (output / "lora").mkdir(exist_ok=True)
        shutil.copyfile(outputs[name] / "model" / LORA_FILE, output / "lora" / LORAS[name])
    if "control" in outputs:
        write_lora_model(outputs["control"] / "model" / LORA_FILE, output, output / "control")
    (output / "training").mkdir(exist_ok=True)
    for name, folder in outputs.items():
        table = output / "training" / f"{name}.csv"
        shorten(folder / "run" / "loss.csv", table, ROW_STEPS)
        plot_losses(table.with_suffix(".png"), {name: read_losses(table)}, window=5)

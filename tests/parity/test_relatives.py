"""CogVideoX's own models and ComfyUI's names: one call equals diffusers' transformer, from every kind of file."""

import inspect

import pytest
import torch
from cogvideox_fun.model_loading.files.checkpoint import open_checkpoint
from cogvideox_fun.model_loading.files.detect import hub_name
from cogvideox_fun.model_loading.networks.config import TransformerConfig
from cogvideox_fun.model_loading.networks.transformer import POSITIONS, CogVideoXTransformer
from cogvideox_fun.model_loading.standalone import load_transformer
from cogvideox_fun.sampling.positions import PositionOptions
from cogvideox_fun.training.tasks import hub
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import save_file
from tiny_model import TINY, TINY_VAE, VARIANTS, random_weights

TOLERANCE = 1e-4  # of one call
GRID = {"sample_width": 12, "sample_height": 8, "sample_frames": 9}
RELATIVES = {
    "2B text": ({"in_channels": 16}, "text"),
    "5B text": ({"in_channels": 16, "use_rotary_positional_embeddings": True}, "text"),
    "5B image": (
        {"in_channels": 32, "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True},
        "image",
    ),
    "1.5 text": ({**VARIANTS["v1.5"], "in_channels": 16}, "text"),
    "1.5 image": ({**VARIANTS["v1.5"], "in_channels": 32, "ofs_embed_dim": 32}, "image"),
}


def native_name(name: str) -> str:
    """ComfyUI's name of a parameter, by trying its whole table backwards."""
    layers = {"attn1.to_q": "q", "attn1.to_k": "k", "attn1.to_v": "v", "attn1.to_out.0": "attn_out"}
    layers |= {"attn1.norm_q": "norm_q", "attn1.norm_k": "norm_k", "ff.net.0.proj": "ff_proj", "ff.net.2": "ff_out"}
    for ours, theirs in layers.items():
        name = name.replace(f".{ours}.", f".{theirs}.")
    name = name.replace("transformer_blocks.", "blocks.")
    return name.replace("_embedding.linear_", "_embedding_linear_")


def rotary(model: CogVideoXTransformer, grid) -> tuple[torch.Tensor, torch.Tensor] | None:
    if not model.config.use_rotary_positional_embeddings:
        return None
    rope = model.compute_positions(grid, model.position_options)
    return tuple(part.repeat_interleave(2, dim=1) for part in (rope.real, rope.imag))


def theirs_of(config: TransformerConfig, state: dict) -> CogVideoXTransformer3DModel:
    names = inspect.signature(CogVideoXTransformer3DModel.__init__).parameters
    model = CogVideoXTransformer3DModel(**{name: value for name, value in vars(config).items() if name in names})
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module", params=RELATIVES)
def relative(request):
    values, kind = RELATIVES[request.param]
    config = TransformerConfig(**TINY, **{**GRID, **values, **({} if "1.5" in request.param else GRID)})
    assert config.conditioning == kind
    state = random_weights(CogVideoXTransformer(config), seed=4)
    return config, state


def test_one_call_equals_diffusers(relative):
    config, state = relative
    ours = CogVideoXTransformer(config).eval().requires_grad_(False)
    ours.load_state_dict(state)
    theirs = theirs_of(config, state).requires_grad_(False)
    latent_t, patch_t = (4, 2) if config.patch_size_t else (3, 1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, config.in_channels, latent_t, 8, 12, generator=generator)
    text = torch.randn(2, config.max_text_seq_length, config.text_embed_dim, generator=generator)
    timestep = torch.tensor([700, 30])
    extra = x[:, 16:] if config.in_channels > 16 else None
    out = ours(x[:, :16], timestep, text, concat_latents=extra)
    expected = theirs(
        x.transpose(1, 2),
        text,
        timestep,
        ofs=torch.full((1,), 2.0) if config.ofs_embed_dim else None,
        image_rotary_emb=rotary(ours, (latent_t // patch_t, 4, 6)),
        return_dict=False,
    )[0].transpose(1, 2)
    assert (out - expected).abs().max() <= TOLERANCE


@pytest.mark.parametrize("native", [False, True])
def test_files_in_both_namings_open_as_the_same_model(relative, tmp_path, native):
    """Of a folder with its configuration; ``native`` are the names of ComfyUI's own CogVideoX."""
    config, state = relative
    names = {name: native_name(name) if native else name for name in state}
    assert len(set(names.values())) == len(state) and all(hub_name(n) == name for name, n in names.items())
    hub.write_configs(tmp_path, config, TINY_VAE, config.default_schedule)
    (tmp_path / "transformer").mkdir(exist_ok=True)
    save_file({names[k]: v for k, v in state.items()}, tmp_path / hub.FILES["transformer"])
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == config
    loaded = load_transformer(checkpoint).state_dict()
    assert set(loaded) == set(state) and all(torch.equal(loaded[k], v) for k, v in state.items())


def test_a_learned_table_says_what_it_is_not_for():
    """Of 5B image to video: another size, more frames (with RIFLEx) or more text than it has rows for."""
    values, _ = RELATIVES["5B image"]
    config = TransformerConfig(**TINY, **{**GRID, **values})
    model = CogVideoXTransformer(config).requires_grad_(False)
    tokens, width = config.max_text_seq_length, config.text_embed_dim
    options = {POSITIONS: PositionOptions(riflex_k=2)}
    for latent_t, length in ((4, tokens), (3, tokens + 1)):
        message = f"and {tokens} text tokens, but the video has {latent_t} of 96 x 64 and the text {length}"
        with pytest.raises(ValueError, match=message):
            x, text = torch.zeros(1, 16, latent_t, 8, 12), torch.zeros(1, length, width)
            model(x, torch.tensor([500]), text, transformer_options=options)
    with pytest.raises(ValueError, match="3 latent frames of 96 x 64 pixels and .* but the video has 3 of 64 x 64"):
        model(torch.zeros(1, 16, 3, 8, 8), torch.tensor([5]), torch.zeros(1, 226, 32))


@pytest.mark.parametrize("trained", ["", "to_v"])
@pytest.mark.parametrize("kind", ["2B text", "5B text"])
def test_gradients_equal_diffusers(kind, trained):
    """Of everything, and of one layer alone: what runs in place without gradients must not when they are needed."""
    values, _ = RELATIVES[kind]
    config = TransformerConfig(**TINY, **{**GRID, **values})
    ours = CogVideoXTransformer(config)
    ours.load_state_dict(random_weights(ours, seed=4))
    theirs = theirs_of(config, ours.state_dict())
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 16, 3, 8, 12, generator=generator)
    text = torch.randn(1, config.max_text_seq_length, config.text_embed_dim, generator=generator)
    timestep, wanted = torch.tensor([300]), torch.randn(1, 16, 3, 8, 12, generator=generator)
    for model in (ours, theirs):
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained in name)
    rope = rotary(ours, (3, 4, 6))
    out = theirs(x.transpose(1, 2), text, timestep, image_rotary_emb=rope, return_dict=False)[0].transpose(1, 2)
    (out - wanted).square().mean().backward()
    (ours(x, timestep, text) - wanted).square().mean().backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        if parameter.requires_grad:
            scale = expected[name].grad.abs().max()
            assert scale > 0 and (parameter.grad - expected[name].grad).abs().max() <= 1e-4 * max(1.0, scale), name

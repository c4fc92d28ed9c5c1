"""What the host knows of the pack."""

import urllib.request

import pack
import pytest

# ids and inputs of the design: for ever; inputs are only appended
NODES = {
    "ModelLoader": (["model", "weight_dtype"], ["MODEL", "CLIP", "VAE"]),
    "TextEncoderLoader": (["text_encoder"], ["CLIP"]),
    "VAELoader": (["vae_name"], ["VAE"]),
    "LoraLoader": (["model", "lora_name", "strength"], ["MODEL"]),
    "PositionInterpolation": (["model", "mode", "temporal_scale?", "riflex_k?"], ["MODEL"]),
    "ContextWindows": (
        ["model", "context_length", "context_overlap", "context_schedule", "fuse_method"],
        ["MODEL"],
    ),
    "Resolution": (
        ["base_resolution", "aspect_ratio", "token_length", "length", "image?", "model?"],
        ["INT", "INT", "INT"],
    ),
    "StartEndImage": (
        ["width", "height", "length", "fit", "start_image?", "end_image?", "model?"],
        ["IMAGE", "MASK"],
    ),
    "MaskResize3D": (["mask", "latent", "soft"], ["MASK"]),
    "VAEEncode": (
        [
            *["vae", "video", "tile_size", "overlap", "noise_augmentation", "noise_seed"],
            *["mask?", "sample_posterior?", "model?"],
        ],
        ["LATENT"],
    ),
    "InpaintConditioning": (
        ["positive", "negative", "masked_latent", "mask"],
        ["CONDITIONING", "CONDITIONING", "LATENT"],
    ),
    "ControlConditioning": (
        ["positive", "negative", "control_latent", "strength", "start_percent", "end_percent"],
        ["CONDITIONING", "CONDITIONING", "LATENT"],
    ),
    "ImageConditioning": (
        ["positive", "negative", "image_latent", "latent"],
        ["CONDITIONING", "CONDITIONING", "LATENT"],
    ),
    "EmptyLatent": (["width", "height", "length", "batch_size", "model?"], ["LATENT"]),
    "Sampler": (
        [
            *["model", "positive", "negative", "latent", "seed", "steps", "cfg", "sampler_name", "spacing", "denoise"],
            "dynamic_cfg?",
        ],
        ["LATENT"],
    ),
    "Scheduler": (["model", "steps", "spacing", "denoise"], ["SIGMAS"]),
    "VAEDecode": (["vae", "latent", "tile_size", "overlap"], ["IMAGE"]),
    "MaskAdjust": (["mask", "grow", "blur", "invert"], ["MASK"]),
    "CompositeSource": (["video", "source", "match_colors", "paste_known", "mask?"], ["IMAGE"]),
}
DEFAULTS = {
    "width": (720, 16, 2048, 16),
    "height": (480, 16, 2048, 16),
    "length": (49, 1, 1001, 4),
    "batch_size": (1, 1, 64, None),
    "steps": (50, 1, 1000, None),
    "cfg": (6.0, 0.0, 100.0, 0.1),
    "denoise": (1.0, 0.0, 1.0, 0.01),
    "tile_size": (0, 0, 4096, 8),
    "overlap": (64, 0, 4096, 8),
    "noise_augmentation": (-1.0, -1.0, 1.0, 0.0001),
    "seed": (0, 0, 2**64 - 1, None),
    "noise_seed": (0, 0, 2**64 - 1, None),
    "LoraLoader.strength": (1.0, -100.0, 100.0, 0.01),
    "ControlConditioning.strength": (1.0, 0.0, 10.0, 0.01),
    "start_percent": (0.0, 0.0, 1.0, 0.001),
    "end_percent": (1.0, 0.0, 1.0, 0.001),
    "base_resolution": (512, 512, 1280, 64),
    "token_length": (0, 0, 200_000, None),
    "temporal_scale": (1.0, 0.1, 10.0, 0.01),
    "riflex_k": (0, 0, 8, None),
    "context_length": (49, 1, 1001, 4),
    "context_overlap": (16, 0, 1000, 4),
    "grow": (0, -512, 512, None),
    "blur": (0.0, 0.0, 128.0, 0.5),
    "match_colors": (1.0, 0.0, 1.0, 0.05),
}


@pytest.fixture(scope="module")
def info(lab):
    return lab.server.get("/object_info")


def test_the_list_of_nodes(info):
    assert {name for name in info if name.startswith("CogVideoXFun")} == {f"CogVideoXFun{name}" for name in NODES}


@pytest.mark.parametrize("name", NODES)
def test_inputs_and_outputs(info, name):
    node = info[f"CogVideoXFun{name}"]
    inputs, outputs = NODES[name]
    found = [*node["input"]["required"], *(f"{i}?" for i in node["input"].get("optional", {}))]
    assert found == inputs
    assert node["output"] == outputs
    assert node["category"].startswith("CogVideoX-Fun/") and node["description"] and node["display_name"]


@pytest.mark.parametrize("name", NODES)
def test_tooltips_and_ranges(info, name):
    given = info[f"CogVideoXFun{name}"]["input"]
    for group in (given["required"], given.get("optional", {})):
        for input_name, (kind, options) in group.items():
            assert len(options.get("tooltip", "")) > 10, f"{input_name} has no tooltip"
            if kind in ("INT", "FLOAT"):
                default, low, high, step = DEFAULTS.get(f"{name}.{input_name}") or DEFAULTS[input_name]
                assert (options["default"], options["min"], options["max"]) == (default, low, high), input_name
                assert step is None or options["step"] == step


def options_of(info, node, name):
    """The choices of a combo, which hosts spell in two ways."""
    kind, options = info[f"CogVideoXFun{node}"]["input"]["required"][name]
    return options["options"] if kind == "COMBO" else kind


def tooltip_of(info, node, name) -> str:
    return info[f"CogVideoXFun{node}"]["input"]["required"][name][1]["tooltip"]


def test_choices(info):
    samplers = options_of(info, "Sampler", "sampler_name")
    assert samplers[0] == "cogvideox_ddim" and {"euler", "ddim", "dpmpp_2m", "uni_pc"} <= set(samplers)
    assert "only cogvideox_ddim knows the SNR shift" in tooltip_of(info, "Sampler", "sampler_name")
    assert samplers[-5:] == [f"cogvideox_{name}" for name in ("ddim_origin", "euler", "euler_a", "dpm++", "pndm")]
    assert len(options_of(info, "Resolution", "aspect_ratio")) == 40
    assert options_of(info, "PositionInterpolation", "mode") == ["fun", "cut", "generated"]
    assert options_of(info, "Sampler", "spacing") == ["auto", "trailing", "linspace", "leading"]
    assert options_of(info, "StartEndImage", "fit") == ["crop", "stretch"]
    assert options_of(info, "ModelLoader", "weight_dtype") == ["default", "bf16", "fp16", "fp32", "fp8_e4m3fn"]


def test_models_are_found_where_people_keep_them(info):
    models = options_of(info, "ModelLoader", "model")
    assert {"tiny-2b", "tiny-v1.5", "CogVideoX-Fun-V1.1-2b-InP", "from-yaml", "no-config.safetensors"} <= set(models)
    assert "llm.safetensors" not in models
    assert {"tiny-2b/vae", "from-yaml/vae", "anything.safetensors"} <= set(options_of(info, "VAELoader", "vae_name"))
    assert "tiny-2b/text_encoder" in options_of(info, "TextEncoderLoader", "text_encoder")


@pytest.mark.parametrize("name", NODES)
def test_help_pages_are_served(lab, name):
    url = f"{lab.server.url}/extensions/cogvideox-fun/docs/CogVideoXFun{name}.md"
    with urllib.request.urlopen(url, timeout=30) as answer:
        assert answer.read() == (pack.ROOT / "web" / "docs" / f"CogVideoXFun{name}.md").read_bytes()


def test_the_pack_is_imported_once(lab):
    """By the host's own list; that it imports nothing heavy is in tests/unit/test_structure.py."""
    lines = [line for line in lab.log_since(0).splitlines() if line.rstrip().endswith("cogvideox-fun")]
    assert len(lines) == 1 and "seconds" in lines[0], lines
    assert "IMPORT FAILED" not in lab.log_since(0)

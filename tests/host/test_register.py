"""The nodes that ComfyUI lists, with their inputs and outputs. Ranges and defaults: see test_help.py."""

import pytest

SAMPLED = "CONDITIONING CONDITIONING LATENT"
NODES = {  # ids and inputs never change; new inputs are only appended
    "ModelLoader": ("model weight_dtype", "MODEL CLIP VAE"),
    "TextEncoderLoader": ("text_encoder", "CLIP"),
    "VAELoader": ("vae_name", "VAE"),
    "LoraLoader": ("model lora_name strength", "MODEL"),
    "PositionInterpolation": ("model mode temporal_scale? riflex_k?", "MODEL"),
    "ContextWindows": ("model context_length context_overlap context_schedule fuse_method", "MODEL"),
    "Resolution": ("base_resolution aspect_ratio token_length length image? model?", "INT INT INT"),
    "StartEndImage": ("width height length fit start_image? end_image? model? start_frames?", "IMAGE MASK"),
    "MaskResize3D": ("mask latent soft", "MASK"),
    "VAEEncode": (
        "vae video tile_size overlap noise_augmentation noise_seed mask? sample_posterior? model?",
        "LATENT",
    ),
    "InpaintConditioning": ("positive negative masked_latent mask", SAMPLED),
    "ControlConditioning": ("positive negative control_latent strength start_percent end_percent", SAMPLED),
    "ImageConditioning": ("positive negative image_latent latent", SAMPLED),
    "ClipFrames": ("clip width height length start_seconds frame_rate fit model?", "IMAGE FLOAT AUDIO"),
    "JoinClips": ("clip continuation overlap", "IMAGE"),
    "ExampleClip": ("example", "VIDEO IMAGE IMAGE MASK MASK"),
    "EmptyLatent": ("width height length batch_size model?", "LATENT"),
    "Sampler": (
        "model positive negative latent seed steps cfg sampler_name spacing denoise dynamic_cfg?",
        "LATENT",
    ),
    "Scheduler": ("model steps spacing denoise", "SIGMAS"),
    "VAEDecode": ("vae latent tile_size overlap", "IMAGE"),
    "MaskAdjust": ("mask grow blur invert", "MASK"),
    "MaskFollow": ("images mask optical_flow?", "MASK"),
    "CompositeSource": ("video source match_colors paste_known mask?", "IMAGE"),
    "LongVideo": (
        "model clip vae start_image width height length round_length overlap prompt negative_prompt line_per_round "
        "seed steps cfg sampler_name spacing match_colors fit dynamic_cfg? end_image?",
        "IMAGE",
    ),
    "CheckLongVideo": ("model clip vae start_image round_length overlap last_start_frames end_image?", ""),
    "LongVideoRound": (
        "model vae positive negative start_image width height length start_frames seed steps cfg sampler_name spacing "
        "fit dynamic_cfg? end_image?",
        "IMAGE",
    ),
    "AddRound": ("video match_colors rounds?", "IMAGE IMAGE"),
    "JoinRounds": ("rounds overlap length", "IMAGE"),
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
    assert found == inputs.split() and node["output"] == outputs.split()
    assert node["category"].startswith("CogVideoX-Fun/") and node["description"] and node["display_name"]


def options_of(info, node, name):
    """The choices of a list, which versions of ComfyUI send in two forms."""
    kind, options = info[f"CogVideoXFun{node}"]["input"]["required"][name]
    return options["options"] if kind == "COMBO" else kind


def test_choices(info):
    samplers = options_of(info, "Sampler", "sampler_name")
    assert samplers[0] == "cogvideox_ddim" and {"euler", "ddim", "dpmpp_2m", "uni_pc"} <= set(samplers)
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


def test_the_pack_is_imported_once(lab):
    """By ComfyUI's own list of import times."""
    lines = [line for line in lab.log_since(0).splitlines() if line.rstrip().endswith("cogvideox-fun")]
    assert len(lines) == 1 and "seconds" in lines[0], lines
    assert "IMPORT FAILED" not in lab.log_since(0)

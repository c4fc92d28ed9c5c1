"""What is known about the nodes of other packs: the order of their values, and their sockets.

From their published sources: ComfyUI-CogVideoXWrapper from November 19, 2024 (before, one wire named ``pipeline``
carried model and VAE), VideoX-Fun from September 2024, ComfyUI 0.33.0.
"""

from .values import Old

# Types of links that nodes of this pack do not have.
OLD_WIRES = {
    *("COGVIDEOMODEL", "COGVIDEOPIPE", "COGLORA", "COGCONTEXT", "COMPILEARGS", "TRANSFORMERBLOCKS"),
    *("TORAMODEL", "TORAFEATURES", "COGVIDECONTROLNETMODEL", "COGVIDECONTROLNET", "FETAARGS"),
    *("FASTERCACHEARGS", "TEACACHEARGS", "FunModels", "STRING_PROMPT"),
}

ATTENTION = "attention_mode:s"
STARTS = "strength:f start_percent:f end_percent:f"

WRAPPER = {
    "CogVideoXModelLoader": Old(
        (f"model:s base_precision:s quantization:s load_device:s enable_sequential_cpu_offload:b {ATTENTION}",),
        ("block_edit", "lora", "compile_args"),
    ),
    "DownloadAndLoadCogVideoModel": Old(
        (f"model:s precision:s quantization:s enable_sequential_cpu_offload:b {ATTENTION} load_device:s",),
        ("block_edit", "lora", "compile_args"),
    ),
    "DownloadAndLoadCogVideoGGUFModel": Old(
        (f"model:s vae_precision:s fp8_fastmode:b load_device:s enable_sequential_cpu_offload:b {ATTENTION}",),
        ("block_edit", "compile_args"),
    ),
    "CogVideoXVAELoader": Old(("model_name:s precision:s", "model_name:s"), ("compile_args",)),
    "CogVideoLoraSelect": Old(("lora:s strength:f fuse_lora:b", "lora:s strength:f"), ("prev_lora",)),
    "CogVideoLoraSelectComfy": Old(("lora:s strength:f fuse_lora:b",), ("prev_lora",)),
    "CogVideoXTorchCompileSettings": Old(("backend:s fullgraph:b mode:s dynamic:b dynamo_cache_size_limit:i",)),
    "CogVideoTextEncode": Old(("prompt:s strength:f force_offload:b", "prompt:s strength:f", "prompt:s"), ("clip",)),
    "CogVideoTextEncodeCombine": Old(
        ("combination_mode:s weighted_average_ratio:f",), ("conditioning_1", "conditioning_2")
    ),
    "CogVideoImageEncode": Old(
        (
            f"enable_tiling:b noise_aug_strength:f {STARTS}",
            "enable_tiling:b noise_aug_strength:f strength:f",
            "enable_tiling:b noise_aug_strength:f",
            "chunk_size:i enable_tiling:b noise_aug_strength:f",
            "chunk_size:i enable_tiling:b",
        ),
        ("vae", "start_image", "end_image"),
    ),
    "CogVideoImageEncodeFunInP": Old(
        ("num_frames:i enable_tiling:b noise_aug_strength:f",), ("vae", "start_image", "end_image")
    ),
    "CogVideoContextOptions": Old(
        (
            "context_schedule:s context_frames:i context_stride:i context_overlap:i freenoise:b",
            "context_schedule:s context_frames:i context_stride:i context_overlap:i",
        )
    ),
    "CogVideoSampler": Old(
        ("num_frames:i steps:i cfg:f seed:i+ scheduler:s denoise_strength:f",),
        (
            *("model", "positive", "negative", "samples", "image_cond_latents", "context_options", "controlnet"),
            *("tora_trajectory", "fastercache", "feta_args", "teacache_args"),
        ),
    ),
    "CogVideoDecode": Old(
        (
            "enable_vae_tiling:b tile_sample_min_height:i tile_sample_min_width:i tile_overlap_factor_height:f "
            "tile_overlap_factor_width:f auto_tile_size:b",
        ),
        ("vae", "samples"),
    ),
    "CogVideoXFunResizeToClosestBucket": Old(("base_resolution:i upscale_method:s crop:s",), ("images",)),
}

# type -> (its facts, why nothing here replaces it)
WRAPPER_ONLY = {
    "CogVideoTransformerEdit": (Old(("remove_blocks:s",)), "blocks of the transformer can't be removed"),
    "CogVideoEnhanceAVideo": (Old((STARTS.replace("strength", "weight"),)), "Enhance-A-Video is not supported"),
    "CogVideoXFasterCache": (
        Old(
            (
                "start_step:i hf_step:i lf_step:i cache_device:s num_blocks_to_cache:i",
                "start_step:i hf_step:i lf_step:i cache_device:s",
            )
        ),
        "use ComfyUI's EasyCache between the model and the sampler (docs/usage.md, Fewer calls)",
    ),
    "CogVideoXTeaCache": (
        Old(("rel_l1_thresh:f",)),
        "use ComfyUI's EasyCache between the model and the sampler (docs/usage.md, Fewer calls)",
    ),
    "DownloadAndLoadToraModel": (Old(("model:s",)), "Tora is not supported"),
    "ToraEncodeTrajectory": (
        Old(
            (
                f"coordinates:s width:i height:i num_frames:i {STARTS} enable_tiling:b",
                f"width:i height:i num_frames:i {STARTS} enable_tiling:b",
                f"width:i height:i num_frames:i {STARTS}",
            )
        ),
        "Tora is not supported",
    ),
    "ToraEncodeOpticalFlow": (Old((STARTS,)), "Tora is not supported"),
    "DownloadAndLoadCogVideoControlNet": (
        Old(("model:s",)),
        "ControlNets are not supported. The Control models of CogVideoX-Fun are, and they take the same control video",
    ),
    "CogVideoControlNet": (
        Old(("control_strength:f control_start_percent:f control_end_percent:f",)),
        "ControlNets are not supported. Load a Control model of CogVideoX-Fun, and use Control Conditioning",
    ),
    "CogVideoLatentPreview": (
        Old(
            (
                "seed:i+ min_val:f max_val:f r_bias:f g_bias:f b_bias:f",
                "seed:i min_val:f max_val:f r_bias:f g_bias:f b_bias:f",
            )
        ),
        "choose a preview method in ComfyUI's settings",
    ),
}

# Nodes that the wrapper had before that date and no longer has, or that this pack has under the same id.
WRAPPER_BEFORE = {
    *("CogVideoXFunVid2VidSampler", "CogVideoXFunControlSampler", "CogVideoControlImageEncode"),
    *("CogVideoImageInterpolationEncode", "CogVideoDualTextEncode_311", "CogVideoPABConfig", "CogVideoEncodePrompt"),
}

MODEL_VALUES = "model:s model_type:s GPU_memory_mode:s precision:s"
LORA_VALUES = ("lora_name:s strength_model:f lora_cache:b", "lora_name:s strength_model:f")
RUN = "seed:i+ steps:i cfg:f"
BUNDLE = ("cogvideoxfun_model",)
PROMPTED = ("cogvideoxfun_model", "prompt", "negative_prompt")

VIDEOX_FUN = {
    "LoadCogVideoXFunModel": Old((MODEL_VALUES,)),
    "LoadCogVideoXFunLora": Old(LORA_VALUES, BUNDLE),
    "FunTextBox": Old(("prompt:s",)),
    "FunCompile": Old(("cache_size_limit:i",), ("funmodels",)),
    "FunAttention": Old(("attention_type:s",), ("funmodels",)),
    "VideoToCanny": Old(("low_threshold:i high_threshold:i video_length:i",), ("input_video",)),
    "ImageToCanny": Old(("low_threshold:i high_threshold:i",), ("input_image",)),
    "CogVideoXFunT2VSampler": Old(
        (f"video_length:i width:i height:i is_image:b {RUN} scheduler:s",),
        PROMPTED,
    ),
    "CogVideoXFunInpaintSampler": Old(
        (f"video_length:i base_resolution:i {RUN} scheduler:s",), (*PROMPTED, "start_img", "end_img")
    ),
    "CogVideoXFunV2VSampler": Old(
        (f"video_length:i base_resolution:i {RUN} denoise_strength:f scheduler:s",),
        (*PROMPTED, "validation_video", "control_video"),
    ),
}
EARLY_MODEL = Old(
    ("model:s model_type:s low_gpu_memory_mode:b precision:s", "model:s low_gpu_memory_mode:b precision:s")
)
VIDEOX_FUN |= {f"LoadCogVideoX_{fun}_Model": EARLY_MODEL for fun in ("Fun", "FUN")}

# earlier name -> the name that the same node has now
RENAMED = {"CogVideoX_FUN_TextBox": "FunTextBox", "TextBox": "FunTextBox"}
for fun in ("Fun", "FUN"):
    RENAMED[f"LoadCogVideoX_{fun}_Lora"] = "LoadCogVideoXFunLora"
    RENAMED[f"CogVideoX_{fun}_T2VSampler"] = "CogVideoXFunT2VSampler"
    RENAMED[f"CogVideoX_{fun}_I2VSampler"] = "CogVideoXFunInpaintSampler"
    RENAMED[f"CogVideoX_{fun}_V2VSampler"] = "CogVideoXFunV2VSampler"

VIDEOX_FUN_ONLY = {
    "VideoToDepth": (Old(("video_length:i",)), "use a depth node of a preprocessor pack"),
    "VideoToOpenpose": (Old(("video_length:i",)), "use a pose node of a preprocessor pack"),
    "VideoToPose": (Old(("video_length:i",)), "use a pose node of a preprocessor pack"),
    "ImageToDepth": (Old(("",)), "use a depth node of a preprocessor pack"),
    "ImageToPose": (Old(("",)), "use a pose node of a preprocessor pack"),
}

NATIVE = {
    "UNETLoader": Old(("unet_name:s weight_dtype:s",)),
    "CLIPLoader": Old(("clip_name:s type:s device:s", "clip_name:s type:s")),
    "VAELoader": Old(("vae_name:s",)),
    "VAEEncode": Old(("",), ("pixels", "vae")),
    "VAEDecode": Old(("",), ("samples", "vae")),
    "VAEDecodeTiled": Old(
        ("tile_size:i overlap:i temporal_size:i temporal_overlap:i", "tile_size:i overlap:i", "tile_size:i"),
        ("samples", "vae"),
    ),
    "EmptyHunyuanLatentVideo": Old(("width:i height:i length:i batch_size:i",)),
    "EmptyLatentImage": Old(("width:i height:i batch_size:i",)),
}

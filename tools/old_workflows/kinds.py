"""The nodes that converted workflows are made of: those of the templates, and these."""

from templates.kinds import KINDS, LENGTH, Kind

PROMPTED = {"positive": "CONDITIONING", "negative": "CONDITIONING"}
SAMPLED = {**PROMPTED, "latent": "LATENT"}

KINDS = KINDS | {
    "CogVideoXFunTextEncoderLoader": Kind({}, {"text_encoder": ("COMBO", "")}, {"CLIP": "CLIP"}, (360, 80)),
    "CogVideoXFunVAELoader": Kind({}, {"vae_name": ("COMBO", "")}, {"VAE": "VAE"}, (360, 80)),
    "CogVideoXFunContextWindows": Kind(
        {"model": "MODEL"},
        {
            "context_length": ("INT", 49),
            "context_overlap": ("INT", 16),
            "context_schedule": ("COMBO", "standard_static"),
            "fuse_method": ("COMBO", "pyramid"),
        },
        {"model": "MODEL"},
        (320, 180),
    ),
    "CogVideoXFunResolution": Kind(
        {"image?": "IMAGE", "model?": "MODEL"},
        {
            "base_resolution": ("INT", 512),
            "aspect_ratio": ("COMBO", "7:4"),
            "token_length": ("INT", 0),
            **LENGTH,
        },
        {"width": "INT", "height": "INT", "length": "INT"},
        (320, 220),
    ),
    "CogVideoXFunImageConditioning": Kind(
        {**PROMPTED, "image_latent": "LATENT", "latent": "LATENT"}, {}, SAMPLED, (340, 130)
    ),
    "GetImageSize": Kind({"image": "IMAGE"}, {}, {"width": "INT", "height": "INT", "batch_size": "INT"}, (240, 110)),
    "ImageFromBatch": Kind(
        {"image": "IMAGE"}, {"batch_index": ("INT", 0), "length": ("INT", 1)}, {"IMAGE": "IMAGE"}, (300, 110)
    ),
    "TorchCompileModel": Kind({"model": "MODEL"}, {"backend": ("COMBO", "inductor")}, {"MODEL": "MODEL"}, (300, 80)),
    "ConditioningAverage": Kind(
        {"conditioning_to": "CONDITIONING", "conditioning_from": "CONDITIONING"},
        {"conditioning_to_strength": ("FLOAT", 1.0)},
        {"CONDITIONING": "CONDITIONING"},
        (320, 100),
    ),
    "ConditioningConcat": Kind(
        {"conditioning_to": "CONDITIONING", "conditioning_from": "CONDITIONING"},
        {},
        {"CONDITIONING": "CONDITIONING"},
        (320, 80),
    ),
}

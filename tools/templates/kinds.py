"""The nodes that templates are made of, as the front end writes them down. tests/host compares them with ComfyUI."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

WIDGET_TYPES = {"STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"}
LOADER, PROMPT, SAMPLER = "CogVideoXFunModelLoader", "CLIPTextEncode", "CogVideoXFunSampler"
LONG = "CogVideoXFunLongVideo"
SAM3 = {"SAM3_VideoTrack", "SAM3_TrackToMask"}  # ComfyUI 0.33.0 has them, 0.8.0 has not


@dataclasses.dataclass(frozen=True)
class Kind:
    """A type of node.

    Args:
        inputs: its sockets: name -> type. A name that ends with "?" is optional.
        widgets: name -> (type, value), in the order in which their values are saved.
        outputs: name -> type.
        size: in pixels, as the classic renderer draws it, with room for a picture or a text that a run shows.
        after: values that the front end saves behind that of a widget: name of the widget -> value.
    """

    inputs: Mapping[str, str]
    widgets: Mapping[str, tuple[str, object]]
    outputs: Mapping[str, str]
    size: tuple[int, int]
    after: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def slots(self) -> list[dict]:
        """The inputs of a node: its sockets, then its widgets."""
        sockets = [
            {"name": name.rstrip("?"), "type": kind, "link": None, **({"shape": 7} if name.endswith("?") else {})}
            for name, kind in self.inputs.items()
        ]
        widgets = [
            {"name": name, "type": kind, "link": None, "widget": {"name": name}}
            for name, (kind, _value) in self.widgets.items()
        ]
        return sockets + widgets

    def values(self, given: Mapping[str, object], after: Mapping[str, object] = MappingProxyType({})) -> list:
        """The saved values of the widgets, ``given`` or default, each with that ``after`` it."""
        values = []
        for name, (_kind, value) in self.widgets.items():
            values.append(given.get(name, value))
            values += [after.get(name, self.after[name])] if name in self.after else []
        return values


SIZE = {"width": ("INT", 720), "height": ("INT", 480)}
LENGTH = {"length": ("INT", 49)}
FIT = {"fit": ("COMBO", "crop")}
TILES = {"tile_size": ("INT", 0), "overlap": ("INT", 64)}

KINDS = {
    LOADER: Kind(
        {},
        {"model": ("COMBO", ""), "weight_dtype": ("COMBO", "default")},
        {"MODEL": "MODEL", "CLIP": "CLIP", "VAE": "VAE"},
        (360, 130),
    ),
    "CogVideoXFunLoraLoader": Kind(
        {"model": "MODEL"},
        {"lora_name": ("COMBO", ""), "strength": ("FLOAT", 1.0)},
        {"model": "MODEL"},
        (360, 110),
    ),
    PROMPT: Kind({"clip": "CLIP"}, {"text": ("STRING", "")}, {"CONDITIONING": "CONDITIONING"}, (420, 170)),
    "CogVideoXFunExampleClip": Kind(
        {},
        {"example": ("COMBO", "")},
        {"clip": "VIDEO", "first_frame": "IMAGE", "last_frame": "IMAGE", "mask": "MASK", "first_mask": "MASK"},
        (320, 400),
    ),
    "CogVideoXFunClipFrames": Kind(
        {"clip": "VIDEO", "model?": "MODEL"},
        {
            **SIZE,
            **LENGTH,
            "start_seconds": ("FLOAT", 0.0),
            "frame_rate": ("FLOAT", 8.0),
            **FIT,
        },
        {"frames": "IMAGE", "fps": "FLOAT", "audio": "AUDIO"},
        (320, 300),
    ),
    "CogVideoXFunStartEndImage": Kind(
        {"start_image?": "IMAGE", "end_image?": "IMAGE", "model?": "MODEL"},
        {**SIZE, **LENGTH, **FIT, "start_frames": ("INT", 0)},
        {"video": "IMAGE", "mask": "MASK"},
        (320, 440),
    ),
    "CogVideoXFunMaskAdjust": Kind(
        {"mask": "MASK"},
        {"grow": ("INT", 0), "blur": ("FLOAT", 0.0), "invert": ("BOOLEAN", False)},
        {"mask": "MASK"},
        (310, 340),
    ),
    "CogVideoXFunMaskFollow": Kind(
        {"images": "IMAGE", "mask": "MASK", "optical_flow?": "OPTICAL_FLOW"}, {}, {"mask": "MASK"}, (340, 360)
    ),
    "CogVideoXFunVAEEncode": Kind(
        {"vae": "VAE", "video": "IMAGE", "mask?": "MASK", "model?": "MODEL"},
        {
            **TILES,
            "noise_augmentation": ("FLOAT", -1.0),
            "noise_seed": ("INT", 0),
            "sample_posterior": ("BOOLEAN", False),
        },
        {"latent": "LATENT"},
        (320, 290),
    ),
    "CogVideoXFunMaskResize3D": Kind(
        {"mask": "MASK", "latent": "LATENT"}, {"soft": ("BOOLEAN", False)}, {"latent mask": "MASK"}, (320, 320)
    ),
    "CogVideoXFunInpaintConditioning": Kind(
        {"positive": "CONDITIONING", "negative": "CONDITIONING", "masked_latent": "LATENT", "mask": "MASK"},
        {},
        {"positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT"},
        (340, 130),
    ),
    "CogVideoXFunControlConditioning": Kind(
        {"positive": "CONDITIONING", "negative": "CONDITIONING", "control_latent": "LATENT"},
        {"strength": ("FLOAT", 1.0), "start_percent": ("FLOAT", 0.0), "end_percent": ("FLOAT", 1.0)},
        {"positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT"},
        (340, 190),
    ),
    "CogVideoXFunEmptyLatent": Kind(
        {"model?": "MODEL"}, {**SIZE, **LENGTH, "batch_size": ("INT", 1)}, {"latent": "LATENT"}, (320, 180)
    ),
    SAMPLER: Kind(
        {"model": "MODEL", "positive": "CONDITIONING", "negative": "CONDITIONING", "latent": "LATENT"},
        {
            "seed": ("INT", 43),
            "steps": ("INT", 50),
            "cfg": ("FLOAT", 6.0),
            "sampler_name": ("COMBO", "cogvideox_ddim"),
            "spacing": ("COMBO", "auto"),
            "denoise": ("FLOAT", 1.0),
            "dynamic_cfg": ("BOOLEAN", False),
        },
        {"latent": "LATENT"},
        (340, 560),
        after={"seed": "randomize"},
    ),
    "CogVideoXFunVAEDecode": Kind({"vae": "VAE", "latent": "LATENT"}, TILES, {"video": "IMAGE"}, (320, 130)),
    "CogVideoXFunCompositeSource": Kind(
        {"video": "IMAGE", "source": "IMAGE", "mask?": "MASK"},
        {"match_colors": ("FLOAT", 1.0), "paste_known": ("BOOLEAN", True)},
        {"video": "IMAGE"},
        (320, 150),
    ),
    "CogVideoXFunJoinClips": Kind(
        {"clip": "IMAGE", "continuation": "IMAGE"}, {"overlap": ("INT", 9)}, {"video": "IMAGE"}, (320, 110)
    ),
    LONG: Kind(
        {"model": "MODEL", "clip": "CLIP", "vae": "VAE", "start_image": "IMAGE", "end_image?": "IMAGE"},
        {
            **SIZE,
            "length": ("INT", 209),
            "round_length": ("INT", 49),
            "overlap": ("INT", 9),
            "prompt": ("STRING", ""),
            "negative_prompt": ("STRING", ""),
            "line_per_round": ("BOOLEAN", True),
            "seed": ("INT", 43),
            "steps": ("INT", 50),
            "cfg": ("FLOAT", 6.0),
            "sampler_name": ("COMBO", "cogvideox_ddim"),
            "spacing": ("COMBO", "auto"),
            "match_colors": ("FLOAT", 1.0),
            **FIT,
            "dynamic_cfg": ("BOOLEAN", False),
        },
        {"video": "IMAGE"},
        (420, 900),
        after={"seed": "randomize"},
    ),
    "CreateVideo": Kind(
        {"images": "IMAGE", "audio?": "AUDIO"}, {"fps": ("FLOAT", 8.0)}, {"VIDEO": "VIDEO"}, (320, 110)
    ),
    "Canny": Kind(
        {"image": "IMAGE"},
        {"low_threshold": ("FLOAT", 0.2), "high_threshold": ("FLOAT", 0.5)},
        {"IMAGE": "IMAGE"},
        (320, 110),
    ),
    "ImageScale": Kind(
        {"image": "IMAGE"},
        {"upscale_method": ("COMBO", "bilinear"), **SIZE, "crop": ("COMBO", "center")},
        {"IMAGE": "IMAGE"},
        (310, 160),
    ),
    "CheckpointLoaderSimple": Kind(
        {}, {"ckpt_name": ("COMBO", "")}, {"MODEL": "MODEL", "CLIP": "CLIP", "VAE": "VAE"}, (360, 110)
    ),
    "SAM3_VideoTrack": Kind(
        {"images": "IMAGE", "model": "MODEL", "initial_mask?": "MASK", "conditioning?": "CONDITIONING"},
        {"detection_threshold": ("FLOAT", 0.5), "max_objects": ("INT", 4), "detect_interval": ("INT", 1)},
        {"track_data": "SAM3_TRACK_DATA"},
        (320, 190),
    ),
    "SAM3_TrackToMask": Kind(
        {"track_data": "SAM3_TRACK_DATA"}, {"object_indices": ("STRING", "")}, {"masks": "MASK"}, (320, 90)
    ),
    "MaskToImage": Kind({"mask": "MASK"}, {}, {"IMAGE": "IMAGE"}, (310, 60)),
    "ImageToMask": Kind({"image": "IMAGE"}, {"channel": ("COMBO", "red")}, {"MASK": "MASK"}, (310, 80)),
    "LoadImage": Kind(
        {},
        {"image": ("COMBO", "example.png")},
        {"IMAGE": "IMAGE", "MASK": "MASK"},
        (320, 340),
        after={"image": "image"},
    ),
    "LoadVideo": Kind({}, {"file": ("COMBO", "video.mp4")}, {"VIDEO": "VIDEO"}, (320, 340), after={"file": "image"}),
    "SaveVideo": Kind(
        {"video": "VIDEO"},
        {
            "filename_prefix": ("STRING", "video/CogVideoX-Fun"),
            "format": ("COMBO", "auto"),
            "codec": ("COMBO", "auto"),
        },
        {},
        (460, 520),
    ),
    "MarkdownNote": Kind({}, {"": ("STRING", "")}, {}, (360, 520)),
}

"""The templates: each task in an edition for real models and one for the nano model."""

import dataclasses
from collections.abc import Callable

from . import notes
from .graph import Graph
from .graphs import (
    CONTROL,
    FEW_STEPS_LORA,
    REWARD_LORA,
    Edition,
    control,
    extend,
    few_steps,
    image_to_video,
    inpaint_region,
    long_video,
    lora,
    nano,
    region_by_a_word,
    region_that_follows,
    start_end_image_to_video,
    text_to_video,
    video_to_video,
)

CATEGORY = "Video generation and editing"  # where ComfyUI's own blueprints for video are


@dataclasses.dataclass(frozen=True)
class Task:
    """A task with its two editions.

    Args:
        title: "Image to Video": a file of workflows/ is called "CogVideoX-Fun Image to Video.json".
        group: its category among ComfyUI's blueprints.
        build: fills the graph.
        sources: what the subgraph is given by other nodes: its input -> (kind of node, title, output).
        description, aliases: for ComfyUI's search.
        nano: None where the nano model can't do without a download of something else.
        note: see `notes.note`.
    """

    title: str
    group: str
    build: Callable[[Graph, Edition], None]
    sources: dict[str, tuple[str, str, str]]
    description: str
    aliases: tuple[str, ...]
    real: Edition
    nano: Edition | None
    note: notes.Advice


START = {"start_image": ("LoadImage", "Start image", "IMAGE")}
END = {"end_image": ("LoadImage", "End image", "IMAGE")}
CLIP = {"clip": ("LoadVideo", "Clip", "VIDEO")}
FIRST_MASK = {"first_mask": ("LoadImage", "First frame with the painted object", "MASK")}
MASK = {"mask": ("LoadImage", "Frame with the painted region", "MASK")}
SQUARE = "a red square moves right over the night"
BETWEEN = (
    "The scene changes smoothly from the first picture to the last in one continuous shot. The motion is slow and "
    "natural, the camera glides forward, and light and colours stay realistic and rich in detail."
)

TASKS = (
    Task(
        "Text to Video",
        "Text to video",
        text_to_video,
        {},
        "Make a video from a text with a CogVideoX-Fun model.",
        ("t2v", "cogvideo", "cogvideox"),
        Edition(
            "A golden retriever runs along a wide sandy beach at sunrise. Its wet fur shines in the warm light and "
            "small waves break behind it. The camera follows at the dog's height, in slow, steady motion, with "
            "shallow depth of field and a film look."
        ),
        nano("a yellow circle moves up over the forest", seed=42),
        notes.TEXT,
    ),
    Task(
        "Image to Video",
        "Image to video",
        image_to_video,
        START,
        "Make a video that begins with an image, with a CogVideoX-Fun InP model. Several start frames are continued "
        "as a clip.",
        ("i2v", "cogvideo", "cogvideox", "animate image"),
        Edition(
            "The scene of the picture comes to life. Light and shadows move gently, small details stir in a light "
            "breeze, and the camera glides slowly forward. The motion is smooth and natural, the picture sharp and "
            "rich in detail."
        ),
        nano(SQUARE),
        notes.IMAGE,
    ),
    Task(
        "Start and End Image to Video",
        "FLF2V",
        start_end_image_to_video,
        {**START, **END},
        "Make a video from a start image to an end image, with a CogVideoX-Fun InP model.",
        ("flf2v", "first last frame", "cogvideo", "cogvideox", "keyframes"),
        Edition(BETWEEN),
        nano(SQUARE),
        notes.START_END,
    ),
    Task(
        "Video to Video",
        "Video to video",
        video_to_video,
        CLIP,
        "Make another video of a clip with a CogVideoX-Fun model. The result keeps the clip's speed and sound.",
        ("v2v", "restyle", "cogvideo", "cogvideox"),
        Edition(
            "An oil painting in thick, bright strokes of paint. People and things move as before, the colours glow in "
            "warm evening light, and the canvas shows through in the shadows.",
            steps=35,
            denoise=0.7,
        ),
        nano("a yellow square moves right over the night", denoise=0.6),
        notes.VIDEO,
    ),
    Task(
        "Region Inpaint",
        "Inpaint video",
        inpaint_region,
        {**CLIP, **MASK},
        "Regenerate a masked region of a clip and keep the rest, with a CogVideoX-Fun InP model. Mask: 1 (white) = "
        "generate, 0 (black) = keep; a mask of one frame applies to all frames. The result keeps the clip's speed and "
        "sound.",
        ("video inpaint", "cogvideo", "cogvideox", "mask video"),
        Edition(
            "A busy street in daylight. A bright red vintage car drives slowly through the middle of the picture, its "
            "paint and chrome gleam in the sun, and people walk past. The camera stands still, the picture is sharp "
            "and realistic."
        ),
        nano("a blue circle moves right over the night"),
        notes.REGION,
    ),
    Task(
        "Region That Follows",
        "Inpaint video",
        region_that_follows,
        {**CLIP, **FIRST_MASK},
        "Replace an object in a clip with a CogVideoX-Fun InP model. The mask of the first frame follows the object, "
        "and the rest of the clip stays as it is. Mask: 1 (white) = generate, 0 (black) = keep.",
        ("video inpaint", "mask tracking", "optical flow", "replace object", "remove object", "cogvideo", "cogvideox"),
        Edition(
            "A busy street in daylight. A bright red vintage car drives slowly along the road, its paint and chrome "
            "gleam in the sun, and people walk past. The camera stands still, the picture is sharp and realistic.",
            grow=16,
        ),
        nano("a blue circle moves right over the night", grow=6),
        notes.FOLLOWS,
    ),
    Task(
        "Region by a Word",
        "Inpaint video",
        region_by_a_word,
        CLIP,
        "Replace what a word names in a clip, with SAM3 and a CogVideoX-Fun InP model. SAM3 finds it in every frame, "
        "and the rest of the clip stays as it is. Needs ComfyUI's SAM3 nodes (0.33 and newer).",
        ("video inpaint", "sam3", "segment anything", "text mask", "replace object", "cogvideo", "cogvideox"),
        Edition(
            "A busy street in daylight. A bright red vintage car drives slowly along the road, its paint and chrome "
            "gleam in the sun, and people walk past. The camera stands still, the picture is sharp and realistic.",
            word="car",
            grow=16,
        ),
        None,
        notes.WORD,
    ),
    Task(
        "Control",
        "Control to video",
        control,
        CLIP,
        "Make a video with the edges of a clip, with a CogVideoX-Fun Control model. The result keeps the clip's speed "
        "and sound.",
        ("canny", "controlnet", "depth", "pose", "cogvideo", "cogvideox"),
        Edition(
            "A figurine of folded paper moves through a paper town. Soft light from the left, crisp shadows, fine "
            "creases in every surface, and a shallow depth of field.",
            model=CONTROL,
        ),
        nano("a green square moves right over the sand", model="nano/control"),
        notes.CONTROL,
    ),
    Task(
        "Extend a Clip",
        "Video to video",
        extend,
        CLIP,
        "Continue a clip with a CogVideoX-Fun InP model. The new part goes on from the last frames of the old one.",
        ("continue video", "longer video", "cogvideo", "cogvideox"),
        Edition(
            "The scene goes on as it began. The camera keeps its pace, people and things move on in the same "
            "direction, and light and colours stay as they are."
        ),
        nano(SQUARE),
        notes.EXTEND,
    ),
    Task(
        "Long Video",
        "Image to video",
        long_video,
        START,
        "Make a video of any length from an image with a CogVideoX-Fun InP model, round after round, with a prompt "
        "for each.",
        ("long video", "infinite", "i2v", "cogvideo", "cogvideox"),
        Edition(
            "The scene of the picture comes to life. Light and shadows move gently, and the camera glides slowly "
            "forward.\n"
            "The camera keeps gliding forward at the same pace. Small details stir in a light breeze.\n"
            "The camera comes to rest. The light stays as it is, and the scene becomes calm.",
            length=209,
        ),
        nano(f"{SQUARE}\na red square moves left over the night\n{SQUARE}", length=41, round_length=17),
        notes.LONG,
    ),
    Task(
        "LoRA",
        "Text to video",
        lora,
        {},
        "Make a video from a text with a CogVideoX-Fun model and a LoRA.",
        ("reward lora", "style", "cogvideo", "cogvideox"),
        Edition(
            "A clay teapot steams on a wooden table beside a window with rain on the glass. The camera circles slowly "
            "around it, in soft morning light, with shallow depth of field and rich detail.",
            lora=REWARD_LORA,
            strength=0.7,
        ),
        nano("a green ring moves right over the sand", lora="nano/ring.safetensors"),
        notes.LORA,
    ),
    Task(
        "Few Steps",
        "FLF2V",
        few_steps,
        {**START, **END},
        "Make a video from a start image to an end image in 4 steps without guidance, with a CogVideoX-Fun InP model "
        "and a LoRA that was trained for it.",
        ("fast", "4 steps", "distilled", "turbo", "lcm", "flf2v", "cogvideo", "cogvideox"),
        Edition(
            BETWEEN,
            lora=FEW_STEPS_LORA,
            steps=4,
            cfg=1.0,
        ),
        nano(SQUARE, lora="nano/few_steps.safetensors", steps=4, cfg=1.0),
        notes.FEW_STEPS,
    ),
)

# each task with whether it is the nano edition
EDITIONS = tuple((task, is_nano) for task in TASKS for is_nano in (False, True) if task.nano or not is_nano)

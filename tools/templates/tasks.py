"""What the pack makes videos from: each task as a graph, in an edition for real models and one for the nano model."""

import dataclasses
from collections.abc import Callable
from types import MappingProxyType

from . import notes
from .graph import Graph, Node, Source
from .kinds import KINDS, LOADER, LONG, PROMPT, SAMPLER

CATEGORY = "Video generation and editing"  # where ComfyUI's own blueprints for video are
NEGATIVE = (
    "The video is of low quality: blurred, pixelated and full of compression artifacts. A watermark or text covers "
    "the picture. The motion is jerky, frames flicker, and faces, hands and objects are deformed."
)
INP, CONTROL = "CogVideoX-Fun-V1.1-2b-InP", "CogVideoX-Fun-V1.1-2b-Control"
REWARD_LORA = "CogVideoX-Fun-V1.1-2b-InP-HPS2.1.safetensors"
COLOURS = {"positive": {"color": "#232", "bgcolor": "#353"}, "negative": {"color": "#322", "bgcolor": "#533"}}


@dataclasses.dataclass(frozen=True)
class Edition:
    """The values of a template."""

    prompt: str
    model: str = INP
    negative: str = NEGATIVE
    width: int = 720
    height: int = 480
    length: int = 49
    steps: int = 50
    cfg: float = 6.0
    seed: int = 43
    denoise: float = 1.0
    lora: str = ""
    strength: float = 1.0  # of the LoRA
    round_length: int = 49  # of a long video
    overlap: int = 9  # frames of a clip that the model sees when it continues it
    word: str = ""  # what SAM3 finds
    grow: int = 12  # pixels by which a region grows

    @property
    def is_nano(self) -> bool:
        return self.model.startswith("nano")


def nano(prompt: str, **values) -> Edition:
    """The size, length and guidance that the nano model was trained and is evaluated with.

    It was trained with eight known frames at most, so its overlap is 5.
    """
    size = {"width": 128, "height": 128, "length": 17, "overlap": 5}
    return Edition(prompt, **{"model": "nano", "negative": "", "steps": 20, "cfg": 2.0} | size | values)


# what the graphs share


def ask(graph: Graph, edition: Edition, sources: dict[str, str], **special: tuple[str, object]) -> dict[str, Source]:
    """What a task is given, in the order of its node: sources, prompt, model, size, special, sampling."""
    widgets = {
        "prompt": ("STRING", edition.prompt),
        **({"word": ("STRING", edition.word)} if edition.word else {}),
        "model": ("COMBO", edition.model),
        "width": ("INT", edition.width),
        "height": ("INT", edition.height),
        "length": ("INT", edition.length),
        **special,
        "steps": ("INT", edition.steps),
        "cfg": ("FLOAT", edition.cfg),
    }
    given = {name: graph.ask(name, kind) for name, kind in sources.items()}
    return given | {name: graph.ask(name, kind, value) for name, (kind, value) in widgets.items()}


def size_of(given: dict[str, Source]) -> dict[str, Source]:
    return {name: given[name] for name in ("width", "height", "length")}


def outputs_of(node: Node) -> dict[str, Source]:
    return {name: node[name] for name in KINDS[node.kind].outputs}


def load(graph: Graph, given: dict[str, Source], edition: Edition) -> Node:
    graph.group("Model")
    files = {} if edition.is_nano else {"models": notes.model_entries(edition.model)}
    return graph.add(LOADER, model=given["model"], properties=files)


def prompts(graph: Graph, given: dict[str, Source], edition: Edition, clip: Source) -> dict[str, Source]:
    graph.group("Prompt")
    positive = graph.add(PROMPT, title="Positive prompt", clip=clip, text=given["prompt"])
    negative = graph.add(PROMPT, title="Negative prompt", clip=clip, text=edition.negative)
    for node, name in ((positive, "positive"), (negative, "negative")):
        node.data |= COLOURS[name]
    return {"positive": positive["CONDITIONING"], "negative": negative["CONDITIONING"]}


def sample(
    graph: Graph, given: dict[str, Source], edition: Edition, loaded: Node, model: Source, **inputs: object
) -> Node:
    """The sampler, and the decoder of what it makes."""
    graph.group("Sample")
    asked = {name: given[name] for name in ("steps", "cfg")}
    after = {"seed": "fixed"} if edition.is_nano else {}  # its first click shows what its card shows
    sampler = graph.add(SAMPLER, model=model, **inputs, **asked, seed=edition.seed, after=after)
    graph.show(sampler, "seed", "control_after_generate")
    graph.group("Video")
    return graph.add("CogVideoXFunVAEDecode", vae=loaded["VAE"], latent=sampler["latent"])


def inpaint(graph: Graph, loaded: Node, video: Source, mask: Source, prompted: dict[str, Source]) -> dict[str, Source]:
    """Conditioning and latent of a video with a mask."""
    graph.group("Known part")
    model = loaded["MODEL"]
    encoded = graph.add("CogVideoXFunVAEEncode", vae=loaded["VAE"], video=video, mask=mask, model=model)["latent"]
    graph.column()
    resized = graph.add("CogVideoXFunMaskResize3D", mask=mask, latent=encoded)["latent mask"]
    graph.column()
    conditioned = graph.add("CogVideoXFunInpaintConditioning", **prompted, masked_latent=encoded, mask=resized)
    return outputs_of(conditioned)


def create(graph: Graph, images: Source, **inputs: Source) -> None:
    graph.column()
    graph.give("video", graph.add("CreateVideo", images=images, **inputs)["VIDEO"])


def begin(
    graph: Graph, edition: Edition, sources: dict[str, str], **special: tuple[str, object]
) -> tuple[dict[str, Source], Node, dict[str, Source]]:
    """What a task is given (see `ask`), the model's loader, and both prompts."""
    given = ask(graph, edition, sources, **special)
    loaded = load(graph, given, edition)
    return given, loaded, prompts(graph, given, edition, loaded["CLIP"])


def begin_with_clip(
    graph: Graph, edition: Edition, sources: dict[str, str] = MappingProxyType({}), **special: tuple[str, object]
) -> tuple[dict[str, Source], Node, dict[str, Source], Node]:
    """`begin` with a clip among the sources, and the node that takes its frames."""
    special = {"start_seconds": ("FLOAT", 0.0), **special}
    given, loaded, prompted = begin(graph, edition, {"clip": "VIDEO", **sources}, **special)
    graph.group("Source clip")
    clip = graph.add(
        "CogVideoXFunClipFrames",
        clip=given["clip"],
        model=loaded["MODEL"],
        **size_of(given),
        start_seconds=given["start_seconds"],
    )
    return given, loaded, prompted, clip


# the tasks


def text_to_video(graph: Graph, edition: Edition) -> None:
    given, loaded, prompted = begin(graph, edition, {})
    graph.group("Size")
    latent = graph.add("CogVideoXFunEmptyLatent", model=loaded["MODEL"], **size_of(given))["latent"]
    video = sample(graph, given, edition, loaded, loaded["MODEL"], **prompted, latent=latent)["video"]
    create(graph, video)


def lora(graph: Graph, edition: Edition) -> None:
    special = {"lora_name": ("COMBO", edition.lora), "lora_strength": ("FLOAT", edition.strength)}
    given = ask(graph, edition, {}, **special)
    loaded = load(graph, given, edition)
    graph.column()
    model = graph.add(
        "CogVideoXFunLoraLoader",
        model=loaded["MODEL"],
        lora_name=given["lora_name"],
        strength=given["lora_strength"],
        properties={} if edition.is_nano else {"models": [notes.lora_entry(edition.lora)]},
    )["model"]
    prompted = prompts(graph, given, edition, loaded["CLIP"])
    graph.group("Size")
    latent = graph.add("CogVideoXFunEmptyLatent", model=model, **size_of(given))["latent"]
    video = sample(graph, given, edition, loaded, model, **prompted, latent=latent)["video"]
    create(graph, video)


def start_end(graph: Graph, edition: Edition, names: tuple[str, ...]) -> None:
    given, loaded, prompted = begin(graph, edition, dict.fromkeys(names, "IMAGE"))
    graph.group("Pictures")
    pictures = {name: given[name] for name in names}
    built = graph.add("CogVideoXFunStartEndImage", **pictures, model=loaded["MODEL"], **size_of(given))
    conditioned = inpaint(graph, loaded, built["video"], built["mask"], prompted)
    create(graph, sample(graph, given, edition, loaded, loaded["MODEL"], **conditioned)["video"])


def image_to_video(graph: Graph, edition: Edition) -> None:
    start_end(graph, edition, ("start_image",))


def start_end_image_to_video(graph: Graph, edition: Edition) -> None:
    start_end(graph, edition, ("start_image", "end_image"))


def video_to_video(graph: Graph, edition: Edition) -> None:
    given, loaded, prompted, clip = begin_with_clip(graph, edition, denoise=("FLOAT", edition.denoise))
    graph.group("Latent")
    latent = graph.add(
        "CogVideoXFunVAEEncode",
        vae=loaded["VAE"],
        video=clip["frames"],
        model=loaded["MODEL"],
        sample_posterior=True,  # as VideoX-Fun does
    )["latent"]
    asked = {"latent": latent, "denoise": given["denoise"]}
    video = sample(graph, given, edition, loaded, loaded["MODEL"], **prompted, **asked)["video"]
    create(graph, video, audio=clip["audio"], fps=clip["fps"])


def like_the_clip(graph: Graph, given: dict[str, Source], mask: Source) -> Source:
    """A painted mask, cropped and scaled as the clip is."""
    graph.group("Region")
    size = {name: given[name] for name in ("width", "height")}
    image = graph.add("MaskToImage", mask=mask)["IMAGE"]
    graph.column()
    scaled = graph.add("ImageScale", title="Scale and crop like the clip", image=image, **size)["IMAGE"]
    graph.column()
    return graph.add("ImageToMask", image=scaled)["MASK"]


def inpaint_region(graph: Graph, edition: Edition) -> None:
    given, loaded, prompted, clip = begin_with_clip(graph, edition, {"mask": "MASK"}, grow=("INT", edition.grow))
    mask = like_the_clip(graph, given, given["mask"])
    soft = graph.add("CogVideoXFunMaskAdjust", title="Soft edge outside", mask=mask, grow=given["grow"], blur=4.0)
    replace_region(graph, given, edition, loaded, prompted, clip, mask, soft["mask"])


def replace_region(
    graph: Graph,
    given: dict[str, Source],
    edition: Edition,
    loaded: Node,
    prompted: dict[str, Source],
    clip: Node,
    mask: Source,
    soft: Source,
) -> None:
    """Generate what is in ``mask``, and paste it into the clip by ``soft``."""
    conditioned = inpaint(graph, loaded, clip["frames"], mask, prompted)
    video = sample(graph, given, edition, loaded, loaded["MODEL"], **conditioned)["video"]
    graph.column()
    pasted = graph.add("CogVideoXFunCompositeSource", video=video, source=clip["frames"], mask=soft)["video"]
    create(graph, pasted, audio=clip["audio"], fps=clip["fps"])


def grown(graph: Graph, given: dict[str, Source], mask: Source) -> tuple[Source, Source]:
    """A region that covers an object, and that region with a soft edge."""
    adjust = "CogVideoXFunMaskAdjust"
    graph.column()
    region = graph.add(adjust, title="Grow the region", mask=mask, grow=given["grow"])["mask"]
    graph.column()
    return region, graph.add(adjust, title="Soft edge outside", mask=region, grow=12, blur=4.0)["mask"]


def region_that_follows(graph: Graph, edition: Edition) -> None:
    asked = {"first_mask": "MASK"}
    given, loaded, prompted, clip = begin_with_clip(graph, edition, asked, grow=("INT", edition.grow))
    mask = like_the_clip(graph, given, given["first_mask"])
    graph.column()
    followed = graph.add("CogVideoXFunMaskFollow", images=clip["frames"], mask=mask)["mask"]
    replace_region(graph, given, edition, loaded, prompted, clip, *grown(graph, given, followed))


def region_by_a_word(graph: Graph, edition: Edition) -> None:
    special = {"sam3_model": ("COMBO", notes.SAM3_FILE), "grow": ("INT", edition.grow)}
    given, loaded, prompted, clip = begin_with_clip(graph, edition, **special)
    graph.group("Region")
    files = {"models": [notes.sam3_entry()]}
    sam3 = graph.add("CheckpointLoaderSimple", title="Load SAM3", ckpt_name=given["sam3_model"], properties=files)
    graph.column()
    word = graph.add(PROMPT, title="What to find", clip=sam3["CLIP"], text=given["word"])["CONDITIONING"]
    graph.column()
    tracked = graph.add("SAM3_VideoTrack", images=clip["frames"], model=sam3["MODEL"], conditioning=word)
    graph.column()
    found = graph.add("SAM3_TrackToMask", track_data=tracked["track_data"])["masks"]
    replace_region(graph, given, edition, loaded, prompted, clip, *grown(graph, given, found))


def control(graph: Graph, edition: Edition) -> None:
    given, loaded, prompted, clip = begin_with_clip(graph, edition, strength=("FLOAT", 1.0))
    graph.group("Edges")
    thresholds = {"low_threshold": 0.1, "high_threshold": 0.2} if edition.is_nano else {}
    edges = graph.add("Canny", title="Canny", image=clip["frames"], **thresholds)["IMAGE"]
    graph.group("Control")
    latent = graph.add("CogVideoXFunVAEEncode", vae=loaded["VAE"], video=edges, model=loaded["MODEL"])["latent"]
    graph.column()
    conditioned = graph.add(
        "CogVideoXFunControlConditioning", **prompted, control_latent=latent, strength=given["strength"]
    )
    video = sample(graph, given, edition, loaded, loaded["MODEL"], **outputs_of(conditioned))["video"]
    create(graph, video, audio=clip["audio"], fps=clip["fps"])


def extend(graph: Graph, edition: Edition) -> None:
    given, loaded, prompted, clip = begin_with_clip(graph, edition, overlap=("INT", edition.overlap))
    graph.group("Its last frames")
    built = graph.add(
        "CogVideoXFunStartEndImage",
        start_image=clip["frames"],
        start_frames=given["overlap"],
        model=loaded["MODEL"],
        **size_of(given),
    )
    conditioned = inpaint(graph, loaded, built["video"], built["mask"], prompted)
    video = sample(graph, given, edition, loaded, loaded["MODEL"], **conditioned)["video"]
    graph.column()
    joined = graph.add("CogVideoXFunJoinClips", clip=clip["frames"], continuation=video, overlap=given["overlap"])
    create(graph, joined["video"], audio=clip["audio"])


def long_video(graph: Graph, edition: Edition) -> None:
    special = {"round_length": ("INT", edition.round_length), "overlap": ("INT", edition.overlap)}
    given = ask(graph, edition, {"start_image": "IMAGE"}, **special)
    loaded = load(graph, given, edition)
    graph.group("Rounds")
    names = ("start_image", "prompt", "round_length", "overlap", "steps", "cfg")
    node = graph.add(
        LONG,
        model=loaded["MODEL"],
        clip=loaded["CLIP"],
        vae=loaded["VAE"],
        **{name: given[name] for name in names},
        **size_of(given),
        negative_prompt=edition.negative,
        seed=edition.seed,
        after={"seed": "fixed"},  # another seed would sample every round again
    )
    graph.show(node, "seed", "control_after_generate")
    graph.group("Video")
    graph.give("video", graph.add("CreateVideo", images=node["video"])["VIDEO"])


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
        Edition(
            "The scene changes smoothly from the first picture to the last in one continuous shot. The motion is slow "
            "and natural, the camera glides forward, and light and colours stay realistic and rich in detail."
        ),
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
)

# each task with whether it is the nano edition
EDITIONS = tuple((task, is_nano) for task in TASKS for is_nano in (False, True) if task.nano or not is_nano)

"""What the pack makes videos from, as graphs: each fills a graph with the values of an edition."""

import dataclasses
from types import MappingProxyType

from . import notes
from .graph import Graph, Node, Source
from .kinds import KINDS, LOADER, LONG, PROMPT, SAMPLER

NEGATIVE = (
    "The video is of low quality: blurred, pixelated and full of compression artifacts. A watermark or text covers "
    "the picture. The motion is jerky, frames flicker, and faces, hands and objects are deformed."
)
INP, CONTROL = "CogVideoX-Fun-V1.1-2b-InP", "CogVideoX-Fun-V1.1-2b-Control"
REWARD_LORA = "CogVideoX-Fun-V1.1-2b-InP-HPS2.1.safetensors"
FEW_STEPS_LORA = "fun_2b_few_steps.safetensors"  # no such file is published: its note says how to train it
ENDS = "start_image", "end_image"
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


def begin_with_lora(
    graph: Graph, edition: Edition, sources: dict[str, str] = MappingProxyType({})
) -> tuple[dict[str, Source], Node, dict[str, Source], Source]:
    """`begin` with a LoRA that can be chosen, and the model with it."""
    special = {"lora_name": ("COMBO", edition.lora), "lora_strength": ("FLOAT", edition.strength)}
    given = ask(graph, edition, sources, **special)
    loaded = load(graph, given, edition)
    graph.column()
    model = graph.add(
        "CogVideoXFunLoraLoader",
        model=loaded["MODEL"],
        lora_name=given["lora_name"],
        strength=given["lora_strength"],
        properties={"models": [notes.lora_entry(edition.lora)]} if edition.lora == REWARD_LORA else {},
    )["model"]
    return given, loaded, prompts(graph, given, edition, loaded["CLIP"]), model


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
    given, loaded, prompted, model = begin_with_lora(graph, edition)
    graph.group("Size")
    latent = graph.add("CogVideoXFunEmptyLatent", model=model, **size_of(given))["latent"]
    video = sample(graph, given, edition, loaded, model, **prompted, latent=latent)["video"]
    create(graph, video)


def known_ends(
    graph: Graph, given: dict[str, Source], loaded: Node, prompted: dict[str, Source], names: tuple[str, ...]
) -> dict[str, Source]:
    """Conditioning and latent of a video with given pictures."""
    graph.group("Pictures")
    pictures = {name: given[name] for name in names}
    built = graph.add("CogVideoXFunStartEndImage", **pictures, model=loaded["MODEL"], **size_of(given))
    return inpaint(graph, loaded, built["video"], built["mask"], prompted)


def start_end(graph: Graph, edition: Edition, names: tuple[str, ...]) -> None:
    given, loaded, prompted = begin(graph, edition, dict.fromkeys(names, "IMAGE"))
    conditioned = known_ends(graph, given, loaded, prompted, names)
    create(graph, sample(graph, given, edition, loaded, loaded["MODEL"], **conditioned)["video"])


def image_to_video(graph: Graph, edition: Edition) -> None:
    start_end(graph, edition, ("start_image",))


def start_end_image_to_video(graph: Graph, edition: Edition) -> None:
    start_end(graph, edition, ENDS)


def few_steps(graph: Graph, edition: Edition) -> None:
    given, loaded, prompted, model = begin_with_lora(graph, edition, dict.fromkeys(ENDS, "IMAGE"))
    conditioned = known_ends(graph, given, loaded, prompted, ENDS)
    create(graph, sample(graph, given, edition, loaded, model, **conditioned, spacing="trailing")["video"])


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

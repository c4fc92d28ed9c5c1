"""The note beside a template: what to choose, how to write the prompt, and where the model's files go."""

import dataclasses

HUB = "https://huggingface.co/alibaba-pai"
FOLDER = "CogVideoX_Fun"
SAM3 = "https://huggingface.co/Comfy-Org/sam3.1/resolve/main/checkpoints"
RAFT = (
    "https://huggingface.co/Comfy-Org/void-model/resolve/main/optical_flow/raft_large_C_T_SKHT_V2-ff5fadd5.safetensors"
)
SAM3_FILE = "sam3.1_multiplex_fp16.safetensors"
REWARD_LORAS = "CogVideoX-Fun-V1.1-Reward-LoRAs"
FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/added_tokens.json",
    "tokenizer/special_tokens_map.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)


def address(repository: str, path: str) -> str:
    return f"{HUB}/{repository}/resolve/main/{path}"


def model_entries(model: str) -> list[dict[str, str]]:
    """The files of a model, as the front end and ComfyUI Manager read them from a loader's properties."""
    entries = []
    for path in FILES:
        folder, _, name = path.rpartition("/")
        directory = "/".join(filter(None, (FOLDER, model, folder)))
        entries.append({"name": name, "url": address(model, path), "directory": directory})
    return entries


def lora_entry(name: str) -> dict[str, str]:
    return {"name": name, "url": address(REWARD_LORAS, name), "directory": "loras"}


def sam3_entry() -> dict[str, str]:
    return {"name": SAM3_FILE, "url": f"{SAM3}/{SAM3_FILE}", "directory": "checkpoints"}


@dataclasses.dataclass(frozen=True)
class Advice:
    """What the note of a task says.

    Args:
        choose: what a person chooses, in a sentence or two.
        prompt: how to write the prompt.
        more: further points: what is in bold -> the rest.
        others: which other models can be used.
        nano: a further point of the nano edition.
    """

    choose: str
    prompt: str
    more: dict[str, str]
    others: str = "InP"
    nano: str = ""


PROMPT = (
    "These models read long, plain sentences: who or what is there, what it does, where it is, the light, and how the "
    "camera moves. A few words alone give little motion."
)
FRAMES = (
    "the part begins at `start_seconds`, and has `length` frames at 8 a second. Speed and sound of the clip are kept. "
    "A shorter clip gives fewer frames."
)
PICTURE = (
    "To get this frame: Load Video -> CogVideoX-Fun Clip to Frames (`length` 1, all else as in this template) -> Save "
    "Image."
)
IN_BETWEEN = (
    "Say what moves and where to, not only what the picture shows: the model sees the picture, but not what should "
    "happen."
)

TEXT = Advice("Write the prompt, and press Run.", PROMPT, {})
FIXED = (
    "**Colour, shape and background** come from the pictures. For other ones, use the template `CogVideoX-Fun Text to "
    "Video (nano)`."
)
IMAGE = Advice(
    "Choose the start image, and write what happens next.",
    f"{PROMPT} {IN_BETWEEN}",
    {"Other shapes": "an image of another shape is cropped evenly to width and height."},
    nano=FIXED,
)
START_END = Advice(
    "Choose the two images, and write what happens between them.",
    f"{PROMPT} {IN_BETWEEN}",
    {"Other shapes": "images of another shape are cropped evenly to width and height."},
    nano=FIXED,
)
VIDEO = Advice(
    "Choose the clip, and write what it should become.",
    f"{PROMPT} Describe the whole result, not the change.",
    {
        "Clip": FRAMES,
        "Denoise": "how much is replaced. 0.5 keeps shapes and motion, 0.9 only the rough layout. All steps are run: "
        "VideoX-Fun's 50 steps at strength 0.7 are 35 steps at 0.7 here.",
    },
)
REGION = Advice(
    "Choose the clip. As the image, choose one frame of it, and paint the region in the Mask Editor (right click on "
    f"the image). {PICTURE}",
    f"{PROMPT} Describe the whole picture, with what should appear in the region.",
    {
        "Clip": FRAMES,
        "Mask": "white (1) is generated, black (0) is kept. It applies to all frames. Paint beyond the object.",
        "Grow": "pixels around the region in which the video is replaced, too. The soft edge begins there.",
    },
)
OBJECT = (
    "Describe the whole picture, with what should be in the object's place. To remove the object, describe the "
    "picture without it."
)
GROW = "pixels by which the region reaches beyond the object. More if its outline or its shadow stays visible."
FOLLOWS = Advice(
    "Choose the clip. As the image, choose the first frame of the part, and paint the object in the Mask Editor "
    f"(right click on the image). {PICTURE}",
    f"{PROMPT} {OBJECT}",
    {
        "Clip": FRAMES,
        "Mask": "white (1) is generated, black (0) is kept. It follows the object by optical flow; open the node, and "
        "the picture under Propagate Mask shows how. What comes into view from behind something is not part of it.",
        "Optical flow": f"for the better one, put [RAFT]({RAFT}) (21 MB) into `models/optical_flow`. Without it a "
        "simpler one is used, which needs no file and may lose an object that moves fast.",
        "Grow": GROW,
    },
)
WORD = Advice(
    "Choose the clip, and write into `word` what should be replaced: `car`, or `person in a red coat`.",
    f"{PROMPT} {OBJECT}",
    {
        "SAM3": "this template needs ComfyUI 0.33 or newer, which has the SAM3 nodes, and SAM3's file: put "
        f"[{SAM3_FILE}]({SAM3}/{SAM3_FILE}) into `models/checkpoints`, and press R. Without SAM3, use the template "
        "`CogVideoX-Fun Region That Follows`.",
        "Word": "of several objects that fit it, up to four are replaced; `max_objects` of Run SAM3 Video Track "
        "changes that. Where the object can't be seen, the clip stays as it is.",
        "Clip": FRAMES,
        "Grow": GROW,
    },
)
CONTROL = Advice(
    "Choose the clip that gives the edges, and write what the new video shows.",
    f"{PROMPT} It should fit the outlines.",
    {
        "Clip": FRAMES,
        "Strength": "with less than 1 the video follows the edges less closely.",
        "Other controls": "open the node (by the icon in its corner; Nodes 2.0: Enter subgraph) and put a depth or "
        "line node in Canny's place. Pose models need skeletons.",
    },
    others="Control",
)
EXTEND = Advice(
    "Choose the clip, and write how it goes on.",
    f"{PROMPT} Repeat what the clip shows, and how fast it moves.",
    {
        "Clip": "`length` frames from `start_seconds` are taken, at 8 a second. The video goes on after the last of "
        "them, with `length` less `overlap` new frames. To go on at the end of a longer clip, set `start_seconds` to "
        "its length in seconds minus 6.1 (`length` / 8). What comes before is not in the result. What is added "
        "has no sound.",
        "Overlap": "the model sees this many of the last frames, so that the motion goes on. They are blended.",
    },
)
LONG = Advice(
    "Choose the start image, and write what happens: a line for each round.",
    f"{PROMPT} Each line of the prompt is for one round; the last line is used for all remaining rounds. Write each "
    "as a whole prompt: a round does not know the other lines.",
    {
        "Rounds": "each has `round_length` frames. It starts with the last `overlap` frames of the round before. 209 "
        "frames are 5 rounds of 49, and take 5 times as long as one video. ComfyUI keeps the rounds that were made: "
        "after a stop, a longer `length` or another last line, Run makes only the rest. Another `seed` makes all "
        "rounds again.",
        "Colours": "colours are matched to the first round, measured where nothing moves. Open the node and set "
        "`match_colors` to 0 for a scene whose light changes.",
        "V1.5": "set `round_length` to 45 or 53.",
    },
)
LORA = Advice(
    "Choose the LoRA, and write the prompt.",
    PROMPT,
    {
        "LoRA": f"[{REWARD_LORAS}]({HUB}/{REWARD_LORAS}) has those of the authors, for `models/loras`. Take one that "
        "has your model in its name, at a strength of about 0.7.",
    },
    nano="**LoRA**: it was trained on rings, which the model does not know: keep `ring` in the prompt. A ring "
    "comes in about half of the clips.",
)
FEW_STEPS = Advice(
    "Choose the LoRA and the two images, and write what happens between them.",
    f"{PROMPT} {IN_BETWEEN}",
    {
        "LoRA": "it must be trained for 4 steps, and with your model: another model needs another one. **None is "
        "published yet**. You can train one: the commands are in `docs/beyond.md` of this pack, under Few steps. This "
        "was not tried with a real model; by plan it takes 8 hours on 8 H100. Copy the result, `lora.safetensors`, to "
        "`models/loras/fun_2b_few_steps.safetensors`, and press R. Without it, use the template "
        "`CogVideoX-Fun Start and End Image to Video`.",
        "Steps": "keep `steps` at 4 and `cfg` at 1. With `cfg` 1 the negative prompt is not read.",
        "Other tasks": "to use it in another template, put Load CogVideoX-Fun LoRA behind the model's loader, and set "
        "`steps` to 4, `cfg` to 1 and the sampler's `spacing` to trailing.",
    },
    nano=f"{FIXED}\n\n**4 steps**: the LoRA comes with the pack. This takes 4 passes through the transformer, "
    "and `CogVideoX-Fun Start and End Image to Video (nano)` takes 40. So small a model looks much the same "
    "without it.",
)

NANO_WORDS = (
    "`a red square moves right over the night`. Also green, blue, yellow, purple, white; circle, triangle; left, up, "
    "down; slowly, quickly; turns, grows, shrinks; sand, fog, forest, dusk, bricks, grass, gravel, coffee, "
    "astronaut, rocket, moon, galaxy, coins, motorcycle; `the camera pans left over the coffee`, "
    "`the camera zooms in on the moon`"
)


MEMORY = (
    "**GPU**, at 720 x 480: 6 GB for a 2B, 16 GB for a 5B, or 8 GB in fp8: open the node by the icon in its corner "
    "(Nodes 2.0: Enter subgraph), and set `weight_dtype` in group 1. With less, ComfyUI keeps a part of the model in "
    "RAM, which is slower."
)


def links(model: str) -> str:
    """The end of the note: the folder of a model as a list, with a link for each of its files."""
    lines = [f"`models/{FOLDER}/{model}`"]
    for path in FILES:
        head, _, name = path.rpartition("/")
        lines.append(f"- {head}{'/' if head else ''}[{name}]({address(model, path)})")
    return "\n".join(["## The model's files", "", lines[0], "", *lines[1:]]) + "\n"


def points(advice: Advice) -> list[str]:
    return [f"**{name}**: {text}" for name, text in advice.more.items()]


def note(title: str, advice: Advice, model: str) -> str:
    """The note of a template for real models, in Markdown."""
    sizes = {
        "V1.0 and V1.1, 2B and 5B": "720 x 480, up to 49 frames.",
        "V1.5": "5, 13, 21, ... 85 frames (49 becomes 45), also at 1344 x 768.",
    }
    others = [f"- **{name}**: {text}" for name, text in sizes.items()]
    if advice.others == "Control":
        others = others[:1]
    parts = [
        f"## {title}",
        advice.choose,
        f"**Prompt**: {advice.prompt}",
        *points(advice),
        "## The model",
        f"Get the whole folder into `models/{FOLDER}/{model}`. In ComfyUI's own folder:\n\n```\n"
        f"hf download alibaba-pai/{model} --local-dir models/{FOLDER}/{model}\n```",
        "or each file by its link, at the end of this note. Then press R, and choose it as `model`.",
        f"You can use other {advice.others} models:\n\n" + "\n".join(others),
        MEMORY,
        "Width and height are multiples of 16. A length that the model does not take is rounded down.",
    ]
    return "\n\n".join(parts) + "\n"


def nano_note(title: str, advice: Advice, real: str) -> str:
    """The note of a template for the nano model, in Markdown."""
    parts = [
        f"## {title}, without a download",
        "Press Run. The model is `nano`, a very small CogVideoX-Fun that comes with the pack. It shows how the nodes "
        "work; its pictures are small and simple.",
        "Change `seed` for another video. If nothing was changed, Run makes no new one.",
        f"**What it understands**: {NANO_WORDS}.",
        *filter(None, [advice.nano]),
        "**Size**: it was trained on 128 x 128 pixels and 17 frames. Other sizes look worse.",
        f"**Next**: put a real model into `models/{FOLDER}`, and open the template `{real}`.",
    ]
    return "\n\n".join(parts) + "\n"

"""Rounds of a long video: they are checked before the first one, collected, and joined."""

from comfy_api.latest import io

from ..model_loading.comfyui.model import model_of, progress_callback
from ..sampling.anchor import anchored
from ..sampling.masks import check_image
from ..sampling.rounds import join_rounds
from . import common
from .latents import check_vae, fit_length

LENGTHS = 1, 100_000
ROUND_LENGTHS = 49, 5, 1001, 4  # default, least, most, step


def overlap_input():
    tooltip = "Frames that a round shares with the one before: the model sees them, and they are blended."
    return common.integer("overlap", (9, 1, 1000), tooltip)


def match_input():
    tooltip = "Match colours and contrast of later rounds to the first, and bring back lost sharpness; 0 = off."
    return common.number("match_colors", (1.0, 0.0, 1.0, 0.05), tooltip)


class CheckLongVideo(io.ComfyNode):
    """An output node, since ComfyUI runs those first: what is wrong is said before the first round is made."""

    @classmethod
    def define_schema(cls):
        return common.schema(
            "video",
            "validate, long video",
            node_id="CogVideoXFunCheckLongVideo",
            is_inner=True,
            display_name="Check Long Video",
            description="Check what Long Video is given, before its first round is made.",
            is_output_node=True,
            is_input_list=True,
            inputs=[
                io.Model.Input("model", tooltip="The model of the rounds."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                io.Image.Input("start_image", tooltip="What the first round begins with."),
                common.integer("round_length", ROUND_LENGTHS, "Frames of a round."),
                overlap_input(),
                common.integer(
                    "last_start_frames",
                    (9, 0, 1001),
                    "Known frames at the start of the last round; 0 = those of start_image, for a single round.",
                ),
                io.Image.Input("end_image", optional=True, tooltip="What the last round ends with."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(
        cls,
        # what
        model,
        clip,
        vae,
        start_image,
        # how
        round_length=(49,),
        overlap=(9,),
        last_start_frames=(9,),
        end_image=(None,),
    ) -> io.NodeOutput:
        (round_length,), (overlap,), (known,) = round_length, overlap, last_start_frames
        model, clip, vae = single("model", model), single("clip", clip), single("vae", vae)
        start, end = single_clip("start_image", start_image), single_clip("end_image", end_image)
        check_parts(model, clip, vae)
        check_round_length(model, round_length)
        check_images(start, end, overlap, round_length, known)
        return io.NodeOutput()


def single(name: str, values: list):
    """The only value of a list. Of more, ComfyUI would make each round once for every value."""
    if len(values) != 1:
        raise ValueError(f"{name} is a list of {len(values)} values, expected one: connect only one of them")
    return values[0]


def single_clip(name: str, values: list):
    """The only image or clip of a list."""
    if len(values) != 1:
        raise ValueError(
            f"{name} is a list of {len(values)} images, expected one image or one clip: make one clip of them with "
            "Rebatch Images at batch_size 4096, or connect only one of them"
        )
    return values[0]


def check_parts(model, clip, vae) -> None:
    """Raise a ValueError unless a model is an InP model, with its text encoder and its VAE."""
    config = model_of(model).config
    if config.conditioning != "inpaint":
        raise ValueError(
            f"the model takes {config.in_channels} channels ({config.conditioning}), expected an InP model (33 "
            "channels), which continues images: load one, for example CogVideoX-Fun-V1.1-2b-InP"
        )
    if clip is None:
        raise ValueError(
            "the CLIP is empty: the model's folder has no text_encoder, so load one with Load CogVideoX-Fun Text "
            "Encoder"
        )
    check_vae(vae)


def check_round_length(model, length: int) -> None:
    """Raise a ValueError unless a model takes rounds of this length."""
    legal = fit_length(length, model)
    if legal != length:
        raise ValueError(f"round_length is {length} frames, which the model does not take: set it to {legal}")


def check_images(start, end, overlap: int, length: int, known: int) -> None:
    """Raise a ValueError if a round can't begin or end with these images.

    Args:
        length: frames of a round.
        known: how many frames at the start of the last round are given; 0 = as many as ``start`` has.
    """
    if start is None:
        raise ValueError("start_image is empty, expected an image or frames of a clip: connect for example Load Image")
    check_image(start, "start_image")
    if 1 < len(start) < overlap:
        raise ValueError(
            f"start_image has {len(start)} frames, fewer than the overlap of {overlap}: give a single image or "
            f"{overlap} frames and more, or set overlap to {len(start)}"
        )
    if end is None:
        return
    check_image(end, "end_image")
    free = length - (known or min(len(start), overlap))  # what the last round adds
    if len(end) >= free:
        remedy = f"give at most {free - 1}, or set round_length higher"
        if len(end) < length - overlap:  # which every other round adds
            remedy = f"add {len(end) + 1 - free} or more to length, or give fewer end images"
        raise ValueError(
            f"end_image has {len(end)} frame{'s'[: len(end) != 1]}, but the last round adds only {free}: {remedy}"
        )


class AddRound(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "video",
            "color match, colour match, append to list, drift",
            node_id="CogVideoXFunAddRound",
            is_inner=True,
            display_name="Add Round",
            description="Add a round to those of a long video, with the colours and the sharpness of the first one.",
            is_input_list=True,
            inputs=[
                io.Image.Input("video", tooltip="The round, from Long Video Round or VAE Decode."),
                match_input(),
                io.Image.Input("rounds", optional=True, tooltip="The rounds before, from Add Round."),
            ],
            outputs=[
                io.Image.Output(display_name="rounds", is_output_list=True, tooltip="A list, for Join Rounds."),
                io.Image.Output(display_name="video", tooltip="This round, for the start of the next."),
            ],
        )

    @classmethod
    def execute(cls, video, match_colors=(1.0,), rounds=()) -> io.NodeOutput:
        if len(video) != 1:
            raise ValueError(
                f"video is a list of {len(video)} videos, expected one: use one Add Round for each of them, or "
                "connect only one"
            )
        made, before = video[0], list(rounds or ())
        check_image(made, "video")
        if before:
            made = anchored(made, before[0], match_colors[0], progress_callback())
        return io.NodeOutput([*before, made], made)


class JoinRounds(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "video",
            "concatenate video, combine clips, crossfade, list to batch",
            node_id="CogVideoXFunJoinRounds",
            is_inner=True,
            display_name="Join Rounds",
            description="Put the rounds of a long video together, and blend the frames that two of them have.",
            is_input_list=True,
            inputs=[
                io.Image.Input("rounds", tooltip="From Add Round."),
                overlap_input(),
                common.integer(
                    "length",
                    (209, *LENGTHS),
                    "Frames of the video. If the rounds have more, the last round starts earlier.",
                ),
            ],
            outputs=[io.Image.Output(display_name="video", tooltip="For Create Video.")],
        )

    @classmethod
    def execute(cls, rounds, overlap=(9,), length=(209,)) -> io.NodeOutput:
        return io.NodeOutput(join_rounds(rounds, overlap[0], length[0]))

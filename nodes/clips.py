"""Clips to frames that a model takes, and clips joined."""

import itertools

import torch
from comfy_api.latest import io

from ..model_loading.comfyui.clips import open_clip, read_mask, video_file
from ..model_loading.comfyui.model import progress_callback
from ..sampling.clips import join, shown_at, times_within
from ..sampling.geometry import FRAMES_PER_SECOND, check_size
from ..sampling.masks import FITS, resize_image
from . import common
from .latents import fit_length
from .messages import show_message
from .model_files import OWN_MODELS

EXAMPLES = OWN_MODELS / "nano" / "examples"
NO_EXAMPLE = "(no example found)"


class ClipFrames(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "video",
            "video to images, get video components, load video frames, resample fps, trim video, extract audio",
            node_id="CogVideoXFunClipFrames",
            display_name="Clip to Frames",
            description="Take frames of a clip at the model's 8 a second, and the sound of the same part. Put frames, "
            "fps and audio into Create Video, and the clip keeps its speed and its sound.",
            inputs=[
                io.Video.Input("clip", tooltip="A video with any frame rate and size."),
                *common.size_inputs(),
                common.length_input(),
                common.number(
                    "start_seconds", (0.0, 0.0, 86_400.0, 0.05), "Where in the clip the first frame is, in seconds."
                ),
                common.number(
                    "frame_rate",
                    (float(FRAMES_PER_SECOND), 1.0, 120.0, 0.01),
                    "Frames a second. The models were trained at 8.",
                ),
                common.fit_input(),
                common.length_model_input(),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="For VAE Encode or a mask."),
                io.Float.Output(display_name="fps", tooltip="The frame rate, for Create Video."),
                io.Audio.Output(display_name="audio", tooltip="The sound of this part, if the clip has one."),
            ],
        )

    @classmethod
    def execute(
        cls,
        clip,
        width=720,
        height=480,
        length=49,
        start_seconds=0.0,
        frame_rate=float(FRAMES_PER_SECOND),
        fit="crop",
        model=None,
    ) -> io.NodeOutput:
        common.check_numbers(start_seconds=start_seconds, frame_rate=frame_rate)
        common.one_of("fit", fit, FITS)
        check_size(width, height)
        if frame_rate <= 0:
            raise ValueError(f"frame_rate is {frame_rate:g}, expected more than 0: set it to 8, as in training")
        opened = open_clip(clip)
        wanted = fit_length(length, model)
        times = times_within(start_seconds, opened.end, frame_rate, wanted)
        is_short = len(times) < wanted
        times = times[: fit_length(len(times), model)]
        on_progress, done = progress_callback(), itertools.count()

        def picture(frame) -> torch.Tensor:
            on_progress(next(done), len(times))
            return resize_image(opened.picture(frame)[None], width, height, fit)[0]

        frames = torch.stack(shown_at(opened.frames(start_seconds), times, picture))
        seconds = len(frames) / frame_rate
        less = f" of {wanted}: the clip has {opened.end:.2f} seconds" if is_short else ""
        text = f"{start_seconds:.2f} to {start_seconds + seconds:.2f} seconds, {len(frames)} frames{less}"
        show_message(text)
        return io.NodeOutput(frames, float(frame_rate), opened.sound(start_seconds, seconds))


class JoinClips(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "video",
            "image batch, batch images, concatenate video, combine clips, crossfade, extend video",
            node_id="CogVideoXFunJoinClips",
            display_name="Join Clips",
            description="Put a clip and its continuation together, and blend the frames that both have.",
            inputs=[
                io.Image.Input("clip", tooltip="The frames that come first."),
                io.Image.Input("continuation", tooltip="The frames that follow, of the same size."),
                common.integer(
                    "overlap", (9, 1, 1001), "Frames at the end of the clip that the continuation begins with."
                ),
            ],
            outputs=[io.Image.Output(display_name="video", tooltip="For Create Video.")],
        )

    @classmethod
    def execute(cls, clip, continuation, overlap=9) -> io.NodeOutput:
        if overlap < 1:
            raise ValueError(f"overlap is {overlap}, expected 1 or more frames")
        return io.NodeOutput(join(clip, continuation, overlap))


class ExampleClip(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "video",
            "nano example, sample video, test clip",
            node_id="CogVideoXFunExampleClip",
            display_name="CogVideoX-Fun Example Clip",
            description="A small clip that comes with the pack, to try the nano model with.",
            inputs=[common.choice("example", example_names() or [NO_EXAMPLE], "Which clip.")],
            outputs=[
                io.Video.Output(display_name="clip", tooltip="For Clip to Frames."),
                io.Image.Output(display_name="first_frame", tooltip="For a start image."),
                io.Image.Output(display_name="last_frame", tooltip="For an end image."),
                io.Mask.Output(display_name="mask", tooltip=f"The region with motion. {common.MASK_TOOLTIP}"),
                io.Mask.Output(
                    display_name="first_mask", tooltip=f"What moves, in the first frame. {common.MASK_TOOLTIP}"
                ),
            ],
        )

    @classmethod
    def execute(cls, example=None) -> io.NodeOutput:
        if example is None:
            example = next(iter(example_names()), NO_EXAMPLE)
        common.one_of("example", example, example_names())
        video = video_file(EXAMPLES / f"{example}.mp4")
        opened = open_clip(video)
        frames = [frame for _, frame in opened.frames(0.0)]
        first, last = (opened.picture(frame)[None] for frame in (frames[0], frames[-1]))
        masks = [read_mask(EXAMPLES / name) for name in (f"{example}.png", f"{example}.first.png")]
        return io.NodeOutput(video, first, last, *masks)


def example_names() -> list[str]:
    return sorted(path.stem for path in EXAMPLES.glob("*.mp4"))

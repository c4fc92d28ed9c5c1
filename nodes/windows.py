"""Clips longer than the model takes."""

from comfy_api.latest import io

from ..model_loading.comfyui.context_windows import FUSE_METHODS, SCHEDULES, with_windows
from . import common


class ContextWindows(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunContextWindows",
            search_aliases=("context options", "long video", "sliding window", "loop", "CogVideoContextOptions"),
            display_name="Context Windows",
            category=f"{common.CATEGORY}/model",
            description="Sample a clip that is longer than the model takes in overlapping windows, with the host's "
            "own context windows. Start images, regions and control videos are cut to each window.",
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX-Fun model."),
                io.Int.Input(
                    "context_length",
                    default=49,
                    min=1,
                    max=1001,
                    step=4,
                    tooltip="Frames of a window: 4n + 1, at most 49 on V1.0 and V1.1, and 45, 53, ... on V1.5.",
                ),
                io.Int.Input(
                    "context_overlap",
                    default=16,
                    min=0,
                    max=1000,
                    step=4,
                    tooltip="Frames that neighbouring windows share: more is smoother and takes longer.",
                ),
                io.Combo.Input(
                    "context_schedule",
                    options=list(SCHEDULES),
                    default=SCHEDULES[0],
                    tooltip="Where the windows lie: always in the same places (static), or shifted from step to step "
                    "(uniform; looped joins the end to the beginning).",
                ),
                io.Combo.Input(
                    "fuse_method",
                    options=list(FUSE_METHODS),
                    default=FUSE_METHODS[0],
                    tooltip="How windows are weighed where they overlap: pyramid counts the middle of each most.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        context_length=49,
        context_overlap=16,
        context_schedule=SCHEDULES[0],
        fuse_method=FUSE_METHODS[0],
    ) -> io.NodeOutput:
        common.one_of("context_schedule", context_schedule, SCHEDULES)
        common.one_of("fuse_method", fuse_method, FUSE_METHODS)
        return io.NodeOutput(with_windows(model, context_length, context_overlap, context_schedule, fuse_method))

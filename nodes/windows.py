"""Clips longer than the model takes."""

from comfy_api.latest import io

from ..model_loading.comfyui.context_windows import FUSE_METHODS, SCHEDULES, with_windows
from . import common


class ContextWindows(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "model",
            "context options, long video, sliding window, loop, CogVideoContextOptions",
            node_id="CogVideoXFunContextWindows",
            display_name="Context Windows",
            description="Sample a clip that is longer than the model takes, in overlapping windows.",
            inputs=[
                common.model_input(),
                common.integer(
                    "context_length", (49, 1, 1001, 4), "Frames in a window: at most 49; on V1.5 45, 53, ... instead."
                ),
                common.integer(
                    "context_overlap", (16, 0, 1000, 4), "Frames that windows share. More is smoother and slower."
                ),
                common.choice(
                    "context_schedule",
                    SCHEDULES,
                    "standard_static: windows stay in place. standard_uniform: they shift each step. "
                    "looped_uniform: the clip can loop.",
                ),
                common.choice(
                    "fuse_method", FUSE_METHODS, "Weights in the overlap; pyramid favours the middle of each window."
                ),
            ],
            outputs=[common.model_output()],
        )

    @classmethod
    def execute(
        cls, model, context_length=49, context_overlap=16, context_schedule=SCHEDULES[0], fuse_method=FUSE_METHODS[0]
    ) -> io.NodeOutput:
        common.one_of("context_schedule", context_schedule, SCHEDULES)
        common.one_of("fuse_method", fuse_method, FUSE_METHODS)
        return io.NodeOutput(with_windows(model, context_length, context_overlap, context_schedule, fuse_method))

"""How the model computes the positions of tokens."""

from comfy_api.latest import io

from ..model_loading.comfyui.model import with_positions
from ..sampling.positions import POSITION_MODES, PositionOptions
from . import common


class PositionInterpolation(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "model",
            "riflex, rope, long video, position embedding, extrapolation, FunRiflex",
            node_id="CogVideoXFunPositionInterpolation",
            display_name="Position Interpolation",
            description="Change how token positions are computed. Without this node, models run as trained.",
            inputs=[
                common.model_input(),
                common.choice(
                    "mode",
                    POSITION_MODES,
                    "fun: the trained positions, spread over the video as in training. cut: the middle of the trained "
                    "grid. generated: token indices. V1.5 uses token indices in every mode.",
                ),
                common.number(
                    "temporal_scale",
                    (1.0, 0.1, 10.0, 0.01),
                    "Divides the time of each frame: 2 allows twice the frames, with motion at half the speed.",
                    optional=True,
                ),
                common.integer(
                    "riflex_k",
                    (0, 0, 8),
                    "RIFLEx for clips longer than trained (5B, V1.5); 0 = off, the paper uses 2.",
                    optional=True,
                ),
            ],
            outputs=[common.model_output()],
        )

    @classmethod
    def execute(cls, model, mode="fun", temporal_scale=1.0, riflex_k=0) -> io.NodeOutput:
        common.one_of("mode", mode, POSITION_MODES)
        common.check_numbers(temporal_scale=temporal_scale)
        return io.NodeOutput(with_positions(model, PositionOptions(mode, temporal_scale, riflex_k)))

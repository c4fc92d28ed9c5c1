"""How the model counts where a token is."""

from comfy_api.latest import io

from ..model_loading.comfyui.model import with_positions
from ..sampling.positions import POSITION_MODES, PositionOptions
from . import common


class PositionInterpolation(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            node_id="CogVideoXFunPositionInterpolation",
            search_aliases=("riflex", "rope", "long video", "position embedding", "extrapolation", "FunRiflex"),
            display_name="Position Interpolation",
            category=f"{common.CATEGORY}/model",
            description="How the trained positions become those of another size or length. Without this node the "
            "models run as they were trained.",
            inputs=[
                io.Model.Input("model", tooltip="A CogVideoX-Fun model."),
                io.Combo.Input(
                    "mode",
                    options=list(POSITION_MODES),
                    default="fun",
                    tooltip="fun: the trained positions spread over the video's size, as the models were trained. "
                    "cut: a piece of the trained grid. generated: counted anew for the size. The last two are for "
                    "comparison; V1.5 counts tokens in every mode.",
                ),
                io.Float.Input(
                    "temporal_scale",
                    default=1.0,
                    min=0.1,
                    max=10.0,
                    step=0.01,
                    optional=True,
                    tooltip="What the time of each frame is divided by. At 2, a clip of twice the trained length "
                    "covers the trained time: slower, but whole.",
                ),
                io.Int.Input(
                    "riflex_k",
                    default=0,
                    min=0,
                    max=8,
                    optional=True,
                    tooltip="RIFLEx, for clips longer than trained (5B and V1.5): the frequency that is slowed so "
                    "that the clip does not repeat. 0 = off; 2 is the paper's for CogVideoX.",
                ),
            ],
            outputs=[io.Model.Output(display_name="model", tooltip="For the sampler.")],
        )

    @classmethod
    def execute(cls, model, mode="fun", temporal_scale=1.0, riflex_k=0) -> io.NodeOutput:
        common.one_of("mode", mode, POSITION_MODES)
        common.check_numbers(temporal_scale=temporal_scale)
        return io.NodeOutput(with_positions(model, PositionOptions(mode, temporal_scale, riflex_k)))

"""Videos of any length, made round after round: the nodes that build the graph."""

from comfy_api.latest import io
from comfy_execution.graph_utils import GraphBuilder

from ..sampling.composite import check_strength
from ..sampling.geometry import check_size
from ..sampling.masks import FITS
from ..sampling.rounds import prompt_lines, start_frames, summary
from . import common
from .messages import show_message
from .rounds import LENGTHS, ROUND_LENGTHS, match_input, overlap_input
from .sampling import DDIM, cfg_input, dynamic_cfg_input, sampler_input, sampler_names

# From a round's seed to that of the noise on its start image: other numbers than the sampler's. PyTorch's generator on
# the CPU reads 32 bits of a seed.
NOISE_SEED = 2**31
MOST_ROUNDS = 200  # a node's cache key in ComfyUI lists all nodes before it: time and memory grow with the square


def sampling_inputs() -> list:
    spacing, _denoise = common.schedule_inputs()
    return [common.steps_input(), cfg_input(), sampler_input(), spacing]


def sampling_options(steps: int, cfg: float, sampler_name: str, spacing: str, dynamic_cfg: bool) -> dict:
    """The values of `sampling_inputs` and of dynamic_cfg, as inputs of a node in the graph."""
    return {"steps": steps, "cfg": cfg, "sampler_name": sampler_name, "spacing": spacing, "dynamic_cfg": dynamic_cfg}


def link_input(kind, name: str, tooltip: str, **options):
    """An input whose link the node gets, not the value: it passes the link to the nodes that it adds."""
    return kind.Input(name, tooltip=tooltip, lazy=True, extra_dict={"rawLink": True}, **options)


class LongVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "video",
            "long video, any length, infinite, continue video, extend video, loop, chain, storyboard, i2v",
            node_id="CogVideoXFunLongVideo",
            display_name="CogVideoX-Fun Long Video",
            description="Make a video of any length in one run: round after round, each continues the one before.",
            enable_expand=True,
            inputs=[
                link_input(io.Model, "model", "A CogVideoX-Fun InP model, with any LoRAs."),
                link_input(io.Clip, "clip", "The model's text encoder."),
                link_input(io.Vae, "vae", "The model's VAE."),
                link_input(
                    io.Image,
                    "start_image",
                    "The first frame, or a clip: its last `overlap` frames are continued.",
                ),
                *common.size_inputs(),
                common.integer(
                    "length", (209, *LENGTHS), "Frames of the whole video: 209 make 26 seconds at 8 a second."
                ),
                common.integer(
                    "round_length",
                    ROUND_LENGTHS,
                    "Frames of a round, a length that the model takes: up to 49; on V1.5 5, 13, 21, ... 85.",
                ),
                overlap_input(),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the video should show. Several lines: one for each round; the last line is used for "
                    "all remaining rounds.",
                ),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the video should not show.",
                ),
                io.Boolean.Input(
                    "line_per_round",
                    default=True,
                    tooltip="Each line of the prompt is for one round. Off: the whole prompt is used for every round.",
                ),
                common.seed_input(
                    "seed",
                    "Seed of the first round. Each later round adds 1. To reuse finished rounds, keep the same seed "
                    "(control after generate: fixed).",
                    changes=True,
                    stays=True,
                ),
                *sampling_inputs(),
                match_input(),
                common.fit_input(),
                dynamic_cfg_input(),
                link_input(
                    io.Image,
                    "end_image",
                    "The last frame, or several. Only the last round sees it.",
                    optional=True,
                ),
            ],
            outputs=[io.Image.Output(display_name="video", tooltip="For Create Video.")],
        )

    @classmethod
    def execute(
        cls,
        # what
        model,
        clip,
        vae,
        start_image,
        width=720,
        height=480,
        length=209,
        round_length=49,
        overlap=9,
        prompt="",
        negative_prompt="",
        line_per_round=True,
        # how
        seed=0,
        steps=50,
        cfg=6.0,
        sampler_name=DDIM,
        spacing="auto",
        match_colors=1.0,
        fit="crop",
        dynamic_cfg=False,
        end_image=None,
    ) -> io.NodeOutput:
        check_options(width, height, cfg, sampler_name, spacing, match_colors, fit)
        starts = start_frames(length, round_length, overlap)
        if len(starts) > MOST_ROUNDS:
            raise ValueError(
                f"length {length} takes {len(starts)} rounds, expected at most {MOST_ROUNDS}: set round_length "
                "higher, or make the video in parts, each with the frames of the part before as start_image"
            )
        lines = prompt_lines(prompt, line_per_round)
        show_message(summary(length, round_length, starts, len(lines)))

        graph = GraphBuilder()
        end = {} if end_image is None else {"end_image": end_image}
        graph.node(
            "CogVideoXFunCheckLongVideo",
            "check",
            model=model,
            clip=clip,
            vae=vae,
            start_image=start_image,
            round_length=round_length,
            overlap=overlap,
            last_start_frames=starts[-1] if len(starts) > 1 else 0,
            **end,
        )
        texts = [graph.node("CLIPTextEncode", f"prompt{i}", clip=clip, text=line) for i, line in enumerate(lines)]
        negative = graph.node("CLIPTextEncode", "negative", clip=clip, text=negative_prompt)
        every_round = {"model": model, "vae": vae, "negative": negative.out(0)}
        every_round |= {"width": width, "height": height, "length": round_length, "fit": fit}
        every_round |= sampling_options(steps, cfg, sampler_name, spacing, dynamic_cfg)
        rounds = add_rounds(graph, starts, texts, start_image, end, seed, match_colors, every_round)
        joined = graph.node("CogVideoXFunJoinRounds", "join", rounds=rounds, overlap=overlap, length=length)
        return io.NodeOutput(joined.out(0), expand=graph.finalize())


def check_options(
    width: int, height: int, cfg: float, sampler_name: str, spacing: str, match_colors: float, fit: str
) -> None:
    """Raise a ValueError if a round can't be made with these values, which may be linked."""
    common.check_numbers(cfg=cfg, match_colors=match_colors)
    common.one_of("sampler_name", sampler_name, sampler_names())
    common.one_of("spacing", spacing, common.SPACING_OPTIONS)
    common.one_of("fit", fit, FITS)
    check_strength(match_colors)
    check_size(width, height)


def add_rounds(
    # where
    graph: GraphBuilder,
    # what
    starts: list[int],
    texts: list,
    start_image: list,
    end: dict,
    # how
    seed: int,
    match_colors: float,
    every_round: dict,
) -> list:
    """Add the rounds to a graph, each linked to the one before.

    Args:
        starts: how many frames each round continues.
        texts: the nodes of the prompts. Later rounds have the last one.
        start_image: a link, as of all images here.
        end: end_image of the last round, or nothing.
        seed: of the first round.
        every_round: inputs that are the same for all rounds.

    Returns:
        The link to the list of all rounds.
    """
    before, rounds = start_image, {}
    for i, known in enumerate(starts):
        is_last = i == len(starts) - 1
        made = graph.node(
            "CogVideoXFunLongVideoRound",
            f"round{i}",
            **every_round,
            positive=texts[min(i, len(texts) - 1)].out(0),
            start_image=before,
            start_frames=known,
            **(end if is_last else {}),
            seed=(seed + i) % (common.MAX_SEED + 1),
        )
        added = graph.node("CogVideoXFunAddRound", f"add{i}", video=made.out(0), match_colors=match_colors, **rounds)
        rounds, before = {"rounds": added.out(0)}, added.out(1)
    return rounds["rounds"]


class LongVideoRound(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return common.schema(
            "video",
            "continue video, extend video, i2v, image to video",
            node_id="CogVideoXFunLongVideoRound",
            is_inner=True,
            display_name="Long Video Round",
            description="One round of Long Video: continue an image or the last frames of a clip.",
            enable_expand=True,
            hidden=[io.Hidden.unique_id, io.Hidden.dynprompt],
            inputs=[
                link_input(io.Model, "model", "A CogVideoX-Fun InP model."),
                link_input(io.Vae, "vae", "The model's VAE."),
                link_input(io.Conditioning, "positive", "What the video should show."),
                link_input(io.Conditioning, "negative", "What the video should not show."),
                link_input(io.Image, "start_image", "The first frame, or a clip whose last frames are continued."),
                *common.size_inputs(),
                common.length_input(),
                common.integer(
                    "start_frames", (9, 0, 1001), "How many frames of start_image are used, from its end; 0 = all."
                ),
                common.seed_input("seed", "Seed of the noise.", changes=True),
                *sampling_inputs(),
                common.fit_input(),
                dynamic_cfg_input(),
                link_input(io.Image, "end_image", "The last frame, or several last frames.", optional=True),
            ],
            outputs=[io.Image.Output(display_name="video", tooltip="For Add Round.")],
        )

    @classmethod
    def execute(
        cls,
        # what
        model,
        vae,
        positive,
        negative,
        start_image,
        width=720,
        height=480,
        length=49,
        start_frames=9,
        # how
        seed=0,
        steps=50,
        cfg=6.0,
        sampler_name=DDIM,
        spacing="auto",
        fit="crop",
        dynamic_cfg=False,
        end_image=None,
    ) -> io.NodeOutput:
        graph = GraphBuilder()
        images = {"start_image": start_image, "start_frames": start_frames}
        images |= {} if end_image is None else {"end_image": end_image}
        size = {"width": width, "height": height, "length": length, "fit": fit}
        built = graph.node("CogVideoXFunStartEndImage", "build", **size, **images, model=model)
        video, mask = built.out(0), built.out(1)
        noise_seed = (seed + NOISE_SEED) % (common.MAX_SEED + 1)
        encoded = graph.node(
            "CogVideoXFunVAEEncode", "encode", vae=vae, video=video, mask=mask, model=model, noise_seed=noise_seed
        )
        resized = graph.node("CogVideoXFunMaskResize3D", "resize", mask=mask, latent=encoded.out(0))
        prompts = {"positive": positive, "negative": negative}
        known = graph.node(
            "CogVideoXFunInpaintConditioning", "known", **prompts, masked_latent=encoded.out(0), mask=resized.out(0)
        )
        sampled = graph.node(
            "CogVideoXFunSampler",
            "sample",
            model=model,
            positive=known.out(0),
            negative=known.out(1),
            latent=known.out(2),
            **sampling_options(steps, cfg, sampler_name, spacing, dynamic_cfg),
            seed=seed,
        )
        decoded = graph.node("CogVideoXFunVAEDecode", "decode", vae=vae, latent=sampled.out(0))
        display = cls.hidden.dynprompt.get_display_node_id(cls.hidden.unique_id)
        for node in graph.nodes.values():
            node.set_override_display_id(display)  # progress and pictures, under the node that a person sees
        return io.NodeOutput(decoded.out(0), expand=graph.finalize())

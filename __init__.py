"""CogVideoX-Fun for ComfyUI: video from text, images, videos and masks, with ComfyUI's own types.

Importing only defines the entry point. The nodes are imported when ComfyUI asks for them.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from comfy_api.latest import ComfyExtension

    from .nodes.clips import ClipFrames, ExampleClip, JoinClips
    from .nodes.compose import CompositeSource
    from .nodes.conditioning import ControlConditioning, ImageConditioning, InpaintConditioning
    from .nodes.latents import EmptyLatent, VAEDecode, VAEEncode
    from .nodes.loaders import LoraLoader, ModelLoader, TextEncoderLoader, VAELoader
    from .nodes.long_video import LongVideo, LongVideoRound
    from .nodes.masks import MaskAdjust, MaskFollow, MaskResize3D, StartEndImage
    from .nodes.messages import show_warnings
    from .nodes.positions import PositionInterpolation
    from .nodes.replacements import register
    from .nodes.resolution import Resolution
    from .nodes.rounds import AddRound, CheckLongVideo, JoinRounds
    from .nodes.sampling import Sampler, Scheduler
    from .nodes.windows import ContextWindows

    show_warnings(__name__)
    nodes = [
        ModelLoader,
        TextEncoderLoader,
        VAELoader,
        LoraLoader,
        PositionInterpolation,
        ContextWindows,
        Resolution,
        ClipFrames,
        JoinClips,
        ExampleClip,
        StartEndImage,
        MaskResize3D,
        VAEEncode,
        InpaintConditioning,
        ControlConditioning,
        ImageConditioning,
        EmptyLatent,
        Sampler,
        Scheduler,
        VAEDecode,
        MaskAdjust,
        MaskFollow,
        CompositeSource,
        LongVideo,
        CheckLongVideo,
        LongVideoRound,
        AddRound,
        JoinRounds,
    ]

    class CogVideoXFunExtension(ComfyExtension):
        async def on_load(self) -> None:
            await register()

        async def get_node_list(self):
            return nodes

    return CogVideoXFunExtension()

"""CogVideoX-Fun for ComfyUI: video from text, images, videos and masks, with ComfyUI's own types.

Importing only defines the entry point. The nodes are imported when ComfyUI asks for them.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from comfy_api.latest import ComfyExtension

    from .nodes.compose import CompositeSource
    from .nodes.conditioning import ControlConditioning, ImageConditioning, InpaintConditioning
    from .nodes.latents import EmptyLatent, VAEDecode, VAEEncode
    from .nodes.loaders import LoraLoader, ModelLoader, TextEncoderLoader, VAELoader
    from .nodes.masks import MaskAdjust, MaskResize3D, StartEndImage
    from .nodes.positions import PositionInterpolation
    from .nodes.resolution import Resolution
    from .nodes.sampling import Sampler, Scheduler
    from .nodes.windows import ContextWindows

    nodes = [
        ModelLoader,
        TextEncoderLoader,
        VAELoader,
        LoraLoader,
        PositionInterpolation,
        ContextWindows,
        Resolution,
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
        CompositeSource,
    ]

    class CogVideoXFunExtension(ComfyExtension):
        async def get_node_list(self):
            return nodes

    return CogVideoXFunExtension()

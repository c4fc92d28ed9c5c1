"""CogVideoX-Fun for ComfyUI: start and end images, regions, videos and text to video, with the host's own types.

Importing defines the entry point and does nothing else; the nodes are imported when a host asks for them.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from comfy_api.latest import ComfyExtension

    from .nodes.conditioning import InpaintConditioning
    from .nodes.latents import EmptyLatent, VAEDecode, VAEEncode
    from .nodes.loaders import ModelLoader, TextEncoderLoader, VAELoader
    from .nodes.masks import MaskResize3D, StartEndImage
    from .nodes.sampling import Sampler, Scheduler

    nodes = [
        ModelLoader,
        TextEncoderLoader,
        VAELoader,
        StartEndImage,
        MaskResize3D,
        VAEEncode,
        InpaintConditioning,
        EmptyLatent,
        Sampler,
        Scheduler,
        VAEDecode,
    ]

    class CogVideoXFunExtension(ComfyExtension):
        async def get_node_list(self):
            return nodes

    return CogVideoXFunExtension()

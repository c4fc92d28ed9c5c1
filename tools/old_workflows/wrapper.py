"""ComfyUI-CogVideoXWrapper's loaders, prompts, encoders and decoder. The samplers are in `wrapper_sampler`."""

from . import facts
from .conversion import BEFORE, Conversion
from .graph import Node, Source
from .wrapper_sampler import empty_latents, sampler, switched

LOADER, ENCODE = "CogVideoXFunModelLoader", "CogVideoXFunVAEEncode"
LORAS = ("CogVideoLoraSelect", "CogVideoLoraSelectComfy")
FP8 = {"fp8_e4m3fn", "fp8_e4m3fn_fastmode", "fp8_e4m3fn_fast"}
NAMES = {  # models that the wrapper knows by the name of a copy -> the folder of the published one
    "kijai/CogVideoX-Fun-2b": "CogVideoX-Fun-2b-InP",
    "kijai/CogVideoX-Fun-5b": "CogVideoX-Fun-5b-InP",
}
TILE = 256  # pixels; the wrapper's automatic tiles are half the video's size


def convert(conversion: Conversion) -> None:
    """Rewrite the wrapper's nodes in a graph."""
    graph = conversion.graph
    found = [node for node in graph.nodes.values() if not node.is_new]
    known = []
    for node in found:
        if node.kind in facts.WRAPPER:
            known += [node] if conversion.read(node, facts.WRAPPER[node.kind]) else []
        elif node.kind in facts.WRAPPER_BEFORE:
            conversion.lose(node, BEFORE)
        elif node.kind == "CogVideoXFunSampler" and "pipeline" in conversion.sockets(node):
            conversion.lose(node, BEFORE)
    encoders = [graph.origin_node(node.links.get("clip")) for node in known if node.kind == "CogVideoTextEncode"]
    for node in {one.id: one for one in encoders if one is not None and one.kind == "CLIPLoader"}.values():
        text_encoder(conversion, node)
    handlers = {
        "DownloadAndLoadCogVideoModel": loader,
        "DownloadAndLoadCogVideoGGUFModel": loader,
        "CogVideoXModelLoader": loader,
        "CogVideoXVAELoader": vae_loader,
        **dict.fromkeys((*LORAS, "CogVideoXTorchCompileSettings"), unused),
        "CogVideoTextEncode": text_encode,
        "CogVideoTextEncodeCombine": combine,
        "CogVideoSampler": sampler,  # it asks what the encoders were; `made` has what became of them
        "CogVideoDecode": decode,
        "CogVideoXFunResizeToClosestBucket": bucket,
    }
    empty_latents(conversion, [node for node in known if node.kind == "CogVideoSampler"])
    for node in known:
        if node.kind in ("CogVideoImageEncode", "CogVideoImageEncodeFunInP"):
            (encode if node.kind == "CogVideoImageEncode" else encode_inpaint)(conversion, node)
    for kind, handler in handlers.items():
        for node in known:
            if node.kind == kind:
                handler(conversion, node)
    for node in known:
        if node.kind == "CogVideoContextOptions" and node.id in graph.nodes:
            conversion.lose(node, "no sampler uses it")
    for node in found:
        if node.kind in facts.WRAPPER_ONLY and node.id in graph.nodes:
            old, why = facts.WRAPPER_ONLY[node.kind]
            conversion.lose(node, why, old)


def text_encoder(conversion: Conversion, node: Node) -> None:
    if conversion.read(node, facts.NATIVE["CLIPLoader"]):
        conversion.replace(node, "CogVideoXFunTextEncoderLoader", text_encoder=conversion.given(node, "clip_name"))


def loader(conversion: Conversion, node: Node) -> None:
    """The model, then its LoRAs, then torch.compile."""
    name = conversion.given(node, "model")
    folder = NAMES.get(name, name.split("/")[-1]) if isinstance(name, str) and "Download" in node.kind else name
    if "interpolation" in str(name).lower() or "tora" in str(name).lower():
        conversion.problem(node, f"the model {name} is not supported: choose another one")
    elif "GGUF" in node.kind:
        conversion.problem(node, f"{name} has the wrapper's own layout and does not load: choose another file")
    made = conversion.replace(node, LOADER, {0: 0, 1: 2}, model=folder, weight_dtype=weight_dtype(conversion, node))
    if isinstance(folder, str) and folder != name:
        conversion.remark(node, f"{name} is the folder {folder}")
    if conversion.live(node, "block_edit") is not None:
        conversion.problem(node, "`block_edit` is not supported")
    model = made.out()
    chain = lora_chain(conversion, node.links.get("lora"))
    if "lora" in node.links and not chain:
        conversion.problem(node, "`lora` comes from a node that is not known here: add Load CogVideoX-Fun LoRA")
    muted = [place for place, one in enumerate(chain, 1) if one.id in conversion.muted]
    for place, one in enumerate(chain, 1):  # a muted one takes those before it along
        model = add_lora(conversion, node, one, model, is_off=place <= max(muted, default=0))
    if "compile_args" in node.links:
        model = add_compile(conversion, node, model)
    conversion.graph.moved[node.out()] = model


def weight_dtype(conversion: Conversion, node: Node) -> object:
    """The loader's ``weight_dtype`` from the wrapper's precision and quantization."""
    quantization = node.values.get("quantization", "disabled")
    if quantization in FP8:
        return "fp8_e4m3fn"
    if quantization != "disabled":
        conversion.problem(node, f"the quantization {quantization} is not supported: choose a `weight_dtype`")
    if "GGUF" in node.kind:
        return None
    return node.values.get("precision", node.values.get("base_precision"))


def lora_chain(conversion: Conversion, source: Source | None) -> list[Node]:
    """The nodes that select LoRAs, the first one first. Those that are converted already count, too."""
    chain = []
    while (found := conversion.graph.origin(source)) is not None:
        node = conversion.old_of(found)
        if node is None or node.kind not in LORAS or node in chain:
            break
        chain.insert(0, node)
        source = node.links.get("prev_lora")
    return chain


def add_lora(conversion: Conversion, loaded: Node, old: Node, model: Source, is_off: bool) -> Source:
    """A LoRA behind a model. The first model puts it where the old node stood, a second one beside itself."""
    values = {"lora_name": conversion.given(old, "lora"), "strength": conversion.given(old, "strength")}
    if old.id in conversion.made:
        made = conversion.make("CogVideoXFunLoraLoader", loaded, model=model, **values)
        return switched(made, old, is_off).out()
    made = switched(conversion.replace(old, "CogVideoXFunLoraLoader", model=model, **values), old, is_off)
    conversion.parts[old.id] = {"old": old}
    if is_off:
        conversion.remark(old, "it is bypassed, since it or a LoRA behind it was muted")
    if old.kind == LORAS[0]:
        conversion.remark(old, "move its file from models/CogVideo/loras to models/loras")
    return made.out()


def add_compile(conversion: Conversion, loaded: Node, model: Source) -> Source:
    old = conversion.old_of(conversion.graph.origin(loaded.links["compile_args"]))
    if old is None or old.kind != "CogVideoXTorchCompileSettings":
        conversion.problem(loaded, "`compile_args` comes from a node that is not known here: add TorchCompileModel")
        return model
    if old.id in conversion.made:
        made = conversion.make("TorchCompileModel", loaded, model=model, backend=old.values.get("backend"))
        return switched(made, old, old.id in conversion.muted).out()
    conversion.parts[old.id] = {"old": old}
    conversion.remark(old, "TorchCompileModel has only `backend`")
    return conversion.replace(old, "TorchCompileModel", model=model, backend=old.values.get("backend")).out()


def unused(conversion: Conversion, node: Node) -> None:
    """A LoRA or compile setting that no loader took."""
    if node.id not in conversion.made:
        conversion.lose(node, "no model uses it")


def vae_loader(conversion: Conversion, node: Node) -> None:
    conversion.replace(node, "CogVideoXFunVAELoader", vae_name=conversion.given(node, "model_name"))


def text_encode(conversion: Conversion, node: Node) -> None:
    """Its second output is the CLIP that it was given."""
    clip = node.links.get("clip")
    conversion.replace(node, "CLIPTextEncode", text=conversion.given(node, "prompt"), clip=clip)
    if clip is not None:
        conversion.graph.moved[node.out(1)] = clip
    if conversion.given(node, "strength", 1) not in (1, 1.0):
        conversion.problem(node, f"`strength` {conversion.given(node, 'strength')} is not supported: it is ignored")


def combine(conversion: Conversion, node: Node) -> None:
    pair = {
        "conditioning_to": node.links.get("conditioning_1"),
        "conditioning_from": node.links.get("conditioning_2"),
    }
    mode, ratio = node.values.get("combination_mode"), conversion.given(node, "weighted_average_ratio")
    if mode == "concatenate":
        conversion.replace(node, "ConditioningConcat", **pair)
        return
    ratio = 0.5 if mode == "average" else ratio
    if isinstance(ratio, Source) or ratio is None:
        conversion.problem(node, "`weighted_average_ratio` is linked: the strength here is 1 minus it")
        ratio = 0.5
    conversion.replace(node, "ConditioningAverage", **pair, conditioning_to_strength=round(1 - ratio, 4))


def tile_size(node: Node) -> int:
    return TILE if node.values.get("enable_tiling") else 0


def encode(conversion: Conversion, node: Node) -> None:
    """A draw of the VAE's distribution, as the wrapper takes. What it is for, the sampler knows."""
    new = conversion.replace(
        node,
        ENCODE,
        vae=node.links.get("vae"),
        video=node.links.get("start_image"),
        tile_size=tile_size(node),
        noise_augmentation=conversion.given(node, "noise_aug_strength", 0.0),
        sample_posterior=True,
    )
    conversion.parts[node.id] = {"old": node, "latent": new}
    if conversion.live(node, "end_image") is not None:
        conversion.problem(node, "`end_image` is not supported: only InP models of CogVideoX-Fun take an end image")
    if "chunk_size" in node.values:
        conversion.remark(node, "`chunk_size` is not needed")


def encode_inpaint(conversion: Conversion, node: Node) -> None:
    start, finish = node.links.get("start_image"), node.links.get("end_image")
    size = conversion.make("GetImageSize", node, image=start)
    builder = conversion.make(
        "CogVideoXFunStartEndImage",
        node,
        width=size.out(0),
        height=size.out(1),
        length=conversion.given(node, "num_frames"),
        start_image=start,
        end_image=finish,
    )
    latent = conversion.replace(
        node,
        ENCODE,
        vae=node.links.get("vae"),
        video=builder.out(0),
        mask=builder.out(1),
        tile_size=tile_size(node),
        noise_augmentation=conversion.given(node, "noise_aug_strength", 0.0),
    )
    mask = conversion.make("CogVideoXFunMaskResize3D", node, mask=builder.out(1), latent=latent.out())
    conversion.parts[node.id] = {"old": node, "latent": latent, "mask": mask, "builder": builder}


def decode(conversion: Conversion, node: Node) -> None:
    """The wrapper's automatic tiles are half the video, here they have a size."""
    tiles = {}
    if node.values.get("enable_vae_tiling"):
        tiles = {"tile_size": TILE}
        if node.values.get("auto_tile_size") is False:
            sides = [node.values.get(f"tile_sample_min_{side}", TILE) for side in ("height", "width")]
            size = max(64, min(sides) // 8 * 8)
            part = max(node.values.get(f"tile_overlap_factor_{side}", 0.25) for side in ("height", "width"))
            tiles = {"tile_size": size, "overlap": min(int(size * part) // 8 * 8, size // 2)}
        conversion.remark(node, f"tiles are square here, with `tile_size` {tiles['tile_size']}")
    conversion.replace(
        node, "CogVideoXFunVAEDecode", vae=node.links.get("vae"), latent=node.links.get("samples"), **tiles
    )


def bucket(conversion: Conversion, node: Node) -> None:
    """The size from Resolution, the images from ComfyUI's ImageScale."""
    pictures = node.links.get("images")
    size = conversion.make(
        "CogVideoXFunResolution", node, base_resolution=conversion.given(node, "base_resolution"), image=pictures
    )
    if isinstance(node.values.get("base_resolution"), int) and node.values["base_resolution"] < 512:
        low = node.values["base_resolution"]
        conversion.problem(node, f"`base_resolution` is {low}, expected 512 or more: set a size by hand")
        size.values["base_resolution"] = 512
    conversion.replace(
        node,
        "ImageScale",
        image=pictures,
        upscale_method=conversion.given(node, "upscale_method"),
        crop=conversion.given(node, "crop"),
        width=size.out(0),
        height=size.out(1),
    )
    conversion.graph.moved |= {node.out(1): size.out(0), node.out(2): size.out(1)}

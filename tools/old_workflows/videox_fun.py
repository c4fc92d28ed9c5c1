"""VideoX-Fun's nodes. One of its samplers is several nodes here, and its model wire carries model, CLIP and VAE."""

from . import facts
from .conversion import Conversion
from .graph import Node, Source

LOADER, LORA, SAMPLER = "CogVideoXFunModelLoader", "CogVideoXFunLoraLoader", "CogVideoXFunSampler"
SAMPLERS = {
    "DDIM": "cogvideox_ddim_origin",
    "Euler": "cogvideox_euler",
    "Euler A": "cogvideox_euler_a",
    "DPM++": "cogvideox_dpm++",
    "PNDM": "cogvideox_pndm",
}
CONTROL_SHAPE = "4:7"  # VideoX-Fun's size for a Control model without a video: 384 x 672 at 512
# by another name than the samplers take it
PASSES_MODEL = {"FunCompile": "funmodels", "FunAttention": "funmodels", LORA: "model"}
LOADERS = ("LoadCogVideoXFunModel", "LoadCogVideoX_Fun_Model", "LoadCogVideoX_FUN_Model")


def convert(conversion: Conversion) -> None:
    """Rewrite VideoX-Fun's nodes for CogVideoX-Fun in a graph."""
    found = belonging(conversion)
    for node in found:
        node.kind = name_now(node)
        if node.kind in facts.VIDEOX_FUN_ONLY:
            old, why = facts.VIDEOX_FUN_ONLY[node.kind]
            conversion.lose(node, why, old)
    known = [node for node in found if node.kind in facts.VIDEOX_FUN]
    known = [node for node in known if conversion.read(node, facts.VIDEOX_FUN[node.kind])]
    loaders = {node.id: node for node in known if node.kind in LOADERS}
    chains = {node.id: chain_of(conversion, node) for node in known if node.id not in loaders}
    swapped = {node.id: node for node in conversion.graph.of_kind(LOADER)}
    if swapped.keys() & set(chains.values()):
        conversion.retyped |= {node.out() for node in (*swapped.values(), *conversion.graph.of_kind(LORA))}
    handlers = {
        **dict.fromkeys(LOADERS, loader),
        "LoadCogVideoXFunLora": lora,
        "FunCompile": compiled,
        "FunAttention": attention,
        "VideoToCanny": canny,
        "ImageToCanny": canny,
    }
    for kind, handler in handlers.items():
        for node in known:
            if node.kind == kind:
                handler(conversion, node)
    samplers = {"CogVideoXFunT2VSampler": text, "CogVideoXFunInpaintSampler": images, "CogVideoXFunV2VSampler": video}
    for node in known:
        if node.kind in samplers:
            samplers[node.kind](conversion, node, (loaders | swapped).get(chains[node.id]))
    for node in known:
        if node.kind == "FunTextBox" and node.id not in conversion.made and not is_shared(conversion, node):
            both = [*loaders.values(), *swapped.values()]
            clip = now(conversion, both[0]).out(1) if len(both) == 1 else None
            conversion.replace(node, "CLIPTextEncode", text=conversion.given(node, "prompt"), clip=clip)
            conversion.problem(node, "no sampler uses this prompt: connect it, or delete it")


def name_now(node: Node) -> str:
    return facts.RENAMED.get(node.kind, node.kind)


def belonging(conversion: Conversion) -> list[Node]:
    """Loaders and samplers for CogVideoX-Fun, and what leads to them: VideoX-Fun's other models share those nodes."""
    shared = facts.VIDEOX_FUN.keys() | facts.VIDEOX_FUN_ONLY.keys()
    known = [node for node in conversion.graph.nodes.values() if name_now(node) in shared and not node.is_new]
    found = {node.id: node for node in known if "CogVideoX" in name_now(node)}
    before = -1
    while before < len(found):
        before = len(found)
        for node in known:
            if any(other.id in found for other, _ in conversion.graph.consumers(node)):
                found[node.id] = node
    return [node for node in known if node.id in found]


def is_shared(conversion: Conversion, node: Node) -> bool:
    """Whether a sampler of another model takes it, too."""
    return any(other.kind not in facts.VIDEOX_FUN for other, _ in conversion.graph.consumers(node))


def chain_of(conversion: Conversion, node: Node) -> object:
    """The id of the loader that a node's model comes from, behind LoRAs and settings; None if there is none.

    It may be this pack's: ComfyUI puts it in the place of VideoX-Fun's when missing nodes are swapped.
    """
    seen = set()
    while node is not None and node.id not in seen:
        seen.add(node.id)
        node = conversion.graph.origin_node(node.links.get(PASSES_MODEL.get(node.kind, "cogvideoxfun_model")))
        if node is not None and node.kind in (*LOADERS, LOADER):
            return node.id
    return None


def loader(conversion: Conversion, node: Node) -> None:
    mode = node.values.get("GPU_memory_mode", "")
    weight_dtype = "fp8_e4m3fn" if mode.endswith("qfloat8") else node.values.get("precision")
    conversion.replace(node, LOADER, model=node.values.get("model"), weight_dtype=weight_dtype)


def lora(conversion: Conversion, node: Node) -> None:
    name, strength = conversion.given(node, "lora_name"), conversion.given(node, "strength_model")
    model = node.links.get("cogvideoxfun_model")
    conversion.replace(node, LORA, model=model, lora_name=name, strength=strength)


def compiled(conversion: Conversion, node: Node) -> None:
    conversion.replace(node, "TorchCompileModel", model=node.links.get("funmodels"))
    conversion.remark(node, "TorchCompileModel has no cache_size_limit")


def attention(conversion: Conversion, node: Node) -> None:
    """Attention is a start option of ComfyUI."""
    if "funmodels" in node.links:
        conversion.graph.moved[node.out()] = node.links["funmodels"]
    chosen = node.values.get("attention_type")
    conversion.lose(node, f"start ComfyUI with --use-{chosen}-attention instead")


def canny(conversion: Conversion, node: Node) -> None:
    """Canny's thresholds go from 0 to 1, VideoX-Fun's from 0 to 255."""
    limits = {name: conversion.given(node, name) for name in ("low_threshold", "high_threshold")}
    for name, value in limits.items():
        if isinstance(value, Source):
            conversion.problem(node, f"`{name}` is linked, expected a value: divide it by 255")
            limits[name] = None
        elif value is not None:
            limits[name] = min(max(round(value / 255, 4), 0.01), 0.99)
    images = node.links.get("input_video", node.links.get("input_image"))
    conversion.replace(node, "Canny", image=images, **limits)
    conversion.remark(node, f"thresholds of Canny are {limits['low_threshold']} and {limits['high_threshold']}")


def encoded(conversion: Conversion, node: Node, loaded: Node) -> dict[str, Source | None]:
    """Both prompts of a sampler, encoded with the CLIP of its model."""
    prompts = {}
    for name, old in (("positive", "prompt"), ("negative", "negative_prompt")):
        source = node.links.get(old)
        origin = conversion.graph.origin(source)
        clip = loaded.out(1)
        box = conversion.graph.nodes.get(origin.node) if origin else None
        first = conversion.made.get(origin.node) if origin else None
        if box is not None and box.kind == "FunTextBox" and is_shared(conversion, box):
            text = conversion.given(box, "prompt")
            prompts[name] = conversion.make("CLIPTextEncode", node, text=text, clip=clip).out()
        elif box is not None and box.kind == "FunTextBox":
            conversion.replace(box, "CLIPTextEncode", text=conversion.given(box, "prompt"), clip=clip)
            prompts[name] = source
        elif first is not None and first.links.get("clip") == clip:
            prompts[name] = source
        elif first is not None:  # of another model, which has another CLIP
            text = first.links.get("text", first.values.get("text"))
            prompts[name] = conversion.make("CLIPTextEncode", node, text=text, clip=clip).out()
        else:
            prompts[name] = conversion.make("CLIPTextEncode", node, text=source or "", clip=clip).out()
    return prompts


def begin(conversion: Conversion, node: Node, loader: Node | None) -> dict | None:
    """What all samplers need: model, VAE and both prompts. None if there is no model."""
    if loader is None:
        conversion.lose(
            node, "its model comes from no loader of VideoX-Fun's CogVideoX nodes, so it can't be converted"
        )
        return None
    loaded = now(conversion, loader)
    return {
        "model": node.links["cogvideoxfun_model"],
        "vae": loaded.out(2),
        "prompts": encoded(conversion, node, loaded),
        "is_control": is_control(loader),
    }


def now(conversion: Conversion, loader: Node) -> Node:
    """This pack's loader for an old one, or itself."""
    return conversion.made.get(loader.id, loader)


def is_control(loader: Node) -> bool:
    """By the setting of VideoX-Fun's loader. This pack's has none: there by the name of the folder."""
    if loader.kind != LOADER:
        return loader.values.get("model_type") == "Control"
    saved = loader.data.get("widgets_values") or [""]
    name = str(loader.values.get("model", saved[0])).lower()
    return "control" in name or "pose" in name


def end(conversion: Conversion, node: Node, base: dict, **inputs) -> None:
    """The sampler in the place of the old one, and the decoder, whose output is the old sampler's."""
    run = {name: conversion.given(node, name) for name in ("seed", "cfg")}
    run["steps"], inputs["denoise"] = steps(conversion, node, inputs.get("denoise"))
    scheduler = node.values.get("scheduler")
    if scheduler is not None and scheduler not in SAMPLERS:
        conversion.problem(node, f"the scheduler {scheduler!r} is unknown, expected one of {', '.join(SAMPLERS)}")
    sampled = conversion.replace(
        node, SAMPLER, {}, model=base["model"], sampler_name=SAMPLERS.get(scheduler), **run, **inputs
    )
    decoded = conversion.make("CogVideoXFunVAEDecode", node, vae=base["vae"], latent=sampled.out())
    conversion.graph.moved[node.out()] = decoded.out()


def steps(conversion: Conversion, node: Node, strength: object) -> tuple[object, object]:
    """The steps and the denoise of the Sampler, which runs all steps; both other packs skip those before the strength.

    The denoise is the share that is left after rounding down: of 10 steps at a strength of 0.75, 7 are run, at 0.7.
    """
    given = conversion.given(node, "steps")
    if strength in (None, 1, 1.0):
        return given, strength
    if isinstance(given, Source) or isinstance(strength, Source) or given is None:
        conversion.problem(
            node,
            "steps or denoise is linked, and here all steps are run: set steps to steps x denoise, rounded down, and "
            "denoise to the new steps / the old ones",
        )
        return given, strength
    run = int(given * strength)
    if run == 0:
        conversion.remark(node, f"steps {given} at a strength of {strength} are no step: denoise 0 returns the input")
        return given, 0.0
    conversion.remark(node, f"steps {given} at a strength of {strength} are {run} steps at denoise {run / given:.4g}")
    return run, run / given


def text(conversion: Conversion, node: Node, loader: Node | None) -> None:
    if (base := begin(conversion, node, loader)) is None:
        return
    size = {name: conversion.given(node, name) for name in ("width", "height")}
    length = 1 if node.values.get("is_image") is True else conversion.given(node, "video_length")
    latent = conversion.make("CogVideoXFunEmptyLatent", node, **size, length=length, model=base["model"])
    end(conversion, node, base, **base["prompts"], latent=latent.out())


def sized(conversion: Conversion, node: Node, base: dict, image: Source | None, shape: str | None = None) -> dict:
    """Width, height and length by VideoX-Fun's buckets."""
    resolution = conversion.make(
        "CogVideoXFunResolution",
        node,
        base_resolution=conversion.given(node, "base_resolution"),
        length=conversion.given(node, "video_length"),
        aspect_ratio=shape,
        image=image,
        model=base["model"],
    )
    return {name: resolution.out(slot) for slot, name in enumerate(("width", "height", "length"))}


def images(conversion: Conversion, node: Node, loader: Node | None) -> None:
    """Images are stretched to the bucket, as VideoX-Fun does."""
    if (base := begin(conversion, node, loader)) is None:
        return
    start, finish = conversion.live(node, "start_img"), conversion.live(node, "end_img")
    size = sized(conversion, node, base, start or finish)
    builder = conversion.make(
        "CogVideoXFunStartEndImage",
        node,
        **size,
        fit="stretch",
        start_image=start,
        end_image=finish,
        model=base["model"],
    )
    latent = conversion.make(
        "CogVideoXFunVAEEncode",
        node,
        vae=base["vae"],
        video=builder.out(0),
        mask=builder.out(1),
        model=base["model"],
    )
    mask = conversion.make("CogVideoXFunMaskResize3D", node, mask=builder.out(1), latent=latent.out())
    conditioned = conversion.make(
        "CogVideoXFunInpaintConditioning", node, **base["prompts"], masked_latent=latent.out(), mask=mask.out()
    )
    end(conversion, node, base, **three(conditioned))


def three(conditioned: Node) -> dict[str, Source]:
    """The outputs of a conditioning node."""
    return {name: conditioned.out(slot) for slot, name in enumerate(("positive", "negative", "latent"))}


def frames(conversion: Conversion, node: Node, base: dict, clip: Source, **encode) -> Node:
    """The first frames of a clip, stretched to a bucket and encoded."""
    size = sized(conversion, node, base, clip)
    taken = conversion.make("ImageFromBatch", node, image=clip, batch_index=0, length=size["length"])
    scaled = conversion.make(
        "ImageScale", node, image=taken.out(), width=size["width"], height=size["height"], crop="disabled"
    )
    return conversion.make("CogVideoXFunVAEEncode", node, vae=base["vae"], video=scaled.out(), **encode)


def video(conversion: Conversion, node: Node, loader: Node | None) -> None:
    if (base := begin(conversion, node, loader)) is None:
        return
    clip, followed = conversion.live(node, "validation_video"), conversion.live(node, "control_video")
    if base["is_control"]:
        if followed is None:
            latent = conversion.make(
                "CogVideoXFunEmptyLatent",
                node,
                **sized(conversion, node, base, None, CONTROL_SHAPE),
                model=base["model"],
            )
            end(conversion, node, base, **base["prompts"], latent=latent.out())
            return
        latent = frames(conversion, node, base, followed, model=base["model"])
        conditioned = conversion.make(
            "CogVideoXFunControlConditioning", node, **base["prompts"], control_latent=latent.out()
        )
        end(conversion, node, base, **three(conditioned))
    else:
        if clip is None:
            conversion.problem(node, "it has no validation_video: connect a clip to ImageFromBatch")
        latent = frames(conversion, node, base, clip, model=base["model"], sample_posterior=True)
        denoise = conversion.given(node, "denoise_strength")
        end(conversion, node, base, **base["prompts"], latent=latent.out(), denoise=denoise)

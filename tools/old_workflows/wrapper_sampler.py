"""The sampler of ComfyUI-CogVideoXWrapper. Here, what it conditions on are nodes of their own."""

from .conversion import Conversion
from .graph import ALWAYS, BYPASSED, Node, Source
from .report import CONVERTED
from .videox_fun import SAMPLER, SAMPLERS, steps, three

SAMPLERS = SAMPLERS | {
    "CogVideoXDDIM": "cogvideox_ddim",
    "UniPCMultistepScheduler": "uni_pc",
    "HeunDiscreteScheduler": "heun",
    "DEISMultistepScheduler": "deis",
    "LCMScheduler": "lcm",
    "SASolverScheduler": "sa_solver",
}
EMPTY = "CogVideoXFunEmptyLatent"
SCHEDULES = {
    "static_standard": "standard_static",
    "uniform_standard": "standard_uniform",
    "uniform_looped": "looped_uniform",
}
NOT_SUPPORTED = {
    "controlnet": "ControlNets are not supported",
    "tora_trajectory": "Tora is not supported",
    "feta_args": "Enhance-A-Video is not supported",
    "fastercache": "use EasyCache between the model and this node",
    "teacache_args": "use EasyCache between the model and this node",
}


def empty_latents(conversion: Conversion, samplers: list[Node]) -> None:
    """EmptyLatentImage gives the wrapper's sampler only a size; the length is the sampler's.

    The first sampler of an EmptyLatentImage puts its length in. One with another length or model gets its own latent.
    """
    graph = conversion.graph
    done: dict[object, list[tuple[tuple, Source]]] = {}  # id -> what the latents that it became are for
    sizes: dict[object, dict] = {}
    for node in samplers:
        found = graph.origin(node.links.get("samples"))
        old = graph.nodes.get(found.node) if found is not None else None
        if found is None or not (found.node in done or (old is not None and old.kind == "EmptyLatentImage")):
            continue
        length, model = conversion.given(node, "num_frames"), node.links.get("model")
        wanted = (length, graph.origin(model))
        if old is not None:
            saved = old.data.get("widgets_values") if graph.has_notes else None
            values = dict(zip(("width", "height", "batch_size"), saved, strict=False)) if saved else old.values
            sizes[old.id] = {name: old.links.get(name, values.get(name)) for name in ("width", "height", "batch_size")}
            conversion.entry(old).state = CONVERTED
            made = conversion.replace(old, EMPTY, **sizes[old.id], length=length, model=model)
            done[old.id] = [(wanted, made.out())]
            continue
        if wanted == done[found.node][0][0]:
            continue
        latent = next((one for given, one in done[found.node] if given == wanted), None)
        if latent is None:
            latent = conversion.make(EMPTY, node, **sizes[found.node], length=length, model=model).out()
            done[found.node].append((wanted, latent))
        node.links["samples"] = latent


def switched(made: Node, old: Node, is_off: bool) -> Node:
    """Set the mode of a new node in the model's wire: that of the old node, or bypassed if it is off."""
    made.data["mode"] = BYPASSED if is_off else old.data.get("mode", ALWAYS)
    return made


def kind_of_model(conversion: Conversion, source: Source | None, names: dict) -> str:
    """What the wrapper takes a model for, by its name: "control", "inpaint", "image" or "text"."""
    found = conversion.graph.origin(source)
    name = str(names.get(found.node, "") if found else "").lower()
    if "fun" in name:
        return "control" if "pose" in name or "control" in name else "inpaint"
    return "image" if any(word in name for word in ("i2v", "img2vid", "interpolation")) else "text"


def made_of(conversion: Conversion, source: Source | None) -> dict[str, Node]:
    """What became of the encoder that a link comes from: its parts, or {}."""
    found = conversion.graph.origin(source)
    return conversion.parts.get(found.node, {}) if found is not None else {}


def sampler(conversion: Conversion, node: Node) -> None:
    """CogVideoSampler: conditioning nodes by what it is given, then the Sampler in its place."""
    names = {
        old: made.values.get("model") for old, made in conversion.made.items() if made.kind.endswith("ModelLoader")
    }
    kind = kind_of_model(conversion, node.links.get("model"), names)
    model = windows(conversion, node, node.links.get("model"))
    prompts = {name: node.links.get(name) for name in ("positive", "negative")}
    for name, why in NOT_SUPPORTED.items():
        if name in node.links and not conversion.is_muted(node.links[name]):
            conversion.problem(node, f"`{name}`: {why}")
    encoded = conversion.live(node, "image_cond_latents")
    latent = start(conversion, node, model, conversion.live(node, "samples"), encoded)
    run = conditions(conversion, node, kind, model, prompts, latent, encoded)
    run["steps"], run["denoise"] = steps(conversion, node, conversion.given(node, "denoise_strength"))
    conversion.replace(
        node,
        SAMPLER,
        model=model,
        **run,
        seed=conversion.given(node, "seed"),
        cfg=conversion.given(node, "cfg"),
        sampler_name=sampler_name(conversion, node),
    )


def sampler_name(conversion: Conversion, node: Node) -> str | None:
    name = node.values.get("scheduler")
    if name is not None and name not in SAMPLERS:
        conversion.problem(node, f"the scheduler {name} is not supported: cogvideox_ddim is used")
    return SAMPLERS.get(name)


def windows(conversion: Conversion, node: Node, model: Source | None) -> Source | None:
    """Context windows of CogVideoContextOptions, on the model's wire."""
    if "context_options" not in node.links:
        return model
    found = conversion.graph.origin(node.links["context_options"])
    options = conversion.old_of(found)
    if options is None or options.kind != "CogVideoContextOptions":
        conversion.problem(node, "`context_options` comes from a node that is not known here: add Context Windows")
        return model
    values = {"context_length": options.values.get("context_frames")}
    values |= {"context_overlap": options.values.get("context_overlap")}
    values["context_schedule"] = SCHEDULES.get(options.values.get("context_schedule"))
    if isinstance(values["context_length"], int) and values["context_length"] % 4 != 1:
        values["context_length"] = (values["context_length"] - 1) // 4 * 4 + 1
        was = options.values["context_frames"]
        conversion.remark(
            options, f"context_frames {was} is context_length {values['context_length']}, which is 4n + 1"
        )
    if options.id in conversion.made:
        made = conversion.make("CogVideoXFunContextWindows", node, model=model, **values)
        return switched(made, options, options.id in conversion.muted).out()
    if options.values.get("freenoise"):
        conversion.problem(options, "there is no freenoise")
    conversion.parts[options.id] = {"old": options}
    return conversion.replace(options, "CogVideoXFunContextWindows", {}, model=model, **values).out()


def start(conversion: Conversion, node: Node, model, source: Source | None, encoded: Source | None) -> Source | None:
    """The latent that is sampled: an empty one, an encoded video, or None if the conditioning gives one.

    Args:
        source: what `samples` is given.
        encoded: what `image_cond_latents` is given.
    """
    if source is None:
        return None
    found = conversion.graph.origin(source)
    latent = conversion.graph.nodes.get(found.node) if found is not None else None
    if found is not None and (found.node in conversion.made or (latent is not None and latent.is_new)):
        return source
    conversion.problem(
        node,
        "its latent comes from a node of another pack. The wrapper starts from such a latent without noise, here "
        "noise is added: an empty latent is connected instead",
    )
    images = first_image(made_of(conversion, encoded))
    return empty(conversion, node, images, model)


def first_image(parts: dict[str, Node]) -> Source | None:
    return parts["old"].links.get("start_image") if parts else None


def empty(conversion: Conversion, node: Node, image: Source | None, model: Source | None) -> Source:
    """An empty latent of an image's size, and of the sampler's length."""
    size = {}
    if image is not None:
        measured = conversion.make("GetImageSize", node, image=image)
        size = {"width": measured.out(0), "height": measured.out(1)}
    length = conversion.given(node, "num_frames")
    return conversion.make(EMPTY, node, **size, length=length, model=model).out()


def conditions(conversion: Conversion, node: Node, kind: str, model, prompts: dict, latent, source) -> dict:
    """Positive, negative and latent for the sampler.

    Args:
        kind: see `kind_of_model`.
        latent: from `samples`; it wins over that of the conditioning.
        source: what `image_cond_latents` is given.
    """
    parts = made_of(conversion, source)
    if source is None:
        if latent is None:
            conversion.problem(node, "it has neither samples nor image_cond_latents: set the size of Empty Latent")
            latent = empty(conversion, node, None, model)
        return {**prompts, "latent": latent}
    if "mask" in parts:
        if model is not None:
            parts["builder"].links["model"] = model
        conditioned = conversion.make(
            "CogVideoXFunInpaintConditioning",
            node,
            **prompts,
            masked_latent=parts["latent"].out(),
            mask=parts["mask"].out(),
        )
    elif kind == "control":
        old = parts.get("old")
        strengths = {name: conversion.given(old, name) for name in STRENGTHS} if old else {}
        conditioned = conversion.make(
            "CogVideoXFunControlConditioning", node, **prompts, control_latent=source, **strengths
        )
    else:
        if kind != "image":
            conversion.problem(node, f"image_cond_latents of a model for {kind}: choose an image-to-video model")
        conditioned = image(conversion, node, model, prompts, source, latent)
    outputs = three(conditioned)
    return outputs if latent is None or kind == "image" else outputs | {"latent": latent}


STRENGTHS = ("strength", "start_percent", "end_percent")


def image(conversion: Conversion, node: Node, model, prompts: dict, source: Source, latent: Source | None) -> Node:
    """The first frame of CogVideoX's own image models."""
    parts = made_of(conversion, source)
    old = parts.get("old")
    given = tuple(conversion.given(old, name) for name in STRENGTHS) if old else ()
    if any(value not in (None, usual) for value, usual in zip(given, (1, 0, 1), strict=False)):
        conversion.problem(old, f"{', '.join(STRENGTHS)} {given} have no effect with an image model")
    if latent is None:
        latent = empty(conversion, node, first_image(parts), model)
    return conversion.make("CogVideoXFunImageConditioning", node, **prompts, image_latent=source, latent=latent)

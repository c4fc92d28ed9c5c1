"""Let ComfyUI validate a workflow whose other packs and models are not installed, without running it."""

import json

from cogvideox_fun.tools.comfyui_server import Server
from ui_graph import UIGraph

NAMES = {  # of files, which this ComfyUI has by another name
    "model": "nano",
    "text_encoder": "nano/text_encoder",
    "vae_name": "nano/vae",
    "lora_name": "nano/ring.safetensors",
    "image": "example.png",
}
VALUES = {"INT": 17, "FLOAT": 8.0, "STRING": "a text"}
SOURCES = {
    "stand-in IMAGE": ("LoadImage", {"image": "example.png"}),
    "stand-in LATENT": ("CogVideoXFunEmptyLatent", {"width": 64, "height": 64, "length": 5, "batch_size": 1}),
}
SLOTS = {"IMAGE": ["stand-in IMAGE", 0], "MASK": ["stand-in IMAGE", 1], "LATENT": ["stand-in LATENT", 0]}
END = "SaveAnimatedWEBP"


def given(value, graph: UIGraph, installed: set[str]):
    """The value of an input: a link to an installed node, or what stands in for another one."""
    while isinstance(value, list) and len(value) == 2:
        if value[0] not in {str(key) for key in graph.nodes}:
            return value  # inside a subgraph
        node = graph.nodes[int(value[0])]
        if node["type"] == "GetNode":
            (setter,) = (one for one in graph.of_kind("SetNode") if one["widgets_values"] == node["widgets_values"])
            source = graph.source(setter, setter["inputs"][0]["name"])
            value = [str(source[0]), source[1]]
            continue
        if node["type"] in installed:
            return value
        kind = node["outputs"][value[1]]["type"]
        return VALUES[kind] if kind in VALUES else SLOTS[kind]
    return value


def prompt_of(api: dict, workflow: dict, info: dict) -> dict:
    """A prompt of the installed nodes but those that end a run. Each picture that nothing takes goes into a node that
    lacks inputs.

    Args:
        api: what the front end would queue of ``workflow``.
        info: ComfyUI's ``/object_info``.
    """
    graph = UIGraph(workflow)
    prompt = {key: {"class_type": kind, "inputs": dict(inputs)} for key, (kind, inputs) in SOURCES.items()}
    for key, node in api.items():
        if node["class_type"] in info and not info[node["class_type"]]["output_node"]:
            inputs = {name: given(value, graph, set(info)) for name, value in node["inputs"].items()}
            inputs |= {name: NAMES[name] for name, value in inputs.items() if name in NAMES and isinstance(value, str)}
            prompt[key] = {"class_type": node["class_type"], "inputs": inputs}
    taken = [value for node in prompt.values() for value in node["inputs"].values() if isinstance(value, list)]
    for key, node in list(prompt.items()):
        for slot, kind in enumerate(info[node["class_type"]]["output"]):
            if kind == "IMAGE" and [key, slot] not in taken:
                prompt[f"end {key} {slot}"] = {"class_type": END, "inputs": {"images": [key, slot]}}
    return prompt


def errors(server: Server, prompt: dict) -> dict:
    """What ComfyUI finds wrong, without the ends, which are wrong on purpose: so nothing runs."""
    try:
        server.post("/prompt", {"prompt": prompt})
    except RuntimeError as error:
        answer = json.loads(str(error).split(" ", 2)[2])
        found = {prompt[key]["class_type"]: one["errors"] for key, one in answer["node_errors"].items()}
        if END not in found:
            raise
        return {kind: one for kind, one in found.items() if kind != END}
    raise RuntimeError("ComfyUI accepted a prompt whose ends lack inputs")

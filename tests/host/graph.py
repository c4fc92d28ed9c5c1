"""Build graphs in API form and run them in ComfyUI."""

import itertools
import json
from pathlib import Path

import torch
from cogvideox_fun.tools import comfyui_server as comfy
from safetensors.torch import load_file, save_file


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """The norm of a difference over that of ``b``."""
    return ((a - b).norm() / b.norm()).item()


def closest(ours: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float((ours - expected).abs().max() / expected.abs().max())


class Node:
    """A node of a graph; ``node[1]`` is its second output, the node itself stands for its first."""

    def __init__(self, key: str):
        self.key = key

    def __getitem__(self, index: int) -> list:
        return [self.key, index]


class Failed(Exception):
    """A prompt that ComfyUI refused or that failed; its message is ComfyUI's."""


class Lab:
    """A running ComfyUI to try things in."""

    def __init__(self, server: comfy.Server, base: Path):
        self.server = server
        self.base = base
        self.numbers = itertools.count()

    def graph(self) -> "Graph":
        return Graph(self)

    def setting(self, model_name: str) -> tuple["Graph", Node, Node, Node, Node]:
        """A graph with a model, a positive and a negative prompt, and an empty latent of 80 x 48 pixels, 9 frames."""
        graph = self.graph()
        model = graph.loader(model_name)
        latent = graph.fun("EmptyLatent", width=80, height=48, length=9, batch_size=1)
        return graph, model, *graph.prompts(model[1]), latent

    def has(self, *nodes: str) -> bool:
        """Whether this ComfyUI has these nodes. They are asked for singly: a list of all nodes takes it a second."""
        return all(node in self.server.get(f"/object_info/{node}") for node in nodes)

    def path(self, suffix: str = ".safetensors") -> str:
        return str(self.base / f"probe-{next(self.numbers)}{suffix}")

    def run(self, workflow: dict) -> dict:
        """Run a workflow in API form; its history."""
        try:
            history = self.server.wait(self.server.queue(workflow), 120)
        except RuntimeError as error:
            raise Failed(str(error)) from error
        message = comfy.error_of(history)
        if message is not None:
            raise Failed(message)
        return history

    def log_since(self, size: int) -> str:
        return self.server.log.read_text(errors="replace")[size:]

    @property
    def log_size(self) -> int:
        return len(self.server.log.read_text(errors="replace"))


class Graph:
    """A graph under construction; nodes of the pack are named without their prefix."""

    def __init__(self, lab: Lab):
        self.lab = lab
        self.workflow: dict = {}

    def node(self, class_type: str, **inputs) -> Node:
        key = str(len(self.workflow) + 1)
        values = {name: value[0] if isinstance(value, Node) else value for name, value in inputs.items()}
        self.workflow[key] = {"class_type": class_type, "inputs": values}
        return Node(key)

    def with_defaults(self, class_type: str, sockets: dict | None = None, **given) -> Node:
        """A node with its defaults for what is not given; what a type takes is in ``sockets``."""
        declared = self.lab.server.get(f"/object_info/{class_type}")[class_type]["input"]
        inputs = {}
        for name, (kind, *rest) in {**declared["required"], **declared.get("optional", {})}.items():
            options = rest[0] if rest else {}
            choices = kind if isinstance(kind, list) else options.get("options")
            default = options.get("default", choices[0] if choices else None)
            if not isinstance(kind, list) and kind in (sockets or {}):
                default = sockets[kind]
            if default is not None:
                inputs[name] = default
        return self.node(class_type, **{**inputs, **given})

    def fun(self, name: str, **inputs) -> Node:
        return self.node(f"CogVideoXFun{name}", **inputs)

    def tensor(self, kind: str, value: torch.Tensor) -> Node:
        """A tensor as a LATENT, IMAGE, MASK, NOISE or CONDITIONING."""
        path = self.lab.path()
        save_file({"value": value.contiguous()}, path)
        return self.node("ProbeTensor", kind=kind.upper(), path=path)

    def get(self, *values) -> list[torch.Tensor]:
        """Run the graph and read back what these outputs hold."""
        paths = [self.lab.path() for _ in values]
        for value, path in zip(values, paths, strict=True):
            self.node("ProbeSave", value=value, path=path)
        self.lab.run(self.workflow)
        return [load_file(path)["value"] for path in paths]

    def loader(self, model: str, weight_dtype: str = "default") -> Node:
        return self.fun("ModelLoader", model=model, weight_dtype=weight_dtype)

    def prompts(self, clip, positive: str = "a red ball moves right", negative: str = "blurry") -> tuple[Node, Node]:
        return tuple(self.node("CLIPTextEncode", clip=clip, text=text) for text in (positive, negative))

    def sampler(self, model, positive, negative, latent, **options) -> Node:
        defaults = {
            "seed": 1,
            "steps": 4,
            "cfg": 6.0,
            "sampler_name": "cogvideox_ddim",
            "spacing": "auto",
            "denoise": 1.0,
        }
        inputs = {"model": model, "positive": positive, "negative": negative, "latent": latent}
        return self.fun("Sampler", **inputs, **{**defaults, **options})

    def inpaint(self, model: Node, vae, video, mask, positive, negative) -> Node:
        """VAE Encode, Mask Resize 3D and Inpaint Conditioning, as the workflows chain them."""
        latent = self.fun("VAEEncode", vae=vae, video=video, mask=mask, **ENCODE)
        small = self.fun("MaskResize3D", mask=mask, latent=latent, soft=False)
        return self.fun("InpaintConditioning", positive=positive, negative=negative, masked_latent=latent, mask=small)


ENCODE = {"tile_size": 0, "overlap": 64, "noise_augmentation": 0.0, "noise_seed": 0}


def read_workflow(name: str) -> dict:
    return json.loads((comfy.ROOT / "tests" / "data" / "api" / f"{name}.json").read_text())

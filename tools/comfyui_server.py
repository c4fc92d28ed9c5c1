"""Find a ComfyUI, start it as a server with the pack linked in, and run a workflow through its HTTP API."""

import contextlib
import dataclasses
import itertools
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from . import media
from .demo_scene import Request
from .pack import ROOT

MODEL_NAME = "CogVideoX-Fun-V1.1-2b-InP"  # what the shipped workflows name
WORKFLOW = ROOT / "tests" / "data" / "api" / "CogVideoX-Fun Start and End Image to Video.json"
START_SECONDS = 240
NO_HOST = "no ComfyUI found: set COMFYUI_PATH to one (default ~/comfy/ComfyUI) and COMFYUI_PYTHON to its Python"


@dataclasses.dataclass(frozen=True)
class Host:
    """A ComfyUI on disk and the Python that runs it."""

    path: Path
    python: Path


def find_host() -> Host | None:
    """The ComfyUI at COMFYUI_PATH, else ~/comfy/ComfyUI; None if there is none.

    Raises:
        FileNotFoundError: COMFYUI_PATH or COMFYUI_PYTHON is set, but to nothing that can be used.
    """
    path = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI").expanduser()
    candidates = [path / ".venv" / "bin" / "python", path / "venv" / "bin" / "python"]
    if os.environ.get("COMFYUI_PYTHON"):
        candidates = [Path(os.environ["COMFYUI_PYTHON"]).expanduser()]
    python = next((candidate for candidate in candidates if candidate.exists()), None)
    found = (path / "main.py").is_file() and python is not None
    if not found and (os.environ.get("COMFYUI_PATH") or os.environ.get("COMFYUI_PYTHON")):
        raise FileNotFoundError(
            f"no ComfyUI with a Python at {path} ({', '.join(map(str, candidates))}): set COMFYUI_PATH and "
            "COMFYUI_PYTHON to those of one, or unset both"
        )
    return Host(path, python) if found else None


class Server:
    """A running ComfyUI with a base directory of its own."""

    def __init__(self, port: int, log: Path, process: subprocess.Popen):
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.process = process

    def get(self, path: str):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, value):
        """POST JSON; a refusal becomes a RuntimeError with ComfyUI's text."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(value).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{path}: {error.code} {error.read().decode(errors='replace')}") from error
        return json.loads(body) if body else None

    def queue(self, workflow: dict) -> str:
        """Queue a workflow in API form; returns its prompt id.

        Raises:
            RuntimeError: ComfyUI refused a part of it. It would run the rest and say nothing.
        """
        answer = self.post("/prompt", {"prompt": workflow})
        if answer.get("node_errors"):
            raise RuntimeError(f"ComfyUI refused a part of the workflow: {answer['node_errors']}")
        return answer["prompt_id"]

    def wait(self, prompt_id: str, seconds: float = 600, on_tick=None) -> dict:
        """The history of a finished prompt, whether it succeeded or not."""
        begin = time.monotonic()
        while (waited := time.monotonic() - begin) < seconds:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            if self.process.poll() is not None:
                raise RuntimeError(f"ComfyUI ended with {self.process.returncode}:\n{self.tail()}")
            if on_tick is not None:
                on_tick()
            time.sleep(min(0.2, 0.01 + waited / 10))  # most prompts of a test are short
        raise TimeoutError(f"the workflow took more than {seconds} seconds:\n{self.tail()}")

    def tail(self, lines: int = 60) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def error_of(history: dict) -> str | None:
    """The message with which a prompt failed, or None."""
    for kind, data in history["status"]["messages"]:
        if kind == "execution_error":
            return f"{data['node_type']}: {data['exception_message'].strip()}"
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def serve(host: Host, base: Path, *arguments: str) -> Iterator[Server]:
    """Run ComfyUI on the CPU with ``base`` as its base directory and the pack linked in; stopped afterwards.

    COMFYUI_FRONT_END, if set, is the folder of another front end: comfyui_frontend_package/static of its package.
    """
    for folder in ("custom_nodes", "input", "output", "user", "temp", "models"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link = base / "custom_nodes" / "cogvideox-fun"
    if not link.exists():
        link.symlink_to(ROOT, target_is_directory=True)
    port = free_port()
    log = base / f"server_{port}.log"  # a base directory may have two servers
    command = [str(host.python), "main.py", "--cpu", "--base-directory", str(base), "--port", str(port)]
    command += ["--disable-auto-launch", "--database-url", f"sqlite:///{base}/user/comfyui.db", *arguments]
    if front_end := os.environ.get("COMFYUI_FRONT_END"):
        command += ["--front-end-root", front_end]
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=host.path, stdout=file, stderr=subprocess.STDOUT)
    server = Server(port, log, process)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                server.get("/system_stats")
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"ComfyUI did not start:\n{server.tail()}") from None
                time.sleep(0.5)
        yield server
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def set_inputs(workflow: dict, class_type: str, **values) -> None:
    """Set inputs of every node of a class in a workflow in API form."""
    for node in workflow.values():
        if node["class_type"] == class_type:
            node["inputs"].update(values)


def output_files(server: Server, history: dict, base: Path) -> list[Path]:
    """The files that a prompt saved."""
    found = []
    for outputs in history["outputs"].values():
        for entry in itertools.chain.from_iterable(outputs.values()):
            if isinstance(entry, dict) and entry.get("type") == "output":
                found.append(base / "output" / entry.get("subfolder", "") / entry["filename"])
    return found


def add_lora(workflow: dict, name: str) -> None:
    """Put a LoRA between the model's loader and the nodes that take its model, in a workflow in API form."""
    (loader,) = (key for key, node in workflow.items() if node["class_type"] == "CogVideoXFunModelLoader")
    for node in workflow.values():
        for slot, value in node["inputs"].items():
            if value == [loader, 0]:
                node["inputs"][slot] = ["lora", 0]
    inputs = {"model": [loader, 0], "lora_name": name, "strength": 1.0}
    workflow["lora"] = {"class_type": "CogVideoXFunLoraLoader", "inputs": inputs}


def fill_in(workflow: dict, base: Path, wanted: Request, args) -> None:
    """Set a request in the start-and-end-image workflow; its pictures go to ComfyUI's input folder."""
    (base / "input").mkdir(parents=True, exist_ok=True)
    set_inputs(workflow, "CogVideoXFunModelLoader", model=wanted.model.name)
    set_inputs(workflow, "CogVideoXFunStartEndImage", width=args.width, height=args.height, length=args.length)
    set_inputs(workflow, "CogVideoXFunSampler", steps=args.steps, seed=args.seed, cfg=wanted.cfg)
    add_lora(workflow, f"{wanted.model.name}/{wanted.lora.name}")
    classes = {node["class_type"]: node["inputs"] for node in workflow.values()}
    for slot, image in (("start_image", wanted.start), ("end_image", wanted.end)):
        Image.fromarray(media.to_uint8(image[0])).save(base / "input" / f"{slot}.png")
        workflow[classes["CogVideoXFunStartEndImage"][slot][0]]["inputs"]["image"] = f"{slot}.png"
    for slot, text in (("positive", wanted.prompt), ("negative", wanted.negative)):
        workflow[classes["CogVideoXFunInpaintConditioning"][slot][0]]["inputs"]["text"] = text


def run(host: Host, base: Path, wanted: Request, args) -> torch.Tensor:
    """Run the shipped start-and-end-image workflow and read back its video, F H W 3 of 0..1."""
    workflow = json.loads(WORKFLOW.read_text())
    fill_in(workflow, base, wanted, args)
    with serve(host, base) as server, tqdm(bar_format="ComfyUI is working: {elapsed}", disable=None) as bar:
        history = server.wait(server.queue(workflow), on_tick=bar.update)
        if message := error_of(history):
            raise RuntimeError(f"the workflow failed: {message}")
        (saved,) = output_files(server, history, base)
        return media.read_video(saved)

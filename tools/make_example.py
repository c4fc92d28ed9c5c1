"""Draw the nano model's clip, where it moves and where it starts: ``python tools/make_example.py``."""

import media
from pack import ROOT, load_pack
from PIL import Image

load_pack()

from cogvideox_fun.training.data import scenes  # noqa: E402

EXAMPLES = ROOT / "models" / "nano" / "examples"
NAME, LENGTH, SIZE = "square", 17, 128
SQUARE = scenes.Thing("red", "square", (0.26, 0.6), (0.64, 0.6), (0.18, 0.18))
SCENE = scenes.Scene("move", "night", "right", things=(SQUARE,))
MOVES_IN = (0, 48, SIZE, 112)  # left, top, right, bottom in pixels
STARTS_IN = (12, 54, 56, 98)  # with two pixels around it


def main() -> None:
    EXAMPLES.mkdir(parents=True, exist_ok=True)
    media.write_mp4(EXAMPLES / f"{NAME}.mp4", scenes.render(SCENE, LENGTH, SIZE, SIZE))
    for name, region in ((NAME, MOVES_IN), (f"{NAME}.first", STARTS_IN)):
        mask = Image.new("L", (SIZE, SIZE), 0)
        mask.paste(255, region)
        mask.save(EXAMPLES / f"{name}.png")
    print(f"{EXAMPLES / NAME}.mp4, .png, .first.png")


if __name__ == "__main__":
    main()

"""Which checkpoint goes with which feature: what tests/host/test_matrix.py runs and the README's table says."""

COLUMNS = (
    *("text", "start", "start + end", "video", "region", "control"),
    *("LoRA", "windows", "caches", "compile", "fp8", "GGUF"),
)
ALL = {"video", "LoRA", "windows", "caches", "compile", "fp8", "GGUF"}
INPAINT = ALL | {"text", "start", "start + end", "region"}
CONTROL = ALL | {"control"}

# The tiny model of that kind -> (what it stands for, what it is tested with).
CHECKPOINTS = {
    "2b": ("CogVideoX-Fun 2B InP, V1.0 and V1.1", INPAINT),
    "5b": ("CogVideoX-Fun 5B InP, V1.0 and V1.1", INPAINT),
    "v1.5": ("CogVideoX-Fun 5B InP, V1.5", INPAINT),
    "2b-control": ("CogVideoX-Fun 2B Control and Pose", CONTROL),
    "5b-control": ("CogVideoX-Fun 5B Control and Pose", CONTROL),
    "2b-text": ("CogVideoX 2B", ALL | {"text"}),
    "5b-text": ("CogVideoX 5B", ALL | {"text"}),
    "v1.5-text": ("CogVideoX 1.5 5B", ALL | {"text"}),
    "5b-image": ("CogVideoX 5B image to video", ALL | {"start"}),
    "v1.5-image": ("CogVideoX 1.5 5B image to video", ALL | {"start"}),
    "void": ("VOID", ALL | {"region"}),
}
CELLS = [(variant, name) for variant, (_, tested) in CHECKPOINTS.items() for name in COLUMNS if name in tested]


def table() -> str:
    """The README's table, in Markdown."""
    lines = [f"| checkpoint | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for label, tested in CHECKPOINTS.values():
        lines.append(f"| {label} | {' | '.join('yes' if name in tested else '-' for name in COLUMNS)} |")
    return "\n".join(lines) + "\n"

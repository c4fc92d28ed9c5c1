"""What a model's small decoder restores of held-out scenes."""

import torch

from ...model_loading.files.tiny_decoder import load_tiny_decoder
from .generate import Evaluation
from .measure import WHOLE, Seen, psnr
from .report import Result
from .rows import CAMERA, KINDS, Line, compare, counted, identity_lines, iou_lines


def tiny_decoder(evaluation: Evaluation) -> list[Result]:
    """The true clips after the VAE's encoder and the small decoder; beside them, after the whole VAE."""
    checkpoint = evaluation.pipeline.checkpoint
    if checkpoint.tiny_decoder is None:
        return []
    decoder = load_tiny_decoder(checkpoint.tiny_decoder, dtype=torch.float32).to(evaluation.device)

    def drafted(video: torch.Tensor) -> torch.Tensor:
        pixels = decoder.decode(evaluation.encode(video) / checkpoint.scale_factor)
        return pixels[0].movedim(0, -1).clamp(0, 1).cpu()  # CTHW -> THWC

    def closeness(seen: Seen) -> float:
        return psnr(seen.video, evaluation.restored(seen.truth.video))

    results = []
    for part, (name, choice) in enumerate((KINDS | CAMERA).items()):
        lines = [Line("PSNR", Seen.psnr, "dB")]
        lines += [*iou_lines(WHOLE), *identity_lines()] if name in KINDS else []
        truths = evaluation.truths(evaluation.scenes(part, choice))
        made = [(truth, drafted(truth.video)) for truth in truths]
        row = f"small decoder, {name}"
        results += compare(evaluation, row, lines, counted(evaluation, made), evaluation.examples)
        lines = [Line("PSNR to what the whole VAE decodes", closeness, "dB")]
        results += compare(evaluation, row, lines, made, vae=False)
    return results

"""Break the pack in one line at a time, and see that a test fails: ``python tests/mutations.py [number ...]``.

Signs, axes, numbers off by one, dtypes, devices, scales. Each breakage is made in a copy of the repository; the tests
that should notice it are run there. The command ends with status 1 if a breakage went unnoticed. Those under
"inside ComfyUI" need one: without it their tests are skipped, and they count as unnoticed.
"""

import argparse
import logging
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NETWORKS, SAMPLING = "model_loading/networks", "sampling"
OLD_WORKFLOWS, OLD_TESTS = "tools/old_workflows", "tests/unit/tools"
log = logging.getLogger(__name__)

EVALUATION = "tests/unit/training/test_training_evaluation.py"
ROUNDS_TESTS = "tests/unit/sampling/test_rounds.py"

# file, what stands there once, what is put in its place, the tests that should fail
MUTATIONS = [
    (f"{NETWORKS}/blocks.py", "[cos, -sin, sin, cos]", "[cos, sin, -sin, cos]", "tests/parity/test_transformer.py"),
    (
        f"{NETWORKS}/blocks.py",
        "x[:, text_tokens:], 1 + scale)",
        "x[:, text_tokens:], scale)",
        "tests/parity/test_transformer.py",
    ),
    (
        f"{NETWORKS}/blocks.py",
        "target.addcmul_(*factors)",
        "target.addcmul_(*factors, value=-1)",
        "tests/parity/test_transformer.py",
    ),
    (
        f"{NETWORKS}/blocks.py",
        "-> b (t h w) (c pt ph pw)",
        "-> b (t h w) (c pt pw ph)",
        "tests/parity/test_transformer.py",
    ),
    (
        f"{NETWORKS}/transformer.py",
        "-> b c (t pt) (h ph) (w pw)",
        "-> b c (t pt) (w pw) (h ph)",
        "tests/parity/test_transformer.py",
    ),
    (
        f"{NETWORKS}/vae.py",
        "range(1, latent_t, DECODE_LATENTS)",
        "range(0, latent_t, DECODE_LATENTS)",
        "tests/parity/test_vae.py",
    ),
    (f"{NETWORKS}/vae.py", "length - ENCODE_FRAMES * i", "length - ENCODE_FRAMES * i + 1", "tests/parity/test_vae.py"),
    (f"{NETWORKS}/vae.py", "else x[:, :, -2:].clone()", "else x[:, :, -1:].clone()", "tests/parity/test_vae.py"),
    (
        f"{NETWORKS}/tiny_decoder.py",
        "[before, frames[:, :-1]]",
        "[frames[:, 1:], before]",
        "tests/unit/networks/test_tiny_decoder.py",
    ),
    (
        f"{NETWORKS}/tiny_decoder.py",
        "pixels[:, :, DROPPED:]",
        "pixels[:, :, :-DROPPED]",
        "tests/unit/networks/test_tiny_decoder.py",
    ),
    (f"{SAMPLING}/preview.py", "self.spent + seconds <=", "self.spent <=", "tests/unit/sampling/test_preview.py"),
    (f"{SAMPLING}/preview.py", "4 if frames == latent_t else 1", "1", "tests/unit/sampling/test_preview.py"),
    (f"{NETWORKS}/tiling.py", "at_start else ramp", "at_start else ramp.flip(0)", "tests/unit/networks"),
    (
        f"{NETWORKS}/memory_estimate.py",
        "(6 * element + 4 * packs_inputs)",
        "(3 * element + 4 * packs_inputs)",
        "tests/unit/networks",
    ),
    (f"{NETWORKS}/config.py", "else 1.15258426", "else 0.7", "tests/unit/files tests/unit/networks tests/parity"),
    (
        f"{SAMPLING}/schedule.py",
        "(self.snr_shift + (1 - self.snr_shift) * alphas)",
        "(1 + (1 - self.snr_shift) * alphas)",
        "tests/parity/test_schedule.py",
    ),
    (
        f"{SAMPLING}/schedule.py",
        "return [int(t) - 1 for t in",
        "return [int(t) - 2 for t in",
        "tests/parity/test_schedule.py",
    ),
    (
        f"{SAMPLING}/schedule.py",
        "b = math.sqrt(alpha_prev) - math.sqrt(alpha) * a",
        "b = math.sqrt(alpha_prev) + math.sqrt(alpha) * a",
        "tests/parity/test_schedule.py tests/parity/test_runs.py",
    ),
    (
        f"{SAMPLING}/schedule.py",
        "if t >= stride else final_alpha",
        "if t > stride else final_alpha",
        "tests/parity tests/unit/sampling",
    ),
    (
        f"{SAMPLING}/inpaint.py",
        "known = (1 - mask) * scale_factor",
        "known = (1 - mask)",
        "tests/parity/test_runs.py tests/parity/test_geometry.py",
    ),
    (
        f"{SAMPLING}/inpaint.py",
        "masked_fill_(video == BLACK, 0)",
        "masked_fill_(video != BLACK, 0)",
        "tests/parity tests/unit/sampling",
    ),
    (
        f"{SAMPLING}/masks.py",
        "first = resized(mask[:, :, :1], 1)",
        "first = resized(mask[:, :, :2], 1)",
        "tests/parity/test_geometry.py",
    ),
    (
        f"{SAMPLING}/masks.py",
        "slice(length - len(frames), length)",
        "slice(length - len(frames) - 1, length - 1)",
        "tests/parity/test_geometry.py tests/unit/sampling",
    ),
    (
        f"{SAMPLING}/masks.py",
        "mask = mask if soft else (mask >= THRESHOLD).float()",
        "mask = mask if soft else (mask > THRESHOLD).float()",
        "tests/unit/sampling",
    ),
    (
        f"{SAMPLING}/positions.py",
        "t[:, None, None], x[None, None], y[None, :, None]",
        "t[:, None, None], y[None, :, None], x[None, None]",
        "tests/parity/test_geometry.py",
    ),
    (
        f"{SAMPLING}/positions.py",
        "y * ((bottom - top) / grid_h)",
        "y * ((bottom - top) / (grid_h - 1))",
        "tests/parity/test_geometry.py",
    ),
    (
        f"{SAMPLING}/geometry.py",
        "return (latent_t - 1) * TEMPORAL_COMPRESSION + 1",
        "return (latent_t - 1) * TEMPORAL_COMPRESSION",
        "tests/unit/sampling",
    ),
    (
        f"{SAMPLING}/composite.py",
        "torch.lerp(source[part], result[part], share)",
        "torch.lerp(result[part], source[part], share)",
        "tests/unit/sampling",
    ),
    (
        "model_loading/files/t5.py",
        "tokens = [*tokens[: length - 1], end]",
        "tokens = tokens[:length]",
        "tests/parity/test_text.py tests/unit/files",
    ),
    (f"{OLD_WORKFLOWS}/facts.py", 'RUN = "seed:i+ steps:i cfg:f"', 'RUN = "steps:i seed:i+ cfg:f"', OLD_TESTS),
    (f"{OLD_WORKFLOWS}/videox_fun.py", "run = int(given * strength)", "run = given", OLD_TESTS),
    (f"{OLD_WORKFLOWS}/wrapper.py", "chain.insert(0, node)", "chain.append(node)", OLD_TESTS),
    (f"{OLD_WORKFLOWS}/conversion.py", "] = new.out(after)", "] = new.out(before)", OLD_TESTS),
    (
        f"{SAMPLING}/rounds.py",
        "[overlap] * more + [overlap + surplus]",
        "[overlap + surplus] + [overlap] * more",
        ROUNDS_TESTS,
    ),
    (f"{SAMPLING}/rounds.py", "rounds[-1][surplus:]", "rounds[-1]", ROUNDS_TESTS),
    (
        f"{SAMPLING}/anchor.py",
        "torch.maximum(variance, first_variance)",
        "torch.minimum(variance, first_variance)",
        ROUNDS_TESTS,
    ),
    (
        f"{SAMPLING}/anchor.py",
        "stays = still & (",
        "stays = still | (",
        ROUNDS_TESTS,
    ),
    (f"{SAMPLING}/anchor.py", "first, on_progress)), limit)", "first, on_progress)), 9)", ROUNDS_TESTS),
    (f"{SAMPLING}/anchor.py", ".clamp(-room, room)", "", ROUNDS_TESTS),
    (f"{SAMPLING}/anchor.py", "theirs / len(first)", "theirs / len(video)", ROUNDS_TESTS),
    (
        f"{SAMPLING}/anchor.py",
        "xy**2 + y * (wanted - x)",
        "xy**2 - y * (wanted - x)",
        ROUNDS_TESTS,
    ),
    (f"{SAMPLING}/anchor.py", "torch.stack([x @ x, x @ y", "torch.stack([x @ x, y @ y", ROUNDS_TESTS),
    (f"{SAMPLING}/follow.py", "[0] * returns", "[0]", "tests/unit/sampling/test_follow.py"),
    (f"{SAMPLING}/follow.py", "read(forth, here + back)", "forth", "tests/unit/sampling/test_follow.py"),
    (
        f"{SAMPLING}/follow.py",
        "backward + read(back, here + backward)",
        "backward + back",
        "tests/unit/sampling/test_follow.py",
    ),
    (
        f"{SAMPLING}/optical_flow.py",
        'padding_mode="border"',
        'padding_mode="zeros"',
        "tests/unit/sampling/test_follow.py",
    ),
    (f"{SAMPLING}/optical_flow.py", "        flow = median(flow)\n", "", "tests/unit/sampling/test_follow.py"),
    (
        "training/evaluation/drift.py",
        "np.arange(len(values)) / FRAMES_PER_SECOND / 60",
        "np.arange(len(values)) / FRAMES_PER_SECOND",
        "tests/unit/training/test_drift.py",
    ),
    (
        "training/nano/make.py",
        "start = max(now - began - (done - before) * taken, 0)",
        "start = 0",
        "tests/unit/training/test_timed.py",
    ),
    # inside ComfyUI
    (
        "model_loading/comfyui/samplers.py",
        "torch.sub(x, denoised, alpha=root)",
        "torch.sub(denoised, x, alpha=root)",
        "tests/host/test_parity.py",
    ),
    (
        "model_loading/comfyui/triton_kernels.py",
        "x *= 1 + tl.load(shift_ptr + WIDTH,",
        "x *= tl.load(shift_ptr + WIDTH,",
        "tests/host/test_kernels.py",
    ),
    (
        "model_loading/comfyui/model.py",
        'comfy.conds.CONDRegular(text.cond.to(kwargs["device"]))',
        "text",
        "tests/host/test_pretended_gpu.py",
    ),
    (
        "model_loading/comfyui/model.py",
        ".insert(1, torch.float16)",
        ".insert(0, torch.float16)",
        "tests/host/test_kernels.py",
    ),
    (
        "model_loading/comfyui/clips.py",
        "LOST:\n            raise",
        "1e9:\n            raise",
        "tests/host/test_clips.py",
    ),
    ("model_loading/comfyui/clips.py", "LOST:  # or", "1e9:  # or", "tests/host/test_clips.py"),
    ("nodes/long_video.py", "seed=(seed + i) %", "seed=seed %", "tests/host/test_long_video.py"),
    ("nodes/long_video.py", "**(end if is_last else {})", "**end", "tests/host/test_long_video.py"),
    ("nodes/long_video.py", "lazy=True, ", "", "tests/host/test_long_video.py"),
    (
        "training/planning/plan.py",
        "return self.phase.steps * self.phase.batches.batch_size * flops",
        "return self.phase.steps * flops",
        "tests/unit/training/test_training_plan.py",
    ),
    ("training/evaluation/measure.py", "((points, goal), (goal, points))", "((points, goal),)", EVALUATION),
    ("training/evaluation/measure.py", "(change - true_change)[still]", "change[still]", EVALUATION),
    ("training/evaluation/rows.py", "low, high = margin - 1e-9, 1 - margin + 1e-9", "low, high = 0, 1", EVALUATION),
    ("training/evaluation/rows.py", "start=subject.end, end=subject.start)", "start=subject.start)", EVALUATION),
    (
        "training/loop/monitor.py",
        "times = 1 - times",
        "times = times + 0",
        "tests/unit/training/test_training_monitor.py",
    ),
    (
        "nodes/sampling.py",
        "if len(videos[0]) in (1, latent_t):",
        "if len(videos[0]) == latent_t:",
        "tests/host/test_sampling.py",
    ),
]


def noticed(root: Path, name: str, before: str, after: str, tests: str) -> bool:
    """Whether a test fails in a copy of the repository where ``after`` stands in place of ``before``."""
    file = root / name
    source = file.read_text(encoding="utf-8")
    if source.count(before) != 1:
        raise ValueError(f"{name} has {before!r} {source.count(before)} times, expected once")
    file.write_text(source.replace(before, after), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", *tests.split()]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True)
    file.write_text(source, encoding="utf-8")
    if answer.returncode not in (0, 1):
        raise RuntimeError(answer.stdout + answer.stderr)
    return answer.returncode == 1


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", nargs="*", type=int, help="of the breakages; default: all")
    numbers = parser.parse_args().numbers or range(1, len(MUTATIONS) + 1)
    missed = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "copy"
        files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for name in files.splitlines():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
        for number in numbers:
            found = noticed(root, *MUTATIONS[number - 1])
            name, before, after, _ = MUTATIONS[number - 1]
            log.info("%d %s: %s: %s -> %s", number, "noticed" if found else "MISSED", name, before, after)
            missed += [] if found else [number]
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()

"""The pack without ComfyUI, as ``make demo`` runs it."""

import subprocess
import sys

import pack
import pytest
import torch
from cogvideox_fun.model_loading.files.checkpoint import CheckpointError
from cogvideox_fun.model_loading.standalone import Pipeline
from cogvideox_fun.sampling.masks import build_start_end
from cogvideox_fun.tools import media


@pytest.fixture(scope="module")
def pipeline(tiny_model):
    return Pipeline.from_folder(tiny_model)


def run(pipeline, seed: int = 0, length: int = 5, prompt: str = "a cat", images: bool = True, **options):
    start, end = media.photographs()
    video, mask = build_start_end(64, 48, length, start, end if length > 1 else None)
    extra = pipeline.condition(video, mask) if images else None
    texts = pipeline.text_encoder(prompt), pipeline.text_encoder("")
    return pipeline.sample(pipeline.noise(64, 48, length, seed), *texts, extra, **{"steps": 3, **options})


def test_the_same_seed_gives_the_same_video_in_two_processes(tmp_path):
    pictures = []
    for name in ("first", "second"):
        size = ["--steps", "2", "--length", "5", "--width", "64", "--height", "48", "--output", str(tmp_path / name)]
        command = [sys.executable, str(pack.ROOT / "tools" / "demo.py"), "--without-comfyui", *size]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "nano model" in result.stdout
        pictures.append((tmp_path / name / "demo.png").read_bytes())
    assert pictures[0] == pictures[1]
    assert media.read_video(tmp_path / "first" / "demo.mp4").shape == (5, 48, 64, 3)


@pytest.mark.parametrize("length", [1, 5])
def test_a_video_is_decoded(pipeline, length):
    video = pipeline.decode(run(pipeline, length=length))
    assert video.shape == (length, 48, 64, 3) and video.min() >= 0 and video.max() <= 1


def test_seeds_images_and_prompts_matter(pipeline):
    base = run(pipeline)
    for options in ({"seed": 1}, {"images": False}, {"prompt": "a dog"}):
        assert not torch.allclose(run(pipeline, **options), base), options


def test_cfg_1_calls_the_transformer_once_per_step(pipeline):
    batches = []
    hook = pipeline.transformer.register_forward_pre_hook(lambda _module, args: batches.append(len(args[0])))
    run(pipeline, cfg=1.0)
    hook.remove()
    assert batches == [1, 1, 1]


def test_known_frames_come_through_the_conditioning(pipeline):
    start, _ = media.photographs()
    extra = pipeline.condition(*build_start_end(64, 48, 5, start))
    scale = pipeline.checkpoint.scale_factor
    assert extra.shape == (1, 17, 2, 6, 8)
    assert (extra[:, 0, 0] == scale).all() and not extra[:, 0, 1].any()
    assert pipeline.condition(*build_start_end(64, 48, 5)) is None


def test_a_folder_that_lacks_a_part(tiny_model, tmp_path):
    (tmp_path / "transformer").symlink_to(tiny_model / "transformer")
    with pytest.raises(CheckpointError, match="has no vae"):
        Pipeline.from_folder(tmp_path)

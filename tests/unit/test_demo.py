"""The pack without a host, as ``make demo`` runs it."""

import hashlib
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


def run(pipeline, seed: int, length: int = 5, **options) -> torch.Tensor:
    start, end = media.photographs()
    video, mask = build_start_end(64, 48, length, start, end if length > 1 else None)
    extra = pipeline.condition(video, mask)
    texts = pipeline.text_encoder("a cat"), pipeline.text_encoder("")
    noise = pipeline.noise(64, 48, length, seed)
    return pipeline.sample(noise, *texts, extra, **{"steps": 3, **options})


def test_the_same_seed_gives_the_same_video(pipeline):
    torch.manual_seed(1)
    first = pipeline.decode(run(pipeline, seed=5))
    torch.manual_seed(2)
    assert torch.equal(pipeline.decode(run(pipeline, seed=5)), first)
    assert not torch.equal(pipeline.decode(run(pipeline, seed=6)), first)
    assert first.shape == (5, 48, 64, 3) and first.min() >= 0 and first.max() <= 1


def test_the_same_seed_gives_the_same_video_in_two_processes(tmp_path):
    digests = set()
    for i in range(2):
        arguments = ["--without-comfyui", "--steps", "2", "--length", "5", "--width", "64", "--height", "48"]
        command = [
            sys.executable,
            str(pack.ROOT / "tools" / "demo.py"),
            *arguments,
            "--output",
            str(tmp_path / str(i)),
        ]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert "nano model" in result.stdout
        digests.add(hashlib.sha256((tmp_path / str(i) / "demo.png").read_bytes()).hexdigest())
    assert len(digests) == 1
    assert media.read_video(tmp_path / "0" / "demo.mp4").shape == (5, 48, 64, 3)


def test_one_frame_makes_an_image(pipeline):
    assert pipeline.decode(run(pipeline, seed=0, length=1)).shape == (1, 48, 64, 3)


def test_images_and_prompts_matter(pipeline):
    base = run(pipeline, seed=0)
    noise, texts = pipeline.noise(64, 48, 5, 0), [pipeline.text_encoder(p) for p in ("a cat", "", "a dog")]
    assert not torch.allclose(pipeline.sample(noise, texts[0], texts[1], None, steps=3), base)
    without = pipeline.sample(noise, texts[0], texts[1], None, steps=3)
    assert not torch.allclose(pipeline.sample(noise, texts[2], texts[1], None, steps=3), without)


def test_cfg_1_calls_the_transformer_once_per_step(pipeline, monkeypatch):
    batches = []
    forward = type(pipeline.transformer).forward

    def counted(self, x, *args, **options):
        batches.append(len(x))
        return forward(self, x, *args, **options)

    monkeypatch.setattr(type(pipeline.transformer), "forward", counted)
    run(pipeline, seed=0, cfg=1.0)
    assert batches == [1, 1, 1]


def test_known_frames_come_through_the_conditioning(pipeline):
    start, _ = media.photographs()
    video, mask = build_start_end(64, 48, 5, start)
    extra = pipeline.condition(video, mask)
    scale = pipeline.checkpoint.scale_factor
    assert extra.shape == (1, 17, 2, 6, 8)
    assert (extra[:, 0, 0] == scale).all() and not extra[:, 0, 1].any()
    assert pipeline.condition(*build_start_end(64, 48, 5)) is None


def test_a_folder_that_lacks_a_part(tiny_model, tmp_path):
    (tmp_path / "transformer").symlink_to(tiny_model / "transformer")
    with pytest.raises(CheckpointError, match="has no vae"):
        Pipeline.from_folder(tmp_path)

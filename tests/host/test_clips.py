"""Clip to Frames in ComfyUI: files of any rate and shape, and clips that other nodes made."""

from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from cogvideox_fun.tools import media
from graph import Failed

MILLISECOND = Fraction(1, 1000)
SIZE, STEP = 64, 3  # pixels; how much brighter each frame is than the one before
RATE, ONSET = 24000, 1.5  # of the sound; the second at which a tone begins
QUARTER = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]  # a track's matrix for a turn by 90 degrees


def write_clip(path, times: list[float], sound: float = 0.0, held: int = 42, **options: str) -> None:
    """A clip of grey frames that tell their number by their brightness, with a tone in the last part of its sound.

    It has B-frames, so packets come in another order than frames.

    Args:
        times: when the frames begin, in seconds.
        sound: the seconds that it lasts.
        held: how long the last packet lasts, in milliseconds; the default is a 24th of a second.
        options: of the file.
    """
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "1", "x264-params": "b-adapt=0"})
        stream.width = stream.height = SIZE
        stream.pix_fmt, stream.codec_context.time_base = "yuv444p", MILLISECOND
        audio = container.add_stream("aac", rate=RATE, layout="mono") if sound else None
        frames = []
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((SIZE, SIZE, 3), 16 + STEP * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), MILLISECOND
            frames.append(frame)
        packets = [packet for frame in (*frames, None) for packet in stream.encode(frame)]
        for packet in packets:
            packet.duration = held if packet is packets[-1] else 42
            container.mux(packet)
        if audio:
            at = np.arange(round(sound * RATE)) / RATE
            wave = (0.5 * np.sin(2 * np.pi * 440 * at) * (at >= ONSET)).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux(audio.encode(frame))
            container.mux(audio.encode())


def write_coded(path, codec: str, count: int, sound: tuple[str, float], loud: float = 0.0, **options: str) -> None:
    """A clip as cameras and recorders make it: 20 frames a second of grey as in ``write_clip``, and a steady tone.

    Args:
        sound: its codec, and the seconds that it lasts.
        loud: the amplitude of the tone; 0 = silence.
        options: of the encoder of the pictures.
    """
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=20, options=options)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        audio = container.add_stream(sound[0], rate=48000, layout="mono")
        packets = []
        for i in range(count):
            grey = np.full((SIZE, SIZE, 3), 16 + STEP * i, np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24"))
        tone = loud * np.sin(np.arange(round(sound[1] * 48000), dtype=np.float32) / 20)[None]
        frame = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        for part in av.AudioResampler(format=audio.format).resample(frame):
            packets += audio.encode(part)
        for packet in sorted(packets + stream.encode() + audio.encode(), key=lambda one: one.dts * one.time_base):
            container.mux(packet)


def numbers(frames: torch.Tensor) -> list[int]:
    return [round((255 * float(frame.mean()) - 16) / STEP) for frame in frames]


def frames_of(lab, name: str, **options):
    graph = lab.graph()
    return graph.get(graph.fun("ClipFrames", clip=graph.node("LoadVideo", file=name), **DEFAULTS | options))[0]


def sound_of(lab, name: str, **options) -> np.ndarray:
    """The sound of the part that is taken, through Create Video and Save Video."""
    graph = lab.graph()
    taken = graph.fun("ClipFrames", clip=graph.node("LoadVideo", file=name), **DEFAULTS | options)
    video = graph.node("CreateVideo", images=taken, fps=taken[1], audio=taken[2])
    graph.node("SaveVideo", video=video, filename_prefix="sound", format="auto", codec="auto")
    lab.run(graph.workflow)
    path = max((lab.base / "output").glob("sound*"), key=lambda one: one.stat().st_mtime)
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)[0]


DEFAULTS = {"width": SIZE, "height": SIZE, "length": 49, "start_seconds": 0.0, "frame_rate": 8.0, "fit": "crop"}


@pytest.fixture(scope="module")
def clips(lab):
    """Files in ComfyUI's input folder: 24 and 5 frames a second, uneven, and short."""
    folder = lab.base / "input"
    even = [i / 24 for i in range(72)]
    write_clip(folder / "even.mp4", even, sound=3.0)
    write_clip(folder / "silent.mkv", even)
    write_clip(folder / "slow.mp4", [i / 5 for i in range(10)])
    write_clip(folder / "uneven.mp4", [0.0, 0.1, 0.63, 0.64, 1.1])
    write_clip(folder / "short.mp4", even[:2])


@pytest.mark.parametrize("name", ["even.mp4", "silent.mkv"])
def test_frames_by_time(lab, clips, name):
    assert numbers(frames_of(lab, name)) == [3 * i for i in range(21)], "3 seconds, rounded down to 4n + 1"
    assert numbers(frames_of(lab, name, length=9, start_seconds=1.0)) == [24 + 3 * i for i in range(9)]
    assert numbers(frames_of(lab, name, length=5, frame_rate=24.0, start_seconds=2.0)) == list(range(48, 53))


def test_slow_and_uneven_clips(lab, clips):
    assert numbers(frames_of(lab, "slow.mp4", length=9)) == [0, 0, 1, 1, 2, 3, 3, 4, 5]
    assert numbers(frames_of(lab, "uneven.mp4", length=9, start_seconds=0.0)) == [0, 1, 1, 1, 1, 1, 3, 3, 3]


def test_a_clip_that_is_shorter_than_a_chunk(lab, clips):
    assert numbers(frames_of(lab, "short.mp4")) == [0]
    with pytest.raises(Failed, match=r"start_seconds is 4, but the clip has 3\.00 seconds"):
        frames_of(lab, "even.mp4", start_seconds=4.0)


GROUPS = {"x264-params": "keyint=40:min-keyint=40:scenecut=0:bframes=2:b-adapt=0:qp=0"}  # a key frame every 2 seconds


@pytest.mark.parametrize("start", [0.0, 1.03, 2.53, 3.93])
def test_a_seek_that_ends_too_late(lab, clips, start):
    """In MPEG-TS it ends between key frames, so the first frame that can be decoded is after the start, or none is."""
    write_coded(lab.base / "input" / "groups.ts", "libx264", 80, ("aac", 4.0), **GROUPS)
    expected = int(20 * start)  # the sound begins up to 0.02 seconds before the pictures
    assert numbers(frames_of(lab, "groups.ts", length=1, start_seconds=start)) == [expected]


def test_the_clip_ends_with_its_pictures(lab, clips):
    write_coded(lab.base / "input" / "long_sound.mkv", "libx264", 80, ("aac", 9.0), **GROUPS)
    taken = frames_of(lab, "long_sound.mkv", length=9, start_seconds=3.7, frame_rate=20.0)
    assert numbers(taken) == [74, 75, 76, 77, 78], "6 are left, rounded down to 4n + 1"
    with pytest.raises(Failed, match=r"start_seconds is 6, but the clip has 4\.00 seconds"):
        frames_of(lab, "long_sound.mkv", start_seconds=6.0)


@pytest.mark.parametrize("start", [0.0, 1.03, 2.53, 3.83])
def test_an_mpeg_program_stream(lab, clips, start):
    """FFmpeg's estimate of the length is too short, and after a seek times are wrong and no sound can be decoded."""
    write_coded(lab.base / "input" / "old.mpg", "mpeg2video", 80, ("mp2", 4.0), g="12", bf="2", qmin="1", qmax="1")
    expected = int(20 * start)  # the sound begins up to 0.02 seconds before the pictures
    assert numbers(frames_of(lab, "old.mpg", length=1, start_seconds=start)) == [expected]


@pytest.mark.parametrize("start", [0.0, 1.03])
def test_a_file_that_cant_seek_to_its_beginning(lab, clips, start):
    """FLV with the codec of Flash and with sound, which begins up to 0.02 seconds before the pictures."""
    write_coded(lab.base / "input" / "flash.flv", "flv1", 60, ("aac", 3.0), loud=0.5, qscale="2")
    assert numbers(frames_of(lab, "flash.flv", length=1, start_seconds=start)) == [int(20 * start)]
    loud = np.abs(sound_of(lab, "flash.flv", length=9, start_seconds=start)) > 0.1
    assert loud.mean() > 0.7 and np.argmax(loud) < 48000 * 0.1, "no silence in place of what a seek lost"


def test_a_clip_of_a_phone_stands_upright(lab, clips):
    """The left half of a picture is on top, or at the bottom, of one that was turned by a quarter."""
    video = torch.zeros(9, SIZE, SIZE, 3)
    video[:, :, : SIZE // 2] = 1
    folder = lab.base / "input"
    media.write_mp4(folder / "halves.mp4", video)
    data = bytearray((folder / "halves.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in QUARTER)
    (folder / "halves_turned.mp4").write_bytes(data)
    frame = frames_of(lab, "halves_turned.mp4", length=1)[0]
    assert frame[: SIZE // 2].mean() > 0.95 and frame[SIZE // 2 :].mean() < 0.05, "a clockwise quarter"


def test_a_clip_keeps_its_speed_and_its_sound(lab, clips):
    """Through Create Video and Save Video: as long as the part that was used, with the sound of that part."""
    graph = lab.graph()
    source = graph.node("LoadVideo", file="even.mp4")
    taken = graph.fun("ClipFrames", clip=source, **DEFAULTS | {"length": 9, "start_seconds": 1.0})
    video = graph.node("CreateVideo", images=taken, fps=taken[1], audio=taken[2])
    graph.node("SaveVideo", video=video, filename_prefix="clip", format="auto", codec="auto")
    lab.run(graph.workflow)
    path = max((lab.base / "output").glob("clip*"), key=lambda one: one.stat().st_mtime)
    with av.open(str(path)) as container:
        (pictures,), (sound,) = container.streams.video, container.streams.audio
        assert float(pictures.duration * pictures.time_base) == pytest.approx(9 / 8, abs=1e-3)
        wave = np.concatenate([frame.to_ndarray() for frame in container.decode(sound)], axis=1)[0]
    assert len(wave) / RATE == pytest.approx(9 / 8, abs=0.1), "AAC comes in blocks"
    loud = np.abs(wave) > 0.1
    assert np.argmax(loud) / RATE == pytest.approx(ONSET - 1.0, abs=0.06)


def test_a_gap_in_the_sound_stays(lab, clips):
    """Of lost packets, or at the beginning of a fragmented MP4. Without it, what follows would come too early."""
    with av.open(str(lab.base / "input" / "gap.mkv"), "w") as container:
        pictures, sound = container.add_stream("libx264", rate=8), container.add_stream("pcm_s16le", rate=RATE)
        pictures.width, pictures.height, pictures.pix_fmt, sound.layout = SIZE, SIZE, "yuv420p", "mono"
        packets = []
        for _ in range(32):
            packets += pictures.encode(av.VideoFrame.from_ndarray(np.zeros((SIZE, SIZE, 3), np.uint8), format="rgb24"))
        for i in range(40):  # a tenth of a second each; a tone from 2.5 seconds on
            tone = 16000 * np.sin(np.arange(RATE // 10) / 10) * (i >= 25)
            frame = av.AudioFrame.from_ndarray(tone.astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = RATE, i * RATE // 10
            packets += sound.encode(frame) if not 10 <= i < 20 else []
        for packet in sorted(packets + pictures.encode(), key=lambda one: one.dts * one.time_base):
            container.mux(packet)
    wave = sound_of(lab, "gap.mkv", length=25)
    assert np.argmax(np.abs(wave) > 0.1) / RATE == pytest.approx(2.5, abs=0.06), "AAC comes in blocks"


def test_a_damaged_part_is_told(lab, clips):
    """What comes before it can be taken."""
    path = lab.base / "input" / "damaged.mp4"
    write_clip(path, [i / 24 for i in range(72)])
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for at, size in places[60:64]:
        data[at : at + size] = b"\xff" * size
    path.write_bytes(data)
    assert numbers(frames_of(lab, path.name, length=5)) == [3 * i for i in range(5)]
    with pytest.raises(Failed, match="this part of the clip is damaged .*take another part, or convert the file"):
        frames_of(lab, path.name)


@pytest.mark.parametrize("start", [0.0, 2.0])
def test_a_clip_that_was_cut_off_is_told(lab, clips, start):
    """As by a download that was interrupted: its header comes first and tells of all 3 seconds."""
    path = lab.base / "input" / "cut.mp4"
    write_clip(path, [i / 24 for i in range(72)], movflags="faststart")
    with av.open(str(path)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    path.write_bytes(path.read_bytes()[: ends[24]])
    assert numbers(frames_of(lab, path.name, length=5)) == [3 * i for i in range(5)], "what is there can be taken"
    with pytest.raises(Failed, match="has 3.00 seconds, but its pictures end at .*: get the file again"):
        frames_of(lab, path.name, start_seconds=start)


def test_a_last_frame_that_is_held_is_no_damage(lab, clips):
    """With B-frames the last packet, which tells how long it is held, is not that of the last frame."""
    write_clip(lab.base / "input" / "held.mp4", [i / 24 for i in range(24)], held=3000)
    found = numbers(frames_of(lab, "held.mp4", length=25))
    assert found == [*(3 * i for i in range(8)), *[23] * 17]


def test_a_linked_rate_of_0(lab, clips):
    graph = lab.graph()
    options = DEFAULTS | {"frame_rate": graph.node("ProbeNumber", text="0")}
    with pytest.raises(Failed, match="frame_rate is 0, expected more than 0"):
        graph.get(graph.fun("ClipFrames", clip=graph.node("LoadVideo", file="even.mp4"), **options))


def test_a_clip_that_other_nodes_made(lab, clips):
    graph = lab.graph()
    images = torch.stack([torch.full((SIZE, SIZE, 3), (16 + STEP * i) / 255) for i in range(48)])
    made = graph.node("CreateVideo", images=graph.tensor("Image", images), fps=24.0)
    taken = graph.fun("ClipFrames", clip=made, **DEFAULTS | {"length": 9, "start_seconds": 0.5})
    assert numbers(graph.get(taken)[0]) == [12 + 3 * i for i in range(9)]


def test_the_length_is_what_the_model_takes(lab, clips):
    graph = lab.graph()
    clip = graph.node("LoadVideo", file="even.mp4")
    taken = graph.fun("ClipFrames", clip=clip, model=graph.loader("tiny-v1.5"), **DEFAULTS | {"length": 17})
    assert len(graph.get(taken)[0]) == 13

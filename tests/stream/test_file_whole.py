"""Tests of complete and truncated recordings: edit lists, padding, long last frames."""

import os
import shutil
import struct
import subprocess
import threading
from fractions import Fraction

import av
import numpy as np
import pytest

from pipeline.errors import CorruptMediaError
from stream.container_info import avi_has_index, is_complete_gif, mp4_is_whole
from stream.sources import build_source
from tests.stream.conftest import grey_of

CODING = {"g": "10", "bf": "2"}


def read(path):
    """Return the frames of a source, and its error."""
    frames = []
    with build_source(str(path)) as source:
        try:
            frames.extend(source.frames(threading.Event()))
        except CorruptMediaError as error:
            return frames, error
    return frames, None


def numbers(frames):
    return [round((float(frame.image.mean()) - grey_of(0)) / 8) for frame in frames]


def trim(path, *, begin, seconds):
    """Show ``seconds`` from ``begin`` on, by the edit list alone, as phones and QuickTime trim."""
    content = bytearray(path.read_bytes())
    at = content.index(b"elst") + 8
    assert struct.unpack_from(">I", content, at)[0] == 1, "one edit"
    movie = struct.unpack_from(">I", content, content.index(b"mvhd") + 16)[0]
    media = struct.unpack_from(">I", content, content.index(b"mdhd") + 16)[0]
    _, start = struct.unpack_from(">Ii", content, at + 4)
    struct.pack_into(">Ii", content, at + 4, round(seconds * movie), start + round(begin * media))
    path.write_bytes(content)


@pytest.mark.parametrize(("begin", "shown"), [(0.0, 20), (0.7, 10), (1.0, 10), (1.3, 7)])
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mov"])
def test_file_shows_what_an_edit_list_shows_and_is_whole(make_clip, name, begin, shown):
    clip = make_clip(name, frame_count=24, codec="libx264", coding=CODING)
    trim(clip, begin=begin, seconds=shown / 10)
    frames, error = read(clip)
    assert error is None
    first = round(begin * 10)
    assert numbers(frames) == list(range(first, first + shown))
    with build_source(str(clip)) as source:
        assert source.frames_total == shown


def test_file_with_an_edit_list_that_is_cut_off_is_reported_as_cut_off(make_clip):
    clip = make_clip(frame_count=60, codec="libx264", coding=CODING, options={"movflags": "faststart"})
    trim(clip, begin=1.0, seconds=4.0)
    with av.open(str(clip)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    clip.write_bytes(clip.read_bytes()[: ends[30]])
    frames, error = read(clip)
    assert 5 < len(frames) < 40
    assert "cut off" in str(error)


def test_fragmented_file_cut_inside_its_last_part_is_reported_as_cut_off(make_clip):
    clip = make_clip(frame_count=60, coding={"g": "10"}, options={"movflags": "frag_keyframe+empty_moov"})
    assert read(clip)[1] is None
    content = clip.read_bytes()
    clip.write_bytes(content[: content.rindex(b"moof") - 4 + 12])  # in the head of the last part: no packet is torn
    frames, error = read(clip)
    assert 25 < len(frames) < 60
    assert "cut off" in str(error)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi", "clip.mov"])
@pytest.mark.parametrize("padding", [bytes(70_000), bytes(range(7, 255)) * 300])
def test_padding_behind_a_recording_is_no_damage(make_clip, name, padding):
    clip = make_clip(name, frame_count=20)
    clip.write_bytes(clip.read_bytes() + padding)
    frames, error = read(clip)
    assert error is None
    assert numbers(frames) == list(range(20))


@pytest.mark.parametrize("name", ["slow.mp4", "slow.mkv", "slow.avi"])
def test_last_picture_that_is_shown_for_long_is_no_damage(tmp_path, name):
    path = tmp_path / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.framerate = stream.codec_context.framerate / 10
        stream.codec_context.time_base = 1 / stream.codec_context.framerate
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8))))
        container.mux(stream.encode())
    frames, error = read(path)
    assert error is None
    assert [frame.pts_seconds for frame in frames] == pytest.approx([0.0, 10.0, 20.0], abs=0.01)


def test_video_that_begins_after_the_sound_is_whole(tmp_path):
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=10)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), layout="mono")
        silence.sample_rate = 8000
        container.mux(sound.encode(silence))
        for number in range(30):
            image = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 90, np.uint8))
            image.pts, image.time_base = 30 + number, video.codec_context.time_base
            container.mux(video.encode(image))
        container.mux(video.encode())
    frames, error = read(path)
    assert error is None
    assert len(frames) == 30


def test_avi_with_its_index_is_whole_whatever_its_header_reserved(make_clip):
    clip = make_clip("clip.avi", frame_count=20)
    content = bytearray(clip.read_bytes())
    struct.pack_into("<I", content, content.index(b"avih") + 8 + 16, 200)
    struct.pack_into("<I", content, content.index(b"strh") + 8 + 32, 200)
    clip.write_bytes(content)
    frames, error = read(clip)
    assert error is None
    assert numbers(frames) == list(range(20))
    assert avi_has_index(str(clip))
    clip.write_bytes(content[: content.rindex(b"idx1") + 100])  # cut inside the index, behind the last picture
    assert not avi_has_index(str(clip))
    assert "its header states" in str(read(clip)[1])


@pytest.mark.parametrize(
    "content", [b"", b"RIFF", b"RIFF\0\0\0\0AVI ", b"no AVI at all", b"RIFF\xff\xff\xff\xffAVI LIST\0\0\0\0"]
)
def test_file_without_an_index_has_none(tmp_path, content):
    path = tmp_path / "a.avi"
    path.write_bytes(content)
    assert not avi_has_index(str(path))


def test_gif_is_whole_up_to_its_end_mark_and_not_before(shared_data, tmp_path):
    content = (shared_data / "videos" / "conveyor_bolt.gif").read_bytes()
    gif = tmp_path / "a.gif"
    for whole, changed in (
        (True, content),
        (True, content + bytes(3000)),
        (False, content[:-1]),
        (False, content[: len(content) // 2]),
        (False, b"GIF89a"),
    ):
        gif.write_bytes(changed)
        assert is_complete_gif(str(gif)) is whole


def test_mp4_box_that_reaches_past_the_end_is_not_whole_and_noise_is_no_box(tmp_path):
    path = tmp_path / "a.mp4"
    box = struct.pack(">I4s", 16, b"mdat") + bytes(8)
    large = struct.pack(">I4sQ", 1, b"mdat", 24) + bytes(8)
    for whole, content in (
        (True, box + large),
        (True, box + b"\xff\xff\xff\xffnoise" + bytes(9)),
        (True, box + bytes(100)),
        (True, b""),
        (False, box + large[:-1]),
        (False, box + box[:-3]),
    ):
        path.write_bytes(content)
        assert mp4_is_whole(str(path)) is whole


def test_interlaced_pictures_too_small_to_filter_come_as_they_are(tmp_path):
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs an encoder of interlaced video: apt-get install ffmpeg")
    path = tmp_path / "tiny.mpg"
    source = ["-f", "lavfi", "-i", "testsrc2=size=6x6:rate=10", "-t", "1", "-vf", "setfield=tff"]
    coding = ["-c:v", "mpeg2video", "-flags", "+ildct+ilme"]
    subprocess.run(["ffmpeg", "-v", "error", *source, *coding, str(path)], check=True)
    frames, error = read(path)
    assert error is None
    assert [frame.image.shape for frame in frames] == [(6, 6, 3)] * 10


def save_anamorphic(path, codec, aspect):
    """One picture of 64x48 pixels of a shape, its left half light."""
    image = np.full((48, 64, 3), 20, np.uint8)
    image[:, :32] = 220
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "aspect", "size"),
    [
        ("wide.mp4", "libx264", (2, 1), (128, 48)),
        ("wide.mp4", "libx264", (1, 2), (64, 96)),
        ("wide.mov", "mpeg4", (16, 15), (68, 48)),
        ("wide.mkv", "libx264", (2, 1), (128, 48)),
        ("wide.ts", "mpeg2video", (4, 3), (85, 48)),
        ("wide.mpg", "mpeg2video", (4, 3), (85, 48)),
        ("wide.avi", "mpeg4", (12, 11), (70, 48)),
    ],
)
def test_anamorphic_video_comes_in_the_shape_it_is_shown_in(tmp_path, name, codec, aspect, size):
    path = save_anamorphic(tmp_path / name, codec, aspect)
    [frame], _ = read(path)
    assert (frame.width, frame.height) == size
    assert frame.image[:, frame.width // 2 - 4].mean() > 200
    assert frame.image[:, frame.width // 2 + 4].mean() < 40


def test_picture_is_not_scaled_beyond_the_limit_of_its_size(tmp_path):
    path = save_anamorphic(tmp_path / "wide.mp4", "libx264", (2, 1))
    for limit, width in ((64 * 48 * 2, 128), (64 * 48 * 2 - 1, 64)):
        with build_source(str(path), max_pixels=limit) as source:
            assert [frame.width for frame in source.frames(threading.Event())] == [width]


def test_absurd_aspect_is_a_mistake_of_the_header_and_changes_nothing(tmp_path):
    clip = save_anamorphic(tmp_path / "wide.mp4", "libx264", (2, 1))
    content = clip.read_bytes()
    at = content.index(b"pasp") + 4
    for across, down in ((100, 1), (1, 100), (1001, 1000)):
        clip.write_bytes(content[:at] + struct.pack(">II", across, down) + content[at + 8 :])
        [frame], _ = read(clip)
        assert (frame.width, frame.height) == (64, 48)


def test_values_of_fewer_bits_in_a_video_of_sixteen_are_read_as_such(tmp_path, caplog):
    path = tmp_path / "mono12.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "gray16le"
        for top in (1000, 4095, 1000):
            values = np.full((48, 64), top, np.uint16)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(values, format="gray16le")))
        container.mux(stream.encode())
    frames, _ = read(path)
    means = [float(frame.image.mean()) for frame in frames]
    assert means == [250.0, 255.0, 62.0]  # the depth grows with the largest value seen, and stays
    assert "read with 12 bits" in caplog.text


def test_name_that_is_not_utf8_is_read_and_shown_as_text(make_clip):
    clip = make_clip(frame_count=3)
    odd = os.fsdecode(os.fsencode(clip.parent) + b"/caf\xe9.mp4")
    clip.rename(odd)
    frames, error = read(odd)
    assert error is None
    assert [frame.source_name for frame in frames] == [r"caf\xe9.mp4"] * 3

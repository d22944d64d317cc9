"""Tests of joined, padded and damaged MPEG-TS files."""

import threading

import pytest

from pipeline.errors import CorruptMediaError
from stream.mpegts_splices import only_padding_behind
from stream.sources import build_source
from tests.stream.test_file_whole import numbers

CODING = {"g": "10", "bf": "2", "sc_threshold": "0"}
PACKET = 188


def read(path):
    frames = []
    with build_source(str(path)) as source:
        try:
            frames.extend(source.frames(threading.Event()))
        except CorruptMediaError as error:
            return frames, error
    return frames, None


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_recordings_joined_end_to_end_give_the_pictures_of_each(make_clip, tmp_path, codec):
    parts = [make_clip(f"{count}.ts", frame_count=count, codec=codec, coding=CODING) for count in (24, 13, 24)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    frames, error = read(joined)
    assert error is None
    assert numbers(frames) == [number for part in parts for number in numbers(read(part)[0])]
    assert len(frames) == 61
    assert frames[-1].pts_seconds == pytest.approx(6.0, abs=0.5)


@pytest.mark.parametrize("name", ["clip.ts", "clip.m2ts"])
@pytest.mark.parametrize("fill", [b"\0", b"\xff"])
def test_padding_behind_a_transport_stream_is_no_damage(make_clip, name, fill):
    clip = make_clip(name, frame_count=24, codec="libx264", coding=CODING)
    clip.write_bytes(clip.read_bytes() + fill * 100_000)
    frames, error = read(clip)
    assert error is None
    assert numbers(frames) == list(range(24))


def test_noise_behind_a_transport_stream_is_no_padding(make_clip):
    clip = make_clip("clip.ts", frame_count=3, codec="libx264", coding=CODING)
    assert only_padding_behind(str(clip), PACKET * 4)
    clip.write_bytes(clip.read_bytes() + bytes(500) + b"noise" + bytes(500))
    assert not only_padding_behind(str(clip), PACKET * 4)


def video_packets(content):
    """Return the positions of the video's packets in the second half, after the first images."""
    starts = range(0, len(content), PACKET)
    mine = [at for at in starts if (content[at + 1] & 0x1F, content[at + 2]) == (1, 0)]
    return mine[len(mine) // 2 :]


def test_lost_packet_is_detected_at_any_place(make_clip):
    """Also directly after a table, and before a key frame."""
    clip = make_clip("clip.ts", frame_count=24, codec="libx264", coding=CODING)
    content = clip.read_bytes()
    lost = video_packets(content)
    assert len(lost) >= 12
    for at in lost[:-2]:
        clip.write_bytes(content[:at] + content[at + PACKET :])
        frames, error = read(clip)
        assert error is not None, at // PACKET
        assert len(frames) < 24

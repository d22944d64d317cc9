"""Parts of a recording: each frame exactly once, with the index, time and pixels of a read of the whole."""

import shutil
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from stream.file import FileSource
from stream.file_part import InexactPartError, PacketTimes, PartSource, parts_of

OPEN = "keyint=25:bframes=3:b-pyramid=normal:open-gop=1:scenecut=0"


def ffmpeg(*arguments: str | Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("needs the program ffmpeg: apt-get install ffmpeg")
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", *map(str, arguments)], check=True)


def encoded(path: Path, parameters: str, codec: str = "x264", seconds: int = 6) -> Path:
    picture = f"testsrc2=size=64x48:rate=25:duration={seconds}"
    parameters = parameters if codec == "x264" else f"log-level=none:{parameters}"
    options = ("-c:v", f"lib{codec}", "-pix_fmt", "yuv420p", f"-{codec}-params", parameters)
    ffmpeg("-f", "lavfi", "-i", picture, *options, path)
    return path


def frames_of(source: FileSource) -> list[tuple[int, float | None, bytes, str]]:
    with source:
        return [
            (frame.index, frame.pts_seconds, frame.image.tobytes(), frame.source_name)
            for frame in source.frames(threading.Event())
        ]


def divided(path: Path, seconds: float = 2.0):
    return PartSource(str(path), camera="c").divide(seconds, threading.Event())


@pytest.mark.parametrize(
    ("name", "parameters", "codec"),
    [
        ("closed.mp4", "keyint=25:bframes=3", "x264"),
        ("open.mkv", OPEN, "x264"),
        ("open.ts", "keyint=25:bframes=4:open-gop=1", "x265"),
    ],
)
def test_parts_have_the_frames_of_the_whole(tmp_path, name, parameters, codec):
    path = encoded(tmp_path / name, parameters, codec)
    parts = divided(path)
    assert [part.frames for part in parts] == [50, 50, 50]
    apart = [frame for part in parts for frame in frames_of(PartSource(str(path), camera="c", part=part))]
    assert apart == frames_of(FileSource(str(path), camera="c"))


def test_parts_of_a_recording_with_an_edit_list_have_the_frames_of_the_whole(tmp_path):
    ffmpeg("-ss", "1.3", "-i", encoded(tmp_path / "film.mp4", "keyint=25:bframes=3"), "-c", "copy", tmp_path / "e.mp4")
    parts = divided(tmp_path / "e.mp4", 1.0)
    apart = [frame for part in parts for frame in frames_of(PartSource(str(tmp_path / "e.mp4"), camera="c", part=part))]
    assert len(parts) > 2
    assert apart == frames_of(FileSource(str(tmp_path / "e.mp4"), camera="c"))


def test_damaged_recordings_are_not_divided(tmp_path):
    path = encoded(tmp_path / "film.ts", "keyint=25:bframes=2")
    content, middle = path.read_bytes(), path.stat().st_size // 2
    assert divided(path)
    path.write_bytes(content[:middle] + b"\x55" * 400 + content[middle + 400 :])
    assert divided(path) == []


def test_part_whose_frames_are_not_those_of_its_packets_says_so(tmp_path):
    path = encoded(tmp_path / "film.mp4", "keyint=25:bframes=2")
    part = divided(path)[1]
    with pytest.raises(
        InexactPartError, match="part 2 of 3 contains 50 of 51 frames; the recording is read as a whole"
    ):
        frames_of(PartSource(str(path), camera="c", part=replace(part, frames=51)))


def packets(*pts: int, keys: set[int], hidden: set[int] = frozenset()) -> list[PacketTimes]:
    return [PacketTimes(time, order, time in keys, time not in hidden) for order, time in enumerate(pts)]


def test_parts_begin_at_the_previous_key_frame_where_frames_before_theirs_follow_it():
    closed, opened = (
        parts_of(packets(0, 2, 1, 3, 5, 4, keys={0, 3}), 2, 1),
        parts_of(packets(0, 2, 1, 5, 3, 4, keys={0, 5}), 2, 0.5),
    )
    assert [(part.first_index, part.frames, part.key_pts, part.end_pts) for part in closed] == [
        (0, 3, 0, 3), (3, 3, 3, None),
    ]  # fmt: skip
    assert opened == []  # the last part would be shorter than half a part
    opened = parts_of(packets(0, 2, 1, 5, 3, 4, 6, 7, keys={0, 5}), 2, 0.5)
    assert [(part.first_index, part.frames, part.key_pts) for part in opened] == [(0, 5, 0), (5, 3, 0)]


def test_frames_of_an_edit_list_are_left_out_and_not_counted():
    parts = parts_of(packets(-2, -1, 0, 1, 2, 3, 4, 5, keys={-2, 2}, hidden={-2, -1}), 2, 1)
    assert [(part.first_index, part.frames, part.first_pts) for part in parts] == [(0, 2, 0), (2, 4, 0)]


@pytest.mark.parametrize(
    "times",
    [
        packets(0, 1, 1, 2, 3, 4, keys={0, 2}),
        packets(1, 2, 3, 4, 5, 6, keys={3}),
        packets(2, 0, 1, 3, 4, 5, keys={2, 4}),
        packets(0, 1, 2, 3, 4, 5, keys={0}),
        packets(4, 5, 6, 7, 0, 1, 2, 3, keys={4, 0}),
        [],
    ],
    ids=["repeated time", "no key frame first", "beginning missing", "one key frame", "joined", "empty"],
)
def test_recordings_whose_division_is_not_certain_stay_whole(times):
    assert parts_of(times, 2, 1) == []

"""Damaged, cut and hostile bags: what is whole is read, and errors are reported in words."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing, suppress

import lz4.frame
import pytest
import zstandard

pytest.importorskip("rosbags")
pytest.importorskip("mcap_protobuf")
from mcap.records import Chunk
from mcap.writer import CompressionType

from pipeline.errors import CorruptMediaError, SourceError
from stream.bags.container import BagDamageError
from stream.bags.mcap_file import McapBag
from stream.bags.mcap_file import _unpacked as chunk_content
from stream.bags.sqlite_file import SqliteBag
from tests.support.bags import (
    COUNT,
    cameras,
    frames_of,
    jpeg_messages,
    number_of,
    packets,
    video_messages,
    write_foxglove,
    write_ros,
)


def read_until_error(path):
    """Return the numbers of all frames, and the error at the end."""
    [source] = [each for each in cameras(path) if each.camera in {"cam", "front/image_raw"}]
    numbers = []
    with source, pytest.raises(CorruptMediaError) as damaged:
        numbers.extend(number_of(frame.image) for frame in source.frames(threading.Event()))
    assert source.health.state == "failed"
    assert f"{len(numbers)} intact images were read" in str(damaged.value)
    return numbers, str(damaged.value)


def test_cut_mcap_gives_all_complete_chunks_then_the_error(tmp_path):
    path = write_foxglove(tmp_path / "x.mcap", jpeg_messages(COUNT), chunk_size=1000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    numbers, error = read_until_error(path)
    assert numbers == list(range(len(numbers)))
    assert 2 <= len(numbers) < COUNT
    assert "mcap recover" in error
    assert error.count("x.mcap") == 1, "the file is named once"


def test_damaged_chunk_of_mcap_is_left_out_and_the_rest_is_read(tmp_path):
    path = write_foxglove(tmp_path / "x.mcap", jpeg_messages(COUNT), chunk_size=100, compression=CompressionType.NONE)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    numbers, error = read_until_error(path)
    assert len(numbers) == COUNT - 1
    assert "1 damaged chunks were skipped (crc" in error


@pytest.mark.parametrize("compression", [CompressionType.ZSTD, CompressionType.LZ4])
def test_any_damaged_byte_of_compressed_mcap_is_reported_in_words(tmp_path, compression):
    path = write_foxglove(tmp_path / "x.mcap", jpeg_messages(2), compression=compression)
    content = path.read_bytes()
    for position in range(0, len(content), 23):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        with suppress(BagDamageError):
            McapBag(path).topics()
            list(McapBag(path).messages())


def test_chunk_of_an_unknown_compression_is_named_before_the_run(tmp_path):
    path = write_foxglove(tmp_path / "x.mcap", jpeg_messages(2), compression=CompressionType.LZ4)
    path.write_bytes(path.read_bytes().replace(b"\3\0\0\0lz4", b"\3\0\0\0xyz"))
    with pytest.raises(SourceError, match="compressed by 'xyz'; only zstd and lz4 can be read"):
        cameras(path)


def test_topic_without_an_image_ends_in_an_error_that_names_it(tmp_path):
    path = write_foxglove(tmp_path / "x.mcap", video_messages("h264", packets("h264", 8)[1:3]))
    [source] = cameras(path, topic="/cam/video")
    with pytest.raises(SourceError, match="/cam/video has no image"):
        frames_of(source)
    assert source.health.state == "failed"


def test_topic_without_a_name_is_a_camera(tmp_path):
    path = write_foxglove(tmp_path / "x.mcap", [("/", message) for _, message in jpeg_messages(2)])
    [source] = cameras(path)
    assert len(frames_of(source)) == 2


@pytest.mark.parametrize("pack", [zstandard.compress, lz4.frame.compress])
def test_chunk_that_unpacks_to_more_than_it_states_is_refused(pack):
    kind = "zstd" if pack is zstandard.compress else "lz4"
    chunk = Chunk(compression=kind, data=pack(bytes(1 << 20)), message_start_time=0, message_end_time=0,
                  uncompressed_crc=0, uncompressed_size=64)  # fmt: skip
    with pytest.raises(ValueError, match="declares 64"):
        chunk_content(chunk)


@pytest.mark.parametrize("seconds", [1 << 60, -5])
def test_stamp_that_no_clock_shows_is_replaced_by_the_time_of_the_recording(tmp_path, seconds):
    [(topic, message)] = jpeg_messages(1)
    message.timestamp.seconds, message.timestamp.nanos = seconds, 0
    [source] = cameras(write_foxglove(tmp_path / "x.mcap", [(topic, message)]))
    assert [frame.stamp_ns for frame in frames_of(source)] == [0]


def test_view_in_place_of_a_table_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "x.db3"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(
            "CREATE VIEW topics AS WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) "
            "SELECT id, 'x' AS name, 'x' AS type, 'cdr' AS serialization_format FROM n"
        )
    with pytest.raises(BagDamageError, match="topics is a view"):
        SqliteBag(path).topics()


def test_message_of_a_database_that_is_a_number_is_damage(tmp_path):
    path = write_ros(tmp_path / "run", count=2) / "run.db3"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("UPDATE messages SET data = 100000000000")
    with pytest.raises(BagDamageError, match="not of type BLOB"):
        list(SqliteBag(path).messages())


def test_cut_bag_of_ros1_gives_all_complete_chunks_then_the_error(tmp_path):
    path = write_ros(tmp_path / "run.bag", ros1=True, count=40, chunk_size=50_000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # the index at the end is missing, too
    numbers, error = read_until_error(path)
    assert numbers == list(range(len(numbers)))
    assert 10 <= len(numbers) < 40
    assert "rosbag reindex" in error


def test_damaged_chunk_of_ros1_is_left_out_and_the_rest_is_read(tmp_path):
    path = write_ros(tmp_path / "run.bag", ros1=True, compress=True, chunk_size=20_000)
    content = bytearray(path.read_bytes())
    block = content.find(b"BZh", len(content) // 3)
    content[block + 20] ^= 0xFF
    path.write_bytes(content)
    numbers, error = read_until_error(path)
    assert numbers == sorted(numbers)
    assert COUNT // 2 <= len(numbers) < COUNT
    assert "1 damaged chunks were skipped" in error
    assert error.count("rosbag reindex") == 1


def test_damaged_page_of_a_database_gives_the_rows_before_it(tmp_path):
    path = write_ros(tmp_path / "run", count=60) / "run.db3"
    content = bytearray(path.read_bytes())
    for page in range(len(content) // 2 // 4096, len(content) // 4096):  # leaves and overflow pages alternate
        content[page * 4096 : page * 4096 + 16] = b"\xff" * 16
    path.write_bytes(content)
    numbers, error = read_until_error(path)
    assert numbers == list(range(len(numbers)))
    assert 10 <= len(numbers) < 60
    assert ".recover" in error


def test_cut_database_gives_all_good_rows_then_the_error(tmp_path):
    folder = write_ros(tmp_path / "run", count=60)
    path = folder / "run.db3"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3 // 4096 * 4096])
    numbers, error = read_until_error(path)
    assert numbers == list(range(len(numbers)))
    assert 10 <= len(numbers) < 60
    assert ".recover" in error


@pytest.mark.parametrize("name", ["x.mcap", "x.db3", "x.bag"])
@pytest.mark.parametrize("content", [b"", b"hello, world, this is no bag at all", b"#ROSBAG V2.0\n", b"\x89MCAP0\r\n"])
def test_file_that_is_no_bag_is_refused_in_words(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError) as refused:
        cameras(tmp_path / name)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)

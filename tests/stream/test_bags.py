"""Bags that the libraries of ROS, MCAP and Foxglove wrote, read as cameras."""

from __future__ import annotations

import shutil
import sqlite3
import sys
import threading
from contextlib import closing, suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import lz4.frame
import numpy as np
import pytest
import zstandard

pytest.importorskip("rosbags")
pytest.importorskip("mcap_protobuf")

from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo
from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from google.protobuf.timestamp_pb2 import Timestamp
from mcap.reader import make_reader
from mcap.records import Chunk
from mcap.writer import CompressionType
from mcap_protobuf.writer import Writer as ProtobufWriter
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

from commands.wiring.cameras import with_all_cameras
from commands.wiring.kinds import load_config
from commands.wiring.run import make_sources
from overlays.sinks.foxglove.mcap_file import McapSink
from pipeline.errors import CorruptMediaError, SourceError
from pipeline.frames import Explanation, Finding, Overlay
from stream.bags.container import BagDamageError
from stream.bags.images import PixelConverter
from stream.bags.mcap_file import McapBag
from stream.bags.mcap_file import _unpacked as chunk_content
from stream.bags.messages import ImageMessage
from stream.bags.sqlite_file import SqliteBag
from stream.sources import build_source, path_of

START_NS = 1_700_000_000_123_456_789
STEP_NS = 33_333_333
SIDE = 16
BITS = 6
COUNT = 12


def numbered(index, *, height=2 * SIDE, shift=0):
    """Return an image whose blocks spell its number: white is 1."""
    image = np.full((height, SIDE * BITS, 3), (40, 90, 60), np.uint8)
    for bit in range(BITS):
        image[:SIDE, bit * SIDE : (bit + 1) * SIDE] = 255 if (index + shift) >> bit & 1 else 0
    return image


def number_of(image):
    """Return the number in an image."""
    return sum(int(image[SIDE // 2, bit * SIDE + SIDE // 2].mean() > 127) << bit for bit in range(BITS))


def stamp_of(index):
    return START_NS + index * STEP_NS


class RosMessages:
    """Makes the image messages of ROS 1 or ROS 2."""

    def __init__(self, store):
        self.store = get_typestore(store)
        self.is_ros1 = store == Stores.ROS1_NOETIC
        self.types = self.store.types

    def header(self, stamp_ns):
        seconds, nanoseconds = divmod(stamp_ns, 10**9)
        stamp = self.types["builtin_interfaces/msg/Time"](sec=seconds, nanosec=nanoseconds)
        sequence = {"seq": 0} if self.is_ros1 else {}
        return self.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera", **sequence)

    def raw(self, image, encoding, stamp_ns, *, padding=0, big_endian=False):
        rows = np.ascontiguousarray(image).view(np.uint8).reshape(image.shape[0], -1)
        rows = np.pad(rows, ((0, 0), (0, padding)))
        return self.types["sensor_msgs/msg/Image"](
            header=self.header(stamp_ns), height=image.shape[0], width=image.shape[1], encoding=encoding,
            is_bigendian=int(big_endian), step=rows.shape[1], data=rows.reshape(-1),
        )  # fmt: skip

    def compressed(self, image, stamp_ns):
        payload = cv2.imencode(".jpg", image[:, :, ::-1])[1].reshape(-1)
        return self.types["sensor_msgs/msg/CompressedImage"](
            header=self.header(stamp_ns), format="bgr8; jpeg compressed bgr8", data=payload
        )

    def serialized(self, message):
        name = message.__msgtype__
        return self.store.serialize_ros1(message, name) if self.is_ros1 else self.store.serialize_cdr(message, name)


def write_ros(path, *, ros1=False, storage=StoragePlugin.SQLITE3, compress=False, count=COUNT, chunk_size=1 << 20):
    """Write a bag with two cameras, a depth map and a topic without images."""
    ros = RosMessages(Stores.ROS1_NOETIC if ros1 else Stores.ROS2_HUMBLE)
    writer = Writer1(path) if ros1 else Writer2(path, version=9, storage_plugin=storage)
    writer.chunk_threshold = chunk_size  # of ROS 1
    if compress and ros1:
        writer.set_compression(Writer1.CompressionFormat.BZ2)
    elif compress:
        writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        topics = {
            "/front/image_raw": "sensor_msgs/msg/Image",
            "/rear/compressed": "sensor_msgs/msg/CompressedImage",
            "/depth": "sensor_msgs/msg/Image",
            "/chatter": "std_msgs/msg/String",
        }
        made = {name: writer.add_connection(name, kind, typestore=ros.store) for name, kind in topics.items()}
        for index in range(count):
            stamp = stamp_of(index)
            messages = {
                "/front/image_raw": ros.raw(numbered(index)[:, :, ::-1], "bgr8", stamp, padding=5),
                "/rear/compressed": ros.compressed(numbered(index, shift=20), stamp + 1000),
                "/depth": ros.raw(np.zeros((4, 4), np.float32), "32FC1", stamp),
                "/chatter": ros.types["std_msgs/msg/String"](data="hello"),
            }
            for name, message in messages.items():  # recorded long after the capture
                writer.write(made[name], stamp + 10**9, ros.serialized(message))
    return path


BAGS = {
    "ros1": lambda folder: write_ros(folder / "run.bag", ros1=True),
    "ros1-bz2": lambda folder: write_ros(folder / "run.bag", ros1=True, compress=True),
    "sqlite-folder": lambda folder: write_ros(folder / "run"),
    "sqlite-zstd": lambda folder: write_ros(folder / "run", compress=True),
    "sqlite-file": lambda folder: write_ros(folder / "run") / "run.db3",
    "mcap-folder": lambda folder: write_ros(folder / "run", storage=StoragePlugin.MCAP),
    "mcap-file": lambda folder: write_ros(folder / "run", storage=StoragePlugin.MCAP) / "run.mcap",
}


def cameras(uri, **options):
    """Return the sources that a run makes of one URI."""
    config = with_all_cameras(load_config({"sources": [{"uri": str(uri), **options}]}, "run.yaml"))
    return [source for source, _ in make_sources(config)]


def frames_of(source):
    with source:
        return list(source.frames(threading.Event()))


@pytest.mark.parametrize("kind", BAGS)
def test_each_camera_topic_is_a_camera_with_all_frames_in_order(kind, tmp_path):
    sources = cameras(BAGS[kind](tmp_path))
    assert [source.camera for source in sources] == ["front/image_raw", "rear/compressed"]
    for source, shift, offset in zip(sources, (0, 20), (0, 1000), strict=True):
        frames = frames_of(source)
        assert [number_of(frame.image) - shift for frame in frames] == list(range(COUNT))
        assert [frame.index for frame in frames] == list(range(COUNT))
        assert [frame.stamp_ns for frame in frames] == [stamp_of(index) + offset for index in range(COUNT)]
        assert [frame.pts_seconds for frame in frames] == pytest.approx([i * STEP_NS / 1e9 for i in range(COUNT)])
        assert source.health.state == "ended"
        assert source.frames_total in {COUNT, None}
    assert np.array_equal(frames_of(sources[0])[3].image, numbered(3))


def test_chosen_topic_is_the_only_camera(tmp_path):
    bag = BAGS["ros1"](tmp_path)
    uri = f"{bag}?topic=/rear/compressed"
    [source] = cameras(uri)
    assert source.camera == "rear/compressed"
    assert len(frames_of(source)) == COUNT
    assert path_of(uri) == str(bag)
    [named] = cameras(bag, topic="/front/image_raw", name="front")
    assert named.camera == "front"
    assert [source.camera for source in cameras(bag, name="car")] == ["car/front/image_raw", "car/rear/compressed"]


def test_explained_bag_has_the_log_times_of_the_bag(tmp_path):
    bag = write_ros(tmp_path / "run.bag", ros1=True, count=3)
    finding = Finding("car", 0.9, np.eye(3, dtype=np.float32))
    with McapSink(tmp_path / "out.mcap") as sink:
        for frame in frames_of(build_source(f"{bag}?topic=/front/image_raw")):
            sink.put(Overlay(frame.image, Explanation(frame, (finding,), "recipro-cam/point", "layer4")))
    with (tmp_path / "out.mcap").open("rb") as file:
        topics = ["/front/image_raw/explanation"]
        times = [message.log_time for *_, message in make_reader(file).iter_messages(topics=topics)]
    assert times == [stamp_of(index) for index in range(3)]
    [again] = cameras(tmp_path / "out.mcap")
    assert again.camera == "front/image_raw/image"
    assert [number_of(frame.image) for frame in frames_of(again)] == [0, 1, 2]


@pytest.mark.parametrize(
    ("topic", "message"),
    [
        ("/fronnt/image_raw", "has no topic '/fronnt/image_raw'. Did you mean '/front/image_raw'"),
        ("/chatter", "std_msgs/.*String in .* is not an image"),
    ],
)
def test_topic_without_images_is_refused_with_the_topics(tmp_path, topic, message):
    with pytest.raises(SourceError, match=message), build_source(str(BAGS["ros1"](tmp_path)), topic=topic):
        pass


def test_depth_map_is_refused_with_the_encodings_that_are_read(tmp_path):
    with (
        build_source(str(BAGS["ros1"](tmp_path)), topic="/depth") as source,
        pytest.raises(CorruptMediaError, match=r"encoding '32fc1' is not an image.*bayer.*0 intact images"),
    ):
        list(source.frames(threading.Event()))


def encoded(image, encoding):
    """Return an image in an encoding of ROS."""
    if encoding.startswith("bayer"):
        rows = {"rggb": (0, 1, 1, 2), "bggr": (2, 1, 1, 0), "gbrg": (1, 2, 0, 1), "grbg": (1, 0, 2, 1)}
        mosaic = np.empty(image.shape[:2], np.uint8)
        for position, channel in enumerate(rows[encoding.removeprefix("bayer_").rstrip("0168")]):
            row, column = divmod(position, 2)
            mosaic[row::2, column::2] = image[row::2, column::2, channel]
        return mosaic.astype(np.uint16) << 4 if encoding.endswith("16") else mosaic
    if encoding in {"yuv422", "yuv422_yuy2"}:
        code = cv2.COLOR_RGB2YUV_UYVY if encoding == "yuv422" else cv2.COLOR_RGB2YUV_YUY2
        return cv2.cvtColor(image, code)
    pixels = image[:, :, ::-1] if encoding.startswith("bgr") else image
    if encoding.startswith("mono"):
        pixels = image[:, :, 1]
    if "a8" in encoding:
        pixels = np.dstack([pixels, np.full(image.shape[:2], 7, np.uint8)])
    return pixels.astype(np.uint16) << 4 if encoding.endswith("16") else pixels


@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize(
    ("encoding", "tolerance"),
    [
        ("rgb8", 0), ("bgr8", 0), ("rgba8", 0), ("bgra8", 0), ("8UC3", 0), ("mono8", 0), ("8UC1", 0), ("mono16", 0),
        ("16UC1", 0), ("rgb16", 0), ("bgr16", 0), ("yuv422", 6), ("yuv422_yuy2", 6),
        *((f"bayer_{pattern}{bits}", 0) for pattern in ("rggb", "bggr", "gbrg", "grbg") for bits in (8, 16)),
    ],
)  # fmt: skip
def test_pixels_of_every_encoding_are_rgb(encoding, tolerance, big_endian):
    image = np.empty((8, 12, 3), np.uint8)
    image[:] = (250, 120, 30)  # flat, so that demosaicing is exact
    name = {"8UC3": "bgr8", "8UC1": "mono8", "16UC1": "mono16"}.get(encoding, encoding)
    pixels = encoded(image, name)
    if pixels.dtype == np.uint16 and big_endian:
        pixels = pixels.astype(">u2")
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(8, -1)
    padded = np.pad(rows, ((0, 0), (0, 3)))
    message = ImageMessage("raw", 0, encoding, padded.tobytes(), 12, 8, padded.shape[1], big_endian)
    expected = np.repeat(image[:, :, 1:2], 3, axis=2) if "mono" in name else image
    read = PixelConverter().convert(message)
    assert read.shape == (8, 12, 3)
    assert np.abs(read.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"step": 11}, "do not hold an image"),
        ({"height": 9}, "do not hold an image"),
        ({"width": 0}, "do not hold an image"),
        ({"encoding": "16SC1"}, "is not an image for a network"),
        ({"width": 1 << 20, "height": 1 << 20}, "exceeds max_pixels"),
    ],
)
def test_impossible_image_is_refused_before_memory_is_taken(fields, message):
    values = {"encoding": "mono8", "width": 12, "height": 8, "step": 12, **fields}
    with pytest.raises(SourceError, match=message):
        PixelConverter(1_000_000).convert(ImageMessage("raw", 0, data=bytes(96), **values))


def test_single_row_with_a_huge_step_takes_no_memory():
    message = ImageMessage("raw", 0, "mono8", bytes(12), width=12, height=1, step=0xFFFFFFFF)
    assert PixelConverter().convert(message).shape == (1, 12, 3)


def timestamp(stamp_ns):
    return Timestamp(seconds=stamp_ns // 10**9, nanos=stamp_ns % 10**9)


def packets(codec, count, *, keys=4):
    """Encode numbered images; one packet each."""
    container = av.CodecContext.create({"h264": "libx264", "h265": "libx265"}[codec], "w")
    container.width, container.height, container.pix_fmt = SIDE * BITS, 128, "yuv420p"
    container.time_base, container.framerate = Fraction(1, 30), Fraction(30)
    quiet = {"x265-params": f"log-level=none:bframes=0:keyint={keys}:pools=1"} if codec == "h265" else {}
    container.options = {"preset": "ultrafast", "tune": "zerolatency", "g": str(keys), "bf": "0", **quiet}
    encoded_packets = []
    for index in range(count):
        frame = av.VideoFrame.from_ndarray(numbered(index, height=128), format="rgb24")
        frame.pts = index
        encoded_packets += [bytes(packet) for packet in container.encode(frame)]
    return encoded_packets + [bytes(packet) for packet in container.encode(None)]


def write_foxglove(path, messages, *, compression=CompressionType.ZSTD, chunk_size=1 << 20):
    """Write (topic, message) pairs as Foxglove's own library does."""
    with path.open("wb") as file, ProtobufWriter(file, compression=compression, chunk_size=chunk_size) as writer:
        for number, (topic, message) in enumerate(messages):
            writer.write_message(topic, message, log_time=number, publish_time=number)
    return path


def video_messages(codec, data):
    return [
        ("/cam/video", CompressedVideo(timestamp=timestamp(stamp_of(index)), format=codec, data=packet))
        for index, packet in enumerate(data)
    ]


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_video_topic_gives_every_frame_with_its_stamp(tmp_path, codec):
    [source] = cameras(write_foxglove(tmp_path / "v.mcap", video_messages(codec, packets(codec, COUNT))))
    frames = frames_of(source)
    assert [number_of(frame.image) for frame in frames] == list(range(COUNT))
    assert [frame.stamp_ns for frame in frames] == [stamp_of(index) for index in range(COUNT)]


def test_video_that_begins_between_key_frames_gives_all_frames_from_the_first_one_on(tmp_path):
    messages = video_messages("h264", packets("h264", COUNT))[2:]
    [source] = cameras(write_foxglove(tmp_path / "v.mcap", messages))
    assert [number_of(frame.image) for frame in frames_of(source)] == list(range(4, COUNT))
    assert source.health.state == "ended"


def test_damaged_packet_costs_the_frames_up_to_the_next_key_frame(tmp_path):
    data = packets("h264", COUNT)
    data[5] = data[5][:5] + bytes(len(data[5]) - 5)
    [source] = cameras(write_foxglove(tmp_path / "v.mcap", video_messages("h264", data)))
    numbers = []
    with source, pytest.raises(CorruptMediaError, match=r"/cam/video: a .* intact images were read"):
        numbers.extend(number_of(frame.image) for frame in source.frames(threading.Event()))
    assert numbers == [0, 1, 2, 3, 4, 8, 9, 10, 11]


def jpeg_messages(count):
    for index in range(count):
        payload = cv2.imencode(".jpg", numbered(index)[:, :, ::-1])[1].tobytes()
        yield "/cam", CompressedImage(timestamp=timestamp(stamp_of(index)), format="jpeg", data=payload)


def test_heat_map_beside_an_image_is_no_camera_by_default(tmp_path):
    heat = RawImage(width=4, height=3, encoding="32FC1", step=16, data=bytes(48))
    path = write_foxglove(tmp_path / "x.mcap", [("/cam/heat", heat), *jpeg_messages(2)])
    assert [source.camera for source in cameras(path)] == ["cam"]
    only_heat = write_foxglove(tmp_path / "heat.mcap", [("/cam/heat", heat)])
    with pytest.raises(SourceError, match=r"/cam/heat.*is a camera's image"):
        cameras(only_heat)


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


def test_damaged_chunk_of_mcap_is_left_out_and_the_rest_is_read(tmp_path):
    path = write_foxglove(tmp_path / "x.mcap", jpeg_messages(COUNT), chunk_size=100, compression=CompressionType.NONE)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    numbers, error = read_until_error(path)
    assert len(numbers) == COUNT - 1
    assert "1 damaged chunks were left out (crc" in error


@pytest.mark.parametrize("compression", [CompressionType.ZSTD, CompressionType.LZ4])
def test_any_damaged_byte_of_compressed_mcap_is_reported_in_words(tmp_path, compression):
    path = write_foxglove(tmp_path / "x.mcap", jpeg_messages(2), compression=compression)
    content = path.read_bytes()
    for position in range(0, len(content), 23):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        with suppress(BagDamageError):
            McapBag(path).topics()
            list(McapBag(path).messages())


@pytest.mark.parametrize("pack", [zstandard.compress, lz4.frame.compress])
def test_chunk_that_unpacks_to_more_than_it_states_is_refused(pack):
    kind = "zstd" if pack is zstandard.compress else "lz4"
    chunk = Chunk(compression=kind, data=pack(bytes(1 << 20)), message_start_time=0, message_end_time=0,
                  uncompressed_crc=0, uncompressed_size=64)  # fmt: skip
    with pytest.raises(ValueError, match="states 64"):
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
    with pytest.raises(BagDamageError, match="no bytes"):
        list(SqliteBag(path).messages())


def test_cut_bag_of_ros1_gives_all_complete_chunks_then_the_error(tmp_path):
    path = write_ros(tmp_path / "run.bag", ros1=True, count=40, chunk_size=50_000)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])  # the index at the end is missing, too
    numbers, error = read_until_error(path)
    assert numbers == list(range(len(numbers)))
    assert 10 <= len(numbers) < 40
    assert "rosbag reindex" in error


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


def test_missing_bag_is_refused_with_the_nearest_name(tmp_path):
    write_ros(tmp_path / "run.bag", ros1=True, count=1)
    with pytest.raises(SourceError, match=r"no such file or folder. Did you mean 'run.bag'"):
        build_source(str(tmp_path / "ru.bag"))


def test_folder_with_packed_files_is_refused_with_the_command_that_unpacks_them(tmp_path):
    folder = write_ros(tmp_path / "run")
    (folder / "run.db3").rename(folder / "run.db3.zstd")
    with pytest.raises(SourceError, match=r"zstd -d .*run\.db3\.zstd"):
        cameras(folder)


def test_bag_of_several_files_is_read_in_their_order(tmp_path):
    folder = write_ros(tmp_path / "run", count=3)
    (folder / "run.db3").rename(folder / "run_9.db3")
    shutil.copy(folder / "run_9.db3", folder / "run_10.db3")
    with sqlite3.connect(folder / "run_10.db3") as database:
        database.execute("DELETE FROM messages WHERE id > 4")
    database.close()
    front, _ = cameras(folder)
    assert [number_of(frame.image) for frame in frames_of(front)] == [0, 1, 2, 0]


def test_missing_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    write_ros(tmp_path / "run.bag", ros1=True, count=1)
    for name in [each for each in sys.modules if each.startswith("stream.bags.") and not each.endswith("paths")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rosbags.typesys", None)
    with pytest.raises(SourceError, match=r"needs rosbags.*: uv sync --extra bags"):
        cameras(Path(tmp_path / "run.bag"))

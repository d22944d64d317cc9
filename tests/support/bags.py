"""Bags whose images spell their numbers, written by the libraries of ROS and Foxglove."""

from __future__ import annotations

import threading
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap_protobuf")
from foxglove_schemas_protobuf.CompressedImage_pb2 import CompressedImage
from foxglove_schemas_protobuf.CompressedVideo_pb2 import CompressedVideo
from google.protobuf.timestamp_pb2 import Timestamp
from mcap.writer import CompressionType
from mcap_protobuf.writer import Writer as ProtobufWriter
from rosbags.rosbag1 import Writer as Writer1
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Writer2
from rosbags.typesys import Stores, get_typestore

from commands.wiring.cameras import with_all_cameras
from commands.wiring.kinds import load_config
from commands.wiring.run import make_sources

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


def jpeg_messages(count):
    for index in range(count):
        payload = cv2.imencode(".jpg", numbered(index)[:, :, ::-1])[1].tobytes()
        yield "/cam", CompressedImage(timestamp=timestamp(stamp_of(index)), format="jpeg", data=payload)

"""Bags that the libraries of ROS, MCAP and Foxglove wrote, read as cameras."""

from __future__ import annotations

import shutil
import sqlite3
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("rosbags")
pytest.importorskip("mcap_protobuf")

from foxglove_schemas_protobuf.RawImage_pb2 import RawImage
from mcap.reader import make_reader

from overlays.sinks.foxglove.mcap_file import McapSink
from pipeline.errors import CorruptMediaError, SourceError
from pipeline.frames import Explanation, Finding, Overlay
from stream.sources import build_source, path_of
from tests.support.bags import (
    BAGS,
    COUNT,
    STEP_NS,
    cameras,
    frames_of,
    jpeg_messages,
    number_of,
    numbered,
    packets,
    stamp_of,
    video_messages,
    write_foxglove,
    write_ros,
)


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
        ("/chatter", "std_msgs/.*String, encoding .* are not readable images"),
    ],
)
def test_topic_without_images_is_refused_with_the_topics(tmp_path, topic, message):
    with pytest.raises(SourceError, match=message), build_source(str(BAGS["ros1"](tmp_path)), topic=topic):
        pass


def test_depth_map_is_refused_with_the_encodings_that_are_read(tmp_path):
    with (
        build_source(str(BAGS["ros1"](tmp_path)), topic="/depth") as source,
        pytest.raises(CorruptMediaError, match=r"encoding '32fc1' is not supported.*bayer.*0 intact images"),
    ):
        list(source.frames(threading.Event()))


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


def test_heat_map_beside_an_image_is_no_camera_by_default(tmp_path):
    heat = RawImage(width=4, height=3, encoding="32FC1", step=16, data=bytes(48))
    path = write_foxglove(tmp_path / "x.mcap", [("/cam/heat", heat), *jpeg_messages(2)])
    assert [source.camera for source in cameras(path)] == ["cam"]
    only_heat = write_foxglove(tmp_path / "heat.mcap", [("/cam/heat", heat)])
    with pytest.raises(SourceError, match=r"/cam/heat.*is a camera's image"):
        cameras(only_heat)


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
    with pytest.raises(SourceError, match=r"needs rosbags.*: uv sync --inexact --extra bags"):
        cameras(Path(tmp_path / "run.bag"))


def test_bag_with_too_many_cameras_is_refused_with_the_way_to_choose(tmp_path, monkeypatch):
    bag = BAGS["ros1"](tmp_path)
    monkeypatch.setattr("stream.cameras.MAX_TOPICS", 1)
    with pytest.raises(SourceError, match=r"has 2 topics with images.* the limit is 1; .*\?topic=/front/image_raw"):
        cameras(bag)
    assert len(cameras(f"{bag}?topic=/rear/compressed")) == 1

"""Tests of the support servers, and of sources with their faults and a bad network."""

import contextlib
import statistics
import subprocess
import time
from fractions import Fraction
from itertools import pairwise

import pytest

from tests.support.feed import Feed
from tests.support.footage import Mark, millis_now, read
from tests.support.limits import LIMIT_SECONDS
from tests.support.proxy import Proxy
from tests.support.reading import LOST, QUICK, reading
from tests.support.rtsp_server import RtspServer


def test_ffprobe_sees_h264_of_the_right_size(server):
    arguments = ["ffprobe", "-v", "error", "-rtsp_transport", "tcp", "-show_entries", "stream=codec_name,width,height"]
    done = subprocess.run(
        [*arguments, "-of", "csv=p=0", server.url()], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("h264,160,120", "")


def test_images_are_read_back_exactly_and_in_order(server):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 40)
    marks = reader.marks
    assert None not in marks
    numbers = [mark.number for mark in marks]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert [frame.index for frame in reader.frames] == list(range(len(numbers)))
    ages = [mark.age_seconds(frame.captured_at) for mark, frame in zip(marks, reader.frames, strict=True)]
    assert -0.001 <= min(ages) < 1.0
    values = [frame.pts_seconds for frame in reader.frames]
    painted = [mark.millis / 1000 for mark in marks]
    errors = [b - a - (d - c) for (a, b), (c, d) in zip(pairwise(values), pairwise(painted), strict=True)]
    # FFmpeg evens out the first few intervals, and an image that comes late moves those after it.
    assert statistics.median(map(abs, errors)) < 0.01


def test_anamorphic_images_have_their_display_size():
    with Feed((160, 120), rate=20, aspect=Fraction(2)) as feed, RtspServer(feed) as server:
        with reading(server.url()) as reader:
            reader.until(lambda: len(reader.frames) >= 3)
        assert {(frame.width, frame.height) for frame in reader.frames} == {(320, 120)}


def test_images_larger_than_a_packet_are_reassembled():
    with Feed((640, 480), rate=10, bit_rate=4_000_000, grain=20) as feed, RtspServer(feed) as server:
        sizes = []
        feed.listen("sizes", lambda image: sizes.append(max(map(len, image.units))))
        with reading(server.url()) as reader:
            reader.until(lambda: len(reader.frames) >= 5)
        assert max(sizes) > 1200
        assert None not in reader.marks


def test_two_viewers_share_one_encoder_and_each_begins_with_a_keyframe(server):
    with reading(server.url()) as first:
        first.until(lambda: len(first.frames) >= 3)
        with reading(server.url()) as other:
            other.until(lambda: len(other.frames) >= 10)
    assert None not in first.marks + other.marks
    assert set(other.marks[:5]) <= set(first.marks)
    assert first.health.corrupt == other.health.corrupt == 0


def test_stall_is_detected_and_reported_and_fresh_images_follow(server, feed):
    with reading(server.url(), QUICK) as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        server.faults.stalled = True
        reader.until(lambda: reader.health.state in LOST)
        assert reader.health.reason == "no frame for 1 s"
        before, lost_at = len(reader.frames), feed.number
        server.faults.stalled = False
        reader.until_number(lost_at)
        assert reader.health.reconnects >= 1
    assert None not in reader.marks
    assert min(mark.number for mark in reader.marks[before:]) >= lost_at, "no image of the stall is shown later"


def test_lost_camera_is_reported_and_fresh_images_follow_its_return(server, feed):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        port = server.port
        server.die()
        reader.until(lambda: "refused" in reader.health.reason)
        died, missed = len(reader.frames), feed.number
        reader.until(lambda: feed.number > missed + 5)
        server.come_back()
        assert server.port == port
        reader.until_number(feed.number)
        assert reader.health.state == "live"
        assert reader.health.reconnects == 1
    assert read(reader.frames[died].image).number > missed + 5
    assert [frame.index for frame in reader.frames] == list(range(len(reader.frames)))


@pytest.mark.parametrize("how", ["close", "reset"])
def test_broken_connection_is_reopened(server, feed, how):
    with reading(server.url()) as reader:
        for times in (1, 2, 3):
            reader.until_number(feed.number)
            getattr(server, how)()
            reader.until(lambda times=times: reader.health.reconnects == times)
        reader.until_number(feed.number)
    assert None not in reader.marks
    numbers = [mark.number for mark in reader.marks]
    assert numbers == sorted(set(numbers))


def test_camera_may_return_with_another_size(server, feed):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        server.die()
        feed.size = (320, 240)
        started = feed.number
        reader.until(lambda: feed.number > started + 2)
        server.come_back()
        reader.until(lambda: reader.frames[-1].width == 320)
    assert {(frame.width, frame.height) for frame in reader.frames} == {(160, 120), (320, 240)}
    assert None not in reader.marks


def test_camera_may_change_its_size_without_notice(server, feed):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        feed.size = (240, 160)
        reader.until(lambda: reader.frames[-1].width == 240)
        reader.until_number(feed.number)
    assert None not in reader.marks


@pytest.mark.parametrize("shift", [-40_000.0, -5.0, 5.0, 47_000.0])
def test_time_increases_whatever_the_cameras_clock_does(server, feed, shift):
    with reading(server.url()) as reader:
        reader.until(lambda: len(reader.frames) >= 5)
        server.faults.time_shift_seconds = shift
        reader.until_number(feed.number + 10)
    values = [frame.pts_seconds for frame in reader.frames]
    assert values == sorted(set(values))
    elapsed = reader.frames[-1].captured_at - reader.frames[0].captured_at
    assert values[-1] == pytest.approx(elapsed, abs=6.5)
    assert None not in reader.marks


def test_lost_images_corrupt_no_shown_image():
    with Feed((320, 240), rate=25, key_every=10) as feed, RtspServer(feed, seed=3) as server:
        with reading(server.url()) as reader:
            reader.until(lambda: len(reader.frames) >= 5)
            server.faults.drop_share = 0.1  # without grain a picture is one packet
            reader.until(lambda: server.counts.packets_dropped >= 6)
            server.faults.drop_share = 0.0
            reader.until_number(feed.number + 12)
        assert reader.health.corrupt > 0
    assert None not in reader.marks


@pytest.mark.slow
def test_lost_packets_within_images_corrupt_hardly_any_shown_image():
    grainy = Feed((320, 240), rate=25, bit_rate=1_500_000, grain=20)  # five packets or more to a picture
    with grainy as feed, RtspServer(feed, seed=3) as server:
        with reading(server.url()) as reader:
            reader.until(lambda: len(reader.frames) >= 5)
            server.faults.drop_share = 0.03
            reader.until(lambda: server.counts.packets_dropped >= 15)
            server.faults.drop_share = 0.0
            reader.until_number(feed.number + 36)
        assert reader.health.corrupt > 0
    # Rarely a damaged slice still decodes; the pictures that depend on it are then wrong until the next key picture.
    assert reader.marks.count(None) <= len(reader.marks) / 10


def test_connection_without_data_is_detected_like_a_stall(server, feed):
    with Proxy(server.port) as line:
        with reading(f"rtsp://127.0.0.1:{line.port}{server.path}", QUICK) as reader:
            reader.until(lambda: len(reader.frames) >= 3)
            line.blackholed = True
            reader.until(lambda: reader.health.state in LOST)
            assert reader.health.reason == "no frame for 1 s"
            line.blackholed = False
            reader.until_number(feed.number)
        assert None not in reader.marks


def test_camera_that_closes_before_answering_is_retried_soon(server, feed):
    with Proxy(server.port) as line, reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
        reader.until(lambda: len(reader.frames) >= 3)
        server.die()  # the line still takes connections, and drops them
        connections_before = line.connections
        reader.until(lambda: line.connections >= connections_before + 3)
        server.come_back()
        reader.until_number(feed.number)


@pytest.mark.parametrize("how", ["close", "reset"])
def test_broken_connection_is_resumed(server, feed, how):
    with Proxy(server.port) as line:
        with reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
            reader.until(lambda: len(reader.frames) >= 3)
            getattr(line, how)()
            reader.until(lambda: reader.health.reconnects == 1)
            reader.until_number(feed.number)
        assert None not in reader.marks


@pytest.mark.slow
def test_connection_cut_within_an_image_shows_no_broken_image(server, feed):
    with Proxy(server.port) as line:
        with reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
            for cut in (100, 777, 2000):
                reader.until_number(feed.number)
                connections = line.connections
                line.truncate_after_bytes = cut
                reader.until(lambda connections=connections: line.connections > connections)
                line.truncate_after_bytes = None
        assert None not in reader.marks


def test_delayed_connection_delivers_everything_later(server, feed):
    with Proxy(server.port) as line:
        line.delay_seconds = 0.1
        with reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
            reader.until(lambda: len(reader.frames) >= 10)
        ages = [mark.age_seconds(f.captured_at) for mark, f in zip(reader.marks, reader.frames, strict=True)]
        assert min(ages[-5:]) > 0.09


@pytest.mark.slow
def test_slow_connection_makes_the_camera_skip_images():
    grainy = Feed((320, 240), rate=25, bit_rate=6_000_000, grain=20)
    with grainy as feed, RtspServer(feed) as server, Proxy(server.port) as line:
        with reading(f"rtsp://127.0.0.1:{line.port}{server.path}") as reader:
            reader.until(lambda: len(reader.frames) >= 3)
            line.bytes_per_second = 40_000
            started = len(reader.frames)
            reader.until(lambda: len(reader.frames) > started + 2)
        assert None not in reader.marks


def test_many_cameras_share_one_encoder():
    with contextlib.ExitStack() as stack:
        feed = stack.enter_context(Feed((160, 120), rate=10))
        servers = [stack.enter_context(RtspServer(feed)) for _ in range(4)]
        readers = [stack.enter_context(reading(server.url())) for server in servers]
        for reader in readers:
            reader.until(lambda reader=reader: len(reader.frames) >= 5)
    shared = set.intersection(*(set(reader.marks) for reader in readers))
    assert shared
    assert all(isinstance(mark, Mark) for mark in shared)


def test_painted_time_is_the_clock_of_this_machine(feed):
    seen = []
    feed.listen("test", lambda image: seen.append(millis_now() - image.millis))
    deadline = time.monotonic() + LIMIT_SECONDS
    while len(seen) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    feed.forget("test")
    assert len(seen) >= 5
    assert 0 <= min(seen) < 1000

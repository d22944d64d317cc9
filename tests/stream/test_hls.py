"""HTTP live streaming: playlists, segments, keys and variants."""

import itertools
import threading
import time

import pytest

from pipeline.errors import ConnectionLostError
from stream.sources import build_source
from tests.support.web_camera import ONCE, greys, playlist, read, send


class Files:
    """Serves files that a test may change, and keeps what was asked for."""

    def __init__(self, serve):
        self.content, self.asked = {}, []
        self.address = serve(self.answer)

    def answer(self, request):
        name = request.path.partition("?")[0].strip("/")
        self.asked.append(name)
        content = self.content.get(name)
        if content is None:
            request.send_error(404)
        elif request.headers.get("Range", "bytes=0-") != "bytes=0-":
            start, end = request.headers["Range"].removeprefix("bytes=").split("-")
            send(request, content[int(start) : int(end) + 1], code=206)
        else:
            send(request, content)


@pytest.fixture
def files(web_server):
    return Files(web_server)


@pytest.fixture
def segments(make_clip, tmp_path):
    """Six segments of ten pictures each, one second long: their names and bytes."""

    def make(kind="mpegts", **more):
        options = {"hls_time": "1", "hls_list_size": "0", "hls_segment_type": kind, **more}
        make_clip(
            "made.m3u8", frame_count=60, codec="libx264", options=options, coding={"g": "10", "tune": "zerolatency"}
        )
        names = [line for line in (tmp_path / "made.m3u8").read_text().splitlines() if line.startswith("made")]
        assert len(names) == 6
        return {name: (tmp_path / name).read_bytes() for name in names}

    return make


def test_finished_playlist_ends_with_its_end_and_loses_nothing(files, segments):
    names = segments()
    files.content = {**names, "vod.m3u8": playlist(names)}
    frames, source = read(f"{files.address}/vod.m3u8")
    assert greys(frames) == [k % 25 for k in range(60)]
    assert (source.live, source.health.state, source.health.reconnects) == (False, "ended", 0)
    assert sorted(set(files.asked)) == sorted(files.asked), "nothing is fetched twice"


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0]])
def test_discontinuities_break_off_nothing_and_time_goes_on(files, segments, order):
    segment_names = segments()
    names = [list(segment_names)[k] for k in order]
    files.content = {**segment_names, "vod.m3u8": playlist(names, before=dict.fromkeys(names, "#EXT-X-DISCONTINUITY"))}
    frames, source = read(f"{files.address}/vod.m3u8")
    assert greys(frames) == [(10 * k + n) % 25 for k in order for n in range(10)]
    times = [frame.pts_seconds for frame in frames]
    assert times == sorted(set(times))
    assert times[-1] == pytest.approx(len(order) - 0.1, abs=0.3)
    assert (source.health.state, source.health.reconnects) == ("ended", 0)


def test_variants_headers_and_byte_ranges_are_followed(files, segments, tmp_path):
    names = segments("fmp4")
    whole, tags, at = b"".join(names.values()), {}, 0
    for name, content in names.items():
        tags[name], at = f"#EXT-X-BYTERANGE:{len(content)}@{at}", at + len(content)
    lines = playlist(names, before=tags, head='#EXT-X-MAP:URI="init.mp4"').decode()
    for name in names:
        lines = lines.replace(f"\n{name}", "\nall.m4s")
    variants = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9\nlow/none.m3u8\n#EXT-X-STREAM-INF:BANDWIDTH=90\nhigh.m3u8\n"
    files.content = {"all.m4s": whole, "init.mp4": (tmp_path / "init.mp4").read_bytes(), "high.m3u8": lines.encode()}
    files.content["all.m3u8"] = variants
    frames, _ = read(f"{files.address}/all.m3u8")
    assert greys(frames) == [k % 25 for k in range(60)]


def test_encrypted_segments_are_read_with_their_key(files, segments, tmp_path):
    names = segments(hls_enc="1")
    assert not any(content.startswith(b"G") for content in names.values()), "a segment is in plain MPEG-TS"
    files.content = {**names, "vod.m3u8": (tmp_path / "made.m3u8").read_bytes().replace(f"{tmp_path}/".encode(), b"")}
    files.content["made.m3u8.key"] = (tmp_path / "made.m3u8.key").read_bytes()
    frames, _ = read(f"{files.address}/vod.m3u8")
    assert greys(frames) == [k % 25 for k in range(60)]


def test_missing_segments_are_reported_at_the_end(files, segments):
    names = segments()
    files.content = {**names, "vod.m3u8": playlist(names)}
    del files.content[list(names)[2]]
    frames = []
    with (
        build_source(f"{files.address}/vod.m3u8", **ONCE) as source,
        pytest.raises(ConnectionLostError, match="1 segments of its playlist"),
    ):
        frames.extend(source.frames(threading.Event()))
    assert greys(frames) == [k % 25 for k in range(60) if not 20 <= k < 30]


@pytest.mark.slow
def test_live_playlist_is_paced_fetched_once_and_believed_when_it_ends(files, segments):
    segment_names = segments()
    names, loads = list(segment_names), itertools.count(3)

    class Window(dict):
        def get(self, name):
            if name != "live.m3u8":
                return segment_names.get(name)
            last = min(6, next(loads))  # one segment more with each request
            return playlist(names[last - 3 : last], first=last - 3, end=last == 6)

    files.content = Window()
    frames, source = read(f"{files.address}/live.m3u8")
    assert greys(frames) == [k % 25 for k in range(10, 60)], "from one segment behind the edge to the end"
    assert (source.live, source.health.reconnects, source.health.state) == (True, 0, "ended")
    fetched = [name for name in files.asked if name in segment_names]
    assert sorted(set(fetched)) == sorted(fetched), "no segment is fetched twice"
    first, last = frames[0], frames[-1]
    assert last.captured_at - first.captured_at > 3.0, "five seconds of pictures do not come in bursts"
    assert last.pts_seconds == pytest.approx(4.9, abs=0.5)


def test_stop_ends_a_wait_for_a_segment_at_once(files, segments):
    segment_names = segments()
    names = list(segment_names)[:2]
    files.content = {**segment_names, "live.m3u8": playlist(names, end=False).replace(b"DURATION:1", b"DURATION:30")}
    stop, frames = threading.Event(), []
    with build_source(f"{files.address}/live.m3u8", **ONCE) as source:
        for frame in source.frames(stop):
            frames.append(frame)
            if len(frames) == 18:  # of 20: those that are still in the decoder wait for what follows
                started_at, timer = time.monotonic(), threading.Timer(1.0, stop.set)
                timer.start()
        timer.join()
    assert time.monotonic() - started_at < 60, "the playlist may be silent for 90 s"

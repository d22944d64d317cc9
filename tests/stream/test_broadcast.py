"""Streams that FFmpeg sends by RTMP, and as MPEG-TS in UDP packets, on the loopback."""

import subprocess

import pytest

from stream.sources import build_source
from tests.support.broker import free_port
from tests.support.limits import WAITS
from tests.support.reader import Reader

SENDS = {"rtmp": ["-f", "flv", "-listen", "1"], "udp": ["-f", "mpegts"]}
PICTURES = ["-v", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=160x120:rate=20"]
CODING = ["-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency", "-g", "10", "-pix_fmt", "yuv420p"]


@pytest.mark.parametrize("scheme", SENDS)
def test_broadcast_is_read_live(scheme):
    address = f"{scheme}://127.0.0.1:{free_port()}" + ("/live/door" if scheme == "rtmp" else "")
    source = build_source(address, **WAITS)
    with subprocess.Popen(["ffmpeg", *PICTURES, *CODING, *SENDS[scheme], address], stderr=subprocess.DEVNULL) as sender:
        try:
            with source, Reader(source) as reader:
                reader.until(lambda: len(reader.frames) >= 20)
        finally:
            sender.kill()
    assert source.live
    assert {(frame.width, frame.height) for frame in reader.frames} == {(160, 120)}
    times = [frame.pts_seconds for frame in reader.frames]
    assert times == sorted(set(times))

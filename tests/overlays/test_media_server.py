"""The way to a media server that the documentation shows: FFmpeg between the page and an RTSP server."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from overlays.sinks.settings import WebSettings
from overlays.sinks.web import WebSink
from tests.support import footage
from tests.support.limits import PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"


def documented_command(page, server):
    """Return FFmpeg's arguments in the document, with the addresses of this test."""
    text = (ROOT / "docs/integrations/remote.md").read_text(encoding="utf-8")
    [block] = [block for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) if block.startswith("ffmpeg")]
    command = block.replace("\\\n", " ").replace("http://127.0.0.1:8000", page).replace("rtsp://127.0.0.1:8554", server)
    return [*shlex.split(command), "-loglevel", "error"]


@pytest.fixture
def media_server(tmp_path):
    """Start a media server; return its address and the folder of its images."""
    probe = [SYSTEM_PYTHON, "-c", "import gi; gi.require_version('GstRtspServer', '1.0')"]
    if shutil.which("ffmpeg") is None or subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip("needs ffmpeg and GStreamer's RTSP server (tests/system-packages.txt)")
    command = [SYSTEM_PYTHON, str(Path(__file__).with_name("gst_record_server.py")), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            yield f"rtsp://127.0.0.1:{server.stdout.readline().strip()}", tmp_path
        finally:
            server.kill()


def numbers_in(folder):
    """Return the numbers in the images that arrived whole, in their order."""
    images = [cv2.imread(str(path), cv2.IMREAD_COLOR_RGB) for path in sorted(folder.glob("*.jpg"))]
    marks = [footage.read(image) for image in images if image is not None]
    return [mark.number for mark in marks if mark is not None]


@pytest.mark.slow
@pytest.mark.rtsp
def test_documented_command_brings_the_drawn_images_to_a_media_server(media_server, overlaid):
    address, folder = media_server
    plain = np.full((240, 320, 3), 90, np.uint8)
    pause, deadline, number = threading.Event(), time.monotonic() + PROGRAM_SECONDS, 0
    with WebSink(WebSettings(uri="http://127.0.0.1:0")) as sink:
        sink.put(overlaid(plain))
        with subprocess.Popen(documented_command(sink.endpoint, address), stdin=subprocess.DEVNULL) as ffmpeg:
            try:
                while len(numbers_in(folder)) < 5:
                    assert ffmpeg.poll() is None, "ffmpeg has ended"
                    assert time.monotonic() < deadline
                    number += 1
                    overlay = overlaid(footage.paint(plain, number, 0), index=number)
                    sink.prepare(overlay)
                    sink.put(overlay)
                    sink.idle()
                    pause.wait(0.05)
            finally:
                ffmpeg.kill()  # it waits for the next image before it obeys SIGTERM
                ffmpeg.wait(PROGRAM_SECONDS)
    numbers = numbers_in(folder)
    assert numbers == sorted(numbers)
    assert len(set(numbers)) >= 3

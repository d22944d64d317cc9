"""Industrial cameras by Aravis: a camera of its own speaks GigE Vision over the loopback interface."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from commands.wiring.cameras import make_cameras
from commands.wiring.kinds import load_config
from pipeline.errors import ConnectionLostError, SourceError
from stream import diagnostics
from stream.genicam import aravis, libaravis
from stream.genicam.aravis import library
from stream.genicam.formats import CODES, ENCODINGS, unpacked
from stream.reconnect import Backoff
from stream.sources import build_source
from tests.support.limits import LIMIT_SECONDS

_PORT = f":{3956:04X}"
PROGRAM, ADDRESS = "arv-fake-gv-camera-0.8", "127.0.0.1"
_SMALL = "Width=96&Height=64&AcquisitionFrameRate=50"
"""Few packets: a busy machine loses none."""


@pytest.mark.parametrize(("serial", "words"), [("", "there is no camera; "), ("77", "there is no camera 77; ")])
def test_camera_that_is_not_found_is_named_with_those_that_are(serial, words):
    lib = SimpleNamespace(arv_update_device_list=lambda: None, arv_get_n_devices=lambda: 0)
    with pytest.raises(ConnectionError, match=f"^{words}Aravis finds none$"):
        aravis._find(lib, serial)


@contextlib.contextmanager
def _lock():
    """Hold the port of GigE Vision, 3956, which cannot be chosen: only one camera runs on a machine."""
    with (Path(tempfile.gettempdir()) / "recipro-stream-gige-vision.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _camera(*options):
    """Run a camera that listens at its port, and that ends with this process."""
    command = ["setpriv", "--pdeathsig", "KILL", PROGRAM, "-i", ADDRESS, "-s", "GV7", *options]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as program:
        try:
            until = time.monotonic() + LIMIT_SECONDS
            while _PORT not in Path("/proc/net/udp").read_text(encoding="utf-8"):
                assert program.poll() is None
                assert time.monotonic() < until
                time.sleep(0.01)
            yield
        finally:
            program.kill()


@pytest.fixture(scope="module")
def port():
    if shutil.which(PROGRAM) is None or library() is None:
        pytest.skip(f"needs {PROGRAM} (Debian: aravis-tools)")
    with _lock():
        library().arv_update_device_list()  # opens what the library keeps
        yield


@pytest.fixture
def camera(port):
    with _camera():
        yield


@contextlib.contextmanager
def _opened(uri, **options):
    """Yield a source and its frames."""
    options = {"producer": "aravis", "read_timeout_seconds": 60, **options}
    stop = threading.Event()
    with build_source(uri, **options) as source:
        source._backoff = Backoff(0.01, 0.02, 0.02)
        frames = source.frames(stop)
        yield source, frames
        frames.close()


def _painted(image):
    """Return the number in the camera's picture, a diagonal ramp that moves by one each frame, modulo 255.

    A picture in which a packet is missing has no number.
    """
    rows, columns = np.indices(image.shape[:2])
    number = int(image[0, 0, 0])
    assert np.array_equal(image[..., 0], (rows + columns + number) % 255), "the image is whole"
    return number


def _check_numbers(frames):
    numbers = [_painted(frame.image) for frame in frames]
    assert [(number - numbers[0]) % 255 for number in numbers] == [frame.index - frames[0].index for frame in frames]


def test_camera_is_read_by_its_serial_number_with_its_features(camera):
    uri = f"genicam:GV7?PixelFormat=Mono8&{_SMALL}"
    with _opened(uri) as (source, frames):
        taken = list(itertools.islice(frames, 8))
    assert {frame.image.shape for frame in taken} == {(64, 96, 3)}
    _check_numbers(taken)
    times = [frame.pts_seconds for frame in taken]
    assert times[0] == 0
    assert times == sorted(set(times)), "the camera's own time"
    assert (source.camera, source.health.state, source.live) == ("genicam-GV7", "live", True)


@pytest.mark.parametrize(
    ("feature", "rule"),
    [
        ("Widht=320", "has no feature 'Widht'. Did you mean 'Width'"),
        ("Width=9999", "Width=9999: should be from 1 to 2048"),
        ("Width=wide", "Width=wide: should be a number"),
        ("PixelFormat=Nope", "PixelFormat=Nope: should be one of BayerBG8, "),
    ],
)
def test_feature_that_cannot_be_set_is_refused_with_the_rule(camera, feature, rule):
    with pytest.raises(SourceError) as refusal, _opened(f"genicam:{ADDRESS}?{feature}") as (_, frames):
        next(frames)
    assert rule in str(refusal.value)


def test_image_with_lost_packets_is_counted_and_never_delivered(port):
    with _camera("-r", "100"), _opened(f"genicam:{ADDRESS}?{_SMALL}") as (source, frames):
        taken = []
        while source.health.corrupt < 3 or len(taken) < 3:
            taken.append(next(frames))
    _check_numbers(taken)


@pytest.mark.slow
def test_camera_that_is_killed_and_started_again_is_opened_again(port, caplog):
    uri = f"genicam:{ADDRESS}?{_SMALL}"
    with contextlib.ExitStack() as second, _opened(uri, read_timeout_seconds=1) as (source, frames):
        with _camera():
            first = next(frames)
        second.enter_context(_camera())
        again = (frame for frame in frames if source.health.reconnects)
        taken = list(itertools.islice(again, 4))
        frames.close()  # before the camera ends, which would answer after seconds
    assert [frame.index for frame in taken] == sorted({frame.index for frame in taken})
    assert first.index < taken[0].index
    _check_numbers(taken)
    assert "reopening it" in caplog.text


def test_camera_that_is_not_there_is_named_with_those_that_are(camera):
    with pytest.raises(ConnectionLostError, match=r"no camera 77; Aravis finds GV7 \(attempt 1 of 1\)"):  # noqa: SIM117
        with _opened("genicam:77", attempts=1) as (_, frames):
            next(frames)


@pytest.fixture
def without_aravis(monkeypatch):
    monkeypatch.setattr(libaravis, "LIBRARY", "libaravis-that-is-missing.so")
    library.cache_clear()
    yield
    library.cache_clear()


def test_missing_library_is_named_with_the_remedy(without_aravis, monkeypatch):
    monkeypatch.delenv("GENICAM_GENTL64_PATH", raising=False)
    [camera] = make_cameras(load_config({"sources": ["genicam:1"]}, "run.yaml"))
    for source in (camera.source, build_source("genicam:1", producer="aravis")):
        with pytest.raises(SourceError, match=r"apt install libaravis-0\.8-0.*GENICAM_GENTL64_PATH"):
            source.__enter__()
    [found] = [each for each in diagnostics.diagnostics() if each.name == "Aravis"]
    assert not found.present
    assert "apt install libaravis-0.8-0" in found.hint


class _LostCamera:
    """The library, with a camera that does not answer."""

    def __getattr__(self, name):
        return lambda *_arguments: 0


def test_lost_camera_is_noticed_although_it_waits_for_a_trigger():
    device = aravis._AravisDevice("genicam:1", _LostCamera(), 1)
    device._lib.arv_camera_is_gv_device = lambda _camera: 1
    with pytest.raises(ConnectionError, match="disconnected, or another program controls it"):
        device.check()
    device._checked_at = device._heard_at = float("-inf")
    with pytest.raises(ConnectionError, match="disconnected, or another program controls it"):
        device.fetch(0.0)


def test_every_code_has_a_format_that_is_read():
    assert len(set(CODES.values())) == len(CODES)
    assert set(CODES.values()) == ENCODINGS.keys()


@pytest.mark.parametrize(
    "name", ["Mono10p", "Mono12p", "Mono10Packed", "Mono12Packed", "BayerRG12p", "BayerGB10Packed"]
)
def test_packed_pixels_are_unpacked_as_by_harvesters(name):
    pfnc = pytest.importorskip("harvesters.util.pfnc")
    packed = np.random.default_rng(3).integers(0, 256, 60, np.uint8)
    expected = getattr(pfnc, name)().expand(packed)
    assert np.array_equal(np.frombuffer(unpacked(name, packed.tobytes()), "<u2"), expected)


def test_bytes_of_other_formats_stay():
    assert unpacked("Mono16", b"abcd") == b"abcd"

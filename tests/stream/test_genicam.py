"""Industrial cameras, by the GenTL producer with simulated cameras that comes with the package genicam."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest

pytest.importorskip("genicam")
pytest.importorskip("harvesters")

import genicam
from genicam.gentl import IoException
from harvesters.core import ImageAcquirer

from commands.wiring.cameras import make_cameras
from commands.wiring.kinds import load_config
from pipeline.errors import ConnectionLostError, SourceError
from stream.genicam import gentl
from stream.genicam.formats import ENCODINGS
from stream.pixels import is_convertible
from stream.reconnect import Backoff
from stream.sources import SOURCES, build_source

PRODUCER = str(Path(genicam.__file__).with_name("viky.cti"))


@pytest.fixture
def take():
    """Return a function that reads some frames of a camera."""

    def frames_of(uri, count=4, **options):
        stop = threading.Event()
        with build_source(uri, producer=PRODUCER, **options) as source:
            source._backoff = Backoff(0.01, 0.02, 0.02)
            frames = source.frames(stop)
            taken = list(itertools.islice(frames, count))
            stop.set()
            list(frames)
        return taken, source

    return frames_of


def test_camera_gives_frames_in_order_with_its_features(take):
    frames, source = take("genicam:1?PixelFormat=Mono8&Width=320&AcquisitionFrameRate=100")
    assert [frame.image.shape for frame in frames] == [(400, 320, 3)] * 4
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert all((frame.image[:, :, 0] == frame.image[:, :, 2]).all() for frame in frames)
    assert all(later.captured_at > earlier.captured_at for earlier, later in itertools.pairwise(frames))
    assert (source.camera, source.uri, source.health.state, source.live) == ("genicam-1", "genicam:1", "live", True)
    assert len({frame.image.tobytes() for frame in frames}) > 1, "the image moves"


def test_camera_without_a_serial_number_is_the_first(take):
    frames, source = take("genicam:", 1)
    assert frames[0].image.shape == (400, 400, 3)
    assert source.camera == "genicam-first"


@pytest.mark.parametrize(
    ("feature", "rule"),
    [
        ("Widht=320", "has no feature 'Widht'. Did you mean 'Width'"),
        ("Width=9999", "Width=9999: should be from 100 to 800"),
        ("Width=wide", "Width=wide: should be a number"),
        ("PixelFormat=Nope", "PixelFormat=Nope: should be one of RGBa8, Mono8"),
    ],
)
def test_feature_that_cannot_be_set_is_refused_with_the_rule(take, feature, rule):
    with pytest.raises(SourceError) as refusal:
        take(f"genicam:0?{feature}")
    assert rule in str(refusal.value)


def test_camera_that_is_not_there_is_named_with_those_that_are(take):
    with pytest.raises(ConnectionLostError, match=r"no camera 77; the producer finds 0, 1, 2 \(attempt 2 of 2\)"):
        take("genicam:77", attempts=2)


@pytest.mark.parametrize("given", [1, 2])
def test_lost_camera_is_opened_again_and_its_frames_continue(take, monkeypatch, given):
    fetch, calls = ImageAcquirer.try_fetch, itertools.count()

    def lost_once(self, **options):
        if next(calls) == given:
            raise IoException("the cable is gone", 0)
        return fetch(self, **options)

    monkeypatch.setattr(ImageAcquirer, "try_fetch", lost_once)
    frames, source = take("genicam:2?AcquisitionFrameRate=100", 5)
    indices = [frame.index for frame in frames]
    assert indices == sorted(set(indices))
    assert source.health.reconnects == 1


def test_silent_camera_is_lost_and_a_triggered_one_is_not(take, monkeypatch):
    monkeypatch.setattr(ImageAcquirer, "try_fetch", lambda _self, **_options: None)
    with pytest.raises(ConnectionLostError, match=r"no image for 0\.05 s"):
        take("genicam:0", attempts=1, read_timeout_seconds=0.05)
    source = build_source("genicam:0?TriggerMode=On", producer=PRODUCER)
    source._set_live()
    assert source.min_silence_seconds == float("inf")
    source._settings = source._settings.model_copy(update={"attempts": 1})
    with pytest.raises(ConnectionLostError):
        source._wait("the cable is gone", 1, threading.Event(), 10.0)
    assert source.min_silence_seconds == 0.0


def test_cameras_of_one_producer_run_together_and_one_that_returns_disturbs_no_other():
    stop = threading.Event()
    uri = "genicam:{}?AcquisitionFrameRate=100"
    with build_source(uri.format(1), producer=PRODUCER) as one, build_source(uri.format(2), producer=PRODUCER) as two:
        first, second = one.frames(stop), two.frames(stop)
        seen = [(next(first).index, next(second).index) for _ in range(3)]
        second.close()
        with build_source(uri.format(2), producer=PRODUCER) as again:
            third = again.frames(stop)
            seen += [(next(first).index, next(third).index + 1_000_000) for _ in range(3)]
            third.close()
        first.close()
    assert [index for index, _ in seen] == sorted({index for index, _ in seen})
    assert [index for _, index in seen] == sorted({index for _, index in seen})
    assert one.health.reconnects == 0
    assert not gentl._LOADED, "the producer is unloaded"


def test_camera_in_use_is_waited_for(take):
    stop = threading.Event()
    with build_source("genicam:0", producer=PRODUCER) as holder:
        frames = holder.frames(stop)
        next(frames)
        with pytest.raises(ConnectionLostError, match=r"already in use.*no other program uses the camera"):
            take("genicam:0", attempts=1)
        frames.close()
    assert len(take("genicam:0", 1)[0]) == 1


def test_incomplete_images_are_counted(take, monkeypatch):
    fetch, calls = ImageAcquirer.try_fetch, itertools.count()

    def incomplete_twice(self, **options):
        if next(calls) in {1, 2}:
            self._emit_callbacks(self.Events.INCOMPLETE_BUFFER)
            return None
        return fetch(self, **options)

    monkeypatch.setattr(ImageAcquirer, "try_fetch", incomplete_twice)
    _, source = take("genicam:0?AcquisitionFrameRate=100")
    assert source.health.corrupt == 2


def test_every_pixel_format_can_be_converted():
    assert all(is_convertible(encoding) for encoding in ENCODINGS.values())


def test_options_in_the_address_and_in_a_configuration_are_the_same():
    uri = "genicam:21?ExposureTime=5000&TriggerMode=On&read_timeout_seconds=9"
    features = {"ExposureTime": 5000, "TriggerMode": "On"}
    written = SOURCES.parse({"uri": "genicam:21", "features": features, "read_timeout_seconds": 9})
    assert SOURCES.settings(uri) == written
    assert written.features == {"ExposureTime": "5000", "TriggerMode": "On"}
    with pytest.raises(SourceError, match="unknown key"):
        SOURCES.settings("genicam:21?exposure=5")


def test_producer_is_that_of_the_environment_where_none_is_given(monkeypatch, tmp_path):
    config = load_config({"sources": ["genicam:1"]}, "run.yaml")
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(tmp_path))
    with pytest.raises(SourceError, match="contains no GenTL producer"), make_cameras(config)[0].source:
        pass
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(tmp_path / "none.cti"))
    with pytest.raises(SourceError, match=r"none\.cti: no such file or folder"), make_cameras(config)[0].source:
        pass
    monkeypatch.setenv("GENICAM_GENTL64_PATH", str(Path(PRODUCER).parent))
    with make_cameras(config)[0].source as source:
        assert PRODUCER in map(str, source._transport.files(source.uri))

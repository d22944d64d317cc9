import os
import threading

import pytest

from pipeline.errors import SourceError
from stream.camera import CameraSource, _descriptor_of, found_cameras
from stream.network import Timeouts

PATIENCE = Timeouts(open_timeout_seconds=1.0, read_timeout_seconds=1.0, attempts=1)


def test_camera_missing_is_refused_with_list_of_cameras(tmp_path):
    for name in ("video0", "video10", "video2", "video-dec", "null"):
        (tmp_path / name).touch()
    source = CameraSource(7, camera="door", timeouts=PATIENCE, devices=tmp_path)
    with pytest.raises(SourceError, match=r"camera:7: .*video7 does not exist; available cameras: 0, 2, 10"), source:
        pass
    assert [p.name for p in found_cameras(tmp_path)] == ["video0", "video2", "video10"]


def test_camera_error_without_any_camera_has_hint(tmp_path):
    source = CameraSource(0, camera="door", timeouts=PATIENCE, devices=tmp_path)
    with pytest.raises(SourceError, match="no camera found: connect a camera, or use the simulated line:"), source:
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may open everything")
def test_camera_without_permission_names_group(tmp_path):
    (tmp_path / "video0").touch(mode=0)
    source = CameraSource(0, camera="door", timeouts=PATIENCE, devices=tmp_path)
    with pytest.raises(SourceError, match="usermod -aG video"), source:
        pass


def test_camera_that_is_no_video_device_fails_when_read(tmp_path):
    (tmp_path / "video0").write_text("not a device")
    source = CameraSource(0, camera="door", timeouts=PATIENCE, devices=tmp_path)
    with source, pytest.raises(SourceError, match="camera:0: "):
        list(source.frames(threading.Event()))


def test_descriptor_of_open_device_is_found(tmp_path):
    path = tmp_path / "video0"
    path.touch()
    assert _descriptor_of(path) is None
    with path.open() as device:
        assert _descriptor_of(path) == device.fileno()

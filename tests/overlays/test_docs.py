"""The examples of the documents are true: they run."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import threading
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest

from overlays.sinks.registry import build_sink
from overlays.sinks.settings import CurveSettings, ZeroMqSettings
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.curve.keys import create_keyring
from pipeline.ports import Sink
from tests.support.limits import LIMIT_SECONDS, PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
VIEWING = [block for block in PYTHON if "Viewer(" in block]
ENGINE = [block for block in PYTHON if "from engine" in block]
SINK = [block for block in PYTHON if "lamp_sink.py" in block]
PACKAGE = [block for kind, block in BLOCKS if kind == "toml"]


def test_every_example_is_run_by_a_test():
    assert len(VIEWING) == 4
    assert (len(ENGINE), len(SINK), len(PACKAGE)) == (2, 1, 1)
    assert len(PYTHON) == len(VIEWING) + len(ENGINE) + len(SINK)


@pytest.mark.parametrize("example", ENGINE, ids=["explainer", "method"])
def test_an_example_of_the_engine_explains_a_picture(example, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.full((120, 160, 3), 90, np.uint8))
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{example}"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=PROGRAM_SECONDS)
    assert done.returncode == 0, done.stderr
    if "photo.jpg" in example:
        assert len(done.stdout.splitlines()) > 1
        assert cv2.imread(str(tmp_path / "explained.jpg")).shape == (120, 160, 3)
    else:
        assert done.stdout == "torch.Size([2, 1000]) torch.Size([2, 6, 6])\n"


def test_the_sink_of_the_document_is_a_sink_that_tells_a_lamp(tmp_path, monkeypatch, overlaid):
    project = tomllib.loads(PACKAGE[0])["project"]
    entries = project["entry-points"]["recipro_stream.sinks"]
    told = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    told.mkdir()
    (told / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (told / "entry_points.txt").write_text("\n".join(["[recipro_stream.sinks]", *lines]))
    (tmp_path / "lamp_sink.py").write_text(SINK[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lamp:
        lamp.bind(("127.0.0.1", 0))
        lamp.settimeout(LIMIT_SECONDS)
        with build_sink(f"lamp://127.0.0.1:{lamp.getsockname()[1]}") as sink:
            assert isinstance(sink, Sink)
            sink.put(overlaid(label="scratch", score=0.9))
            assert lamp.recv(100) == b"scratch 0.90"
    sys.modules.pop("lamp_sink")


class EnoughError(Exception):
    """Ends an example that would go on."""


@pytest.mark.parametrize("example", VIEWING, ids=lambda text: text.splitlines()[2][:60])
def test_an_example_of_the_viewer_prints_what_comes(example, tmp_path, monkeypatch, overlaid):
    create_keyring(tmp_path)
    (tmp_path / "viewer.key").write_bytes((tmp_path / "allowed" / "viewer.key").read_bytes())
    monkeypatch.chdir(tmp_path)
    settings = ZeroMqSettings(uri="tcp://127.0.0.1:0")
    if "key=" in example:
        curve = CurveSettings(secret_key_file=str(tmp_path / "server.key_secret"), authorized_keys="allowed")
        settings = settings.model_copy(update={"curve": curve})
    printed, stop = [], threading.Event()

    def say(*words):
        printed.append(" ".join(map(str, words)))
        if len(printed) == 2:
            raise EnoughError

    with ZeroMqSink(settings) as sink:

        def put():
            index = 0
            while not stop.wait(0.02):
                index += 1
                sink.put(overlaid(camera="door", index=index))

        putting = threading.Thread(target=put)
        putting.start()
        try:
            with pytest.raises(EnoughError):
                exec(re.sub(r"tcp://[\w.-]+:5555", sink.endpoint, example), {"print": say})  # noqa: S102 - our own text
        finally:
            stop.set()
            putting.join()
    assert printed[0].startswith("door")

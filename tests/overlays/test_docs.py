"""The examples of the documents are true: they run."""

from __future__ import annotations

import re
import socket
import sys
import threading
import tomllib
from pathlib import Path

import cv2
import numpy as np
import pytest

from commands.wiring.kinds import load_config
from commands.wiring.run import make_sources
from overlays.sinks.registry import build_sink
from overlays.sinks.settings import CurveSettings, ZeroMqSettings
from overlays.sinks.zeromq import ZeroMqSink
from overlays.wire.curve.keys import create_keyring
from pipeline.errors import ConfigError, SourceError
from pipeline.ports import Sink, Source
from tests.support.limits import LIMIT_SECONDS

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.DOTALL)
PYTHON = [block for kind, block in BLOCKS if kind == "python"]
VIEWING = [block for block in PYTHON if "Viewer(" in block]
ENGINE = [block for block in PYTHON if "NetworkExplainer(" in block or "recipro_cam(" in block]
SINK = [block for block in PYTHON if "lamp_sink.py" in block]
SOURCE = [block for block in PYTHON if "bar_source.py" in block]
PACKAGE = [block for kind, block in BLOCKS if kind == "toml"]


def test_documentation_examples_are_all_tested():
    assert len(VIEWING) == 4
    assert (len(ENGINE), len(SINK), len(SOURCE), len(PACKAGE)) == (2, 1, 1, 2)
    assert len(PYTHON) == len(VIEWING) + len(ENGINE) + len(SINK) + len(SOURCE)


@pytest.mark.slow
@pytest.mark.parametrize("example", ENGINE, ids=["explainer", "method"])
def test_documentation_example_of_the_engine_explains_an_image(example, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.full((120, 160, 3), 90, np.uint8))
    exec(compile(example, "python.md", "exec"), {})  # noqa: S102 - our own document
    output = capsys.readouterr().out
    if "photo.jpg" in example:
        assert len(output.splitlines()) > 1
        assert cv2.imread(str(tmp_path / "explained.jpg")).shape == (120, 160, 3)
    else:
        assert output == "torch.Size([2, 1000]) torch.Size([2, 6, 6])\n"


def install(tmp_path, monkeypatch, code, package):
    """Install a package as an installer leaves it, from the document's blocks."""
    project = tomllib.loads(package)["project"]
    info = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines))
    (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_documentation_sink_sends_above_its_own_threshold(tmp_path, monkeypatch, overlaid):
    install(tmp_path, monkeypatch, SINK[0], PACKAGE[0])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as lamp:
        lamp.bind(("127.0.0.1", 0))
        lamp.settimeout(LIMIT_SECONDS)
        uri = f"lamp://127.0.0.1:{lamp.getsockname()[1]}"
        [settings] = load_config({"sinks": [{"uri": uri, "min_score": 0.8}]}, "run.yaml").sinks
        with build_sink(settings) as sink:
            assert isinstance(sink, Sink)
            sink.put(overlaid(label="dent", score=0.7))
            sink.put(overlaid(label="scratch", score=0.9))
            assert lamp.recv(100) == b"scratch 0.90"
        with pytest.raises(ConfigError, match=r"sinks\[0\]\.min_score: 2: should be less than or equal to 1"):
            load_config({"sinks": [{"uri": uri, "min_score": 2}]}, "run.yaml")
        with pytest.raises(ConfigError, match=r"sinks\[0\]\.min_scor: unknown key\. Did you mean 'min_score'"):
            load_config({"sinks": [{"uri": uri, "min_scor": 1}]}, "run.yaml")
        with pytest.raises(ConfigError, match=r"min_score: is not an option of a JSON log .*; lamp:// have it"):
            load_config({"sinks": [{"uri": "a.jsonl", "min_score": 1}]}, "run.yaml")
    sys.modules.pop("lamp_sink")


def test_documentation_source_gives_frames_with_its_own_options(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, SOURCE[0], PACKAGE[1])
    config = load_config({"sources": [{"uri": "bar://demo", "width": 32, "count": 3, "name": "door"}]}, "run.yaml")
    [(source, overflow)] = make_sources(config)
    assert isinstance(source, Source)
    with source:
        frames = list(source.frames(threading.Event()))
    assert (overflow, [frame.image.shape for frame in frames]) == (None, [(32, 32, 3)] * 3)
    assert {frame.camera for frame in frames} == {"door"}
    with pytest.raises(ConfigError, match=r"sources\[0\]\.width: 1: should be greater than or equal to 16"):
        load_config({"sources": [{"uri": "bar://demo", "width": 1}]}, "run.yaml")
    with pytest.raises(SourceError, match="Did you mean 'bar'"):
        load_config({"sources": ["bra://demo"]}, "run.yaml")
    sys.modules.pop("bar_source")


class EnoughError(Exception):
    """Ends an example that would run without end."""


@pytest.mark.parametrize("example", VIEWING, ids=lambda text: text.splitlines()[2][:60])
def test_documentation_example_of_the_viewer_prints_findings(example, tmp_path, monkeypatch, overlaid):
    create_keyring(tmp_path)
    (tmp_path / "viewer.key").write_bytes((tmp_path / "allowed" / "viewer.key").read_bytes())
    monkeypatch.chdir(tmp_path)
    settings = ZeroMqSettings(uri="tcp://127.0.0.1:0")
    if "key=" in example:
        curve = CurveSettings(secret_key_file=str(tmp_path / "server.key_secret"), authorized_keys="allowed")
        settings = settings.model_copy(update={"curve": curve})
    printed, stop = [], threading.Event()

    def say(*arguments):
        printed.append(" ".join(map(str, arguments)))
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


DRIVING = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs/integrations/driving.md").read_text("utf-8"), re.DOTALL)


def test_documentation_reader_of_mcap_prints_each_heat_map(tmp_path, monkeypatch, overlaid, capsys):
    pytest.importorskip("mcap_protobuf")
    [example] = [block for kind, block in DRIVING if kind == "python"]
    monkeypatch.chdir(tmp_path)
    with build_sink("out.mcap") as sink:
        for index in range(3):
            sink.put(overlaid(index=index, taken_at=float(index)))
    exec(compile(example, "driving.md", "exec"), {})  # noqa: S102 - our own document
    assert [line.split()[1:] for line in capsys.readouterr().out.splitlines()] == [["4", "3", "48"]] * 3

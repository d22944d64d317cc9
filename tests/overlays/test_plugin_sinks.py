"""Sinks of other packages: found by entry points, checked when they are built, and used like built-in sinks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from overlays.sinks.registry import SINKS, build_sink, plugin_sinks
from pipeline.errors import SinkError

ROOT = Path(__file__).resolve().parents[2]

CSV = """
import csv

from pipeline.settings import SinkSettings
from recipro_stream import Sink

class CsvSettings(SinkSettings):
    delimiter: str = ","

class CsvSink(Sink):
    lossless = True
    settings_model = CsvSettings
    def __init__(self, settings, context):
        self.uri = settings.uri
        self._delimiter = settings.delimiter
    def __enter__(self):
        self._file = open(self.uri, "w", newline="")
        self._rows = csv.writer(self._file, delimiter=self._delimiter)
        return self
    def __exit__(self, *_):
        self._file.close()
    def put(self, overlay):
        top = overlay.explanation.first
        self._rows.writerow([overlay.explanation.frame.camera, overlay.explanation.frame.index, top.label, top.score])

class Half(Sink):
    pass

def half(settings, context):
    return Half()

class Alien:
    uri, lossless = "alien://", True

def alien(settings, context):
    return Alien()

class Nameless(Sink):
    def put(self, overlay):
        pass

def nameless(settings, context):
    return Nameless()

def angry(settings, context):
    raise RuntimeError(f"no licence for {settings.uri}" if "@" in settings.uri else "no licence")
"""

ENTRIES = """
[recipro_stream.sinks]
.csv = acme_sinks:CsvSink
half:// = acme_sinks:half
alien:// = acme_sinks:alien
nameless:// = acme_sinks:nameless
angry:// = acme_sinks:angry
gone:// = acme_sinks:nothing
.mp4 = acme_sinks:CsvSink
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Write a package as an installer does: a module and its metadata."""
    site = tmp_path / "site"
    result = site / "acme_sinks-1.2.dist-info"
    result.mkdir(parents=True)
    (site / "acme_sinks.py").write_text(CSV)
    (result / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-sinks\nVersion: 1.2\n")
    (result / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(str(site))
    yield site
    sys.modules.pop("acme_sinks", None)


def test_package_adds_a_kind_by_its_entry_point(installed, tmp_path, overlaid):
    assert {entry.name for entry in plugin_sinks()} == {
        ".csv",
        "half://",
        "alien://",
        "nameless://",
        "angry://",
        "gone://",
    }
    path = tmp_path / "out.csv"
    with build_sink(str(path), cameras=["line"]) as sink:
        sink.put(overlaid(index=7, label="scratch", score=0.5))
    assert path.read_text() == "line,7,scratch,0.5\n"
    with build_sink(f"{path}?delimiter=;") as sink:
        sink.put(overlaid(index=7, label="scratch", score=0.5))
    assert path.read_text() == "line;7;scratch;0.5\n"
    with pytest.raises(SinkError, match=r"delimiter: is not an option of a JSON log \(\.jsonl\); \.csv have it"):
        build_sink("out.jsonl", delimiter=";")


def test_built_in_kinds_cannot_be_replaced(installed):
    assert type(build_sink("out.mp4")).__name__ == "VideoSink"
    assert ".mp4" in SINKS.having("crf")


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("half://x", r"acme-sinks failed to create it .TypeError: Can't instantiate abstract class Half .*put"),
        (
            "alien://x",
            r"the factory .sink of acme-sinks. returns a Alien, which is not a recipro_stream\.Sink; see docs/python",
        ),
        ("nameless://x", "the factory .sink of acme-sinks. returns a Nameless without uri; see docs/python"),
        ("angry://secret", "acme-sinks failed to create it .*no licence"),
        ("angry://user:secret@host", "acme-sinks failed to create it .RuntimeError: message not shown"),
        ("gone://x", "acme-sinks cannot be used .*nothing"),
        ("out.cvs", r"Did you mean '\.csv'"),
    ],
)
def test_package_that_violates_the_interface_is_named(installed, uri, message):
    with pytest.raises(SinkError, match=message) as refused:
        build_sink(uri)
    assert "secret" not in str(refused.value)


@pytest.mark.slow
def test_command_line_accepts_a_plugin_and_doctor_lists_it(installed, command, tmp_path):
    source = "line:?fps=30&size=320x240&seed=3&frames=20&paced=0"
    arguments = ["stream", "--source", source, "--backend", "eager", "--sink", str(tmp_path / "out.csv")]
    code, _, errors = command(*arguments)
    assert code == 0, errors
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 20
    _, output, _ = command("doctor")
    assert ".csv (acme-sinks)" in output
    assert "starlette" in output

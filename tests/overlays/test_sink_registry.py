from __future__ import annotations

import functools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from overlays.sinks.registry import SINKS, build_sink
from pipeline import kinds
from pipeline.errors import SinkError
from pipeline.kinds import Kind
from pipeline.ports import Sink
from pipeline.settings import SinkContext
from tests.support.kinds import example_of
from tests.support.limits import PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("uri", "kind", "lossless"),
    [
        ("window", "WindowSink", False),
        ("tcp://127.0.0.1:0", "ZeroMqSink", False),
        ("ipc:///tmp/overlays", "ZeroMqSink", False),
        ("http://127.0.0.1:0", "WebSink", False),
        ("mqtt://127.0.0.1/plant", "MqttSink", True),
        ("some/where.v2/out.mp4", "VideoSink", True),
        ("OUT.MKV", "VideoSink", True),
        ("out.jsonl", "JsonlSink", True),
        ("out.parquet", "ParquetSink", True),
        ("out.mcap", "McapSink", True),
        ("events.sqlite", "EventsSink", True),
        ("foxglove://127.0.0.1:0", "FoxgloveSink", False),
        ("modbus://127.0.0.1:0", "ModbusSink", True),
        ("opc.tcp://127.0.0.1:0/line", "OpcUaSink", True),
        ("rtsp://127.0.0.1/line", "PushSink", False),
        ("rtmp://127.0.0.1/live/line", "PushSink", False),
        ("rtsps://127.0.0.1/line", "PushSink", False),
        ("rtmps://127.0.0.1/live/line", "PushSink", False),
        ("clips/", "ClipSink", True),
        ("some/where.mp4/", "ClipSink", True),
    ],
)
def test_build_sink_makes_every_kind_without_opening_it(uri, kind, lossless):
    sink = build_sink(uri, cameras=["a"])
    assert type(sink).__name__ == kind
    assert isinstance(sink, Sink)
    assert sink.uri == uri
    assert sink.lossless is lossless


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("out.mp5", "Did you mean '.mp4'"),
        ("out.json", "Did you mean '.jsonl'"),
        ("windows", "Did you mean 'window'"),
        ("tpc://127.0.0.1:5555", "Did you mean 'tcp://'"),
        ("srt://127.0.0.1:8890", "such as MediaMTX, which serves SRT from it"),
        ("whip://127.0.0.1/line", "which serves WebRTC from it"),
        ("webrtc://127.0.0.1/line", "which serves WebRTC from it"),
        ("opcua://127.0.0.1", "an OPC UA server is opc.tcp://"),
        ("https://127.0.0.1:8000", "use a proxy for TLS"),
        ("out", "window, tcp://"),
        ("", "window, tcp://"),
    ],
)
def test_unknown_sink_is_refused_with_the_nearest_name(uri, message):
    with pytest.raises(SinkError) as refused:
        build_sink(uri)
    assert message in str(refused.value)


def test_password_in_an_unknown_uri_is_not_repeated():
    with pytest.raises(SinkError) as refused:
        build_sink("ftp://user:secret@host/out")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:99999",
        "tcp://127.0.0.1:22x",
        "tcp://:5555",
        "tcp://a b:1",
        "ipc://",
        "ipc://" + "a" * 200,
    ],
)
def test_misspelled_address_is_refused_at_once(uri):
    with pytest.raises(SinkError, match=r"tcp://|ipc://"):
        build_sink(uri)


OPTIONS = sorted({name for kind in SINKS.kinds for name in kind.settings.model_fields} - {"uri"})


@pytest.fixture(scope="module")
def packages_read_once():
    """Read the entry points of installed packages once; each refusal reads them anew, for a program that goes on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kinds, "entry_points", functools.cache(kinds.entry_points))
        yield


@pytest.mark.usefixtures("packages_read_once")
@pytest.mark.parametrize("option", OPTIONS)
def test_option_of_another_kind_is_refused_with_the_kinds_that_have_it(option):
    for kind in SINKS.kinds:
        uris = [example_of(key) for key in kind.keys]
        if option in kind.settings.model_fields:
            default = kind.settings.model_fields[option].default
            assert all(getattr(SINKS.settings(uri, **{option: default}), option) == default for uri in uris)
            continue
        with pytest.raises(SinkError, match=f"is not an option of a {kind.name}") as refused:
            SINKS.settings(uris[0], **{option: 1})
        for having in SINKS.having(option):
            assert having in str(refused.value)


def test_options_behind_a_path_set_the_fields(tmp_path):
    settings = SINKS.settings("out.mp4?crf=28&preset=fast")
    assert (settings.uri, settings.crf, settings.preset) == ("out.mp4", 28, "fast")
    clips = SINKS.settings("clips/?record_when=label=scratch%26score>0.5&rotate_seconds=60")
    assert (clips.uri, clips.record_when, clips.rotate_seconds) == ("clips/", "label=scratch&score>0.5", 60.0)
    there = tmp_path / "what?crf=1.mp4"
    there.touch()
    assert SINKS.settings(str(there)).uri == str(there)
    assert SINKS.settings("http://127.0.0.1:8000/?quality=5").quality == 80, "an address keeps its query"


@pytest.mark.parametrize(
    ("uri", "options", "message"),
    [
        ("out.mp4?crf=99", {}, "crf='99'.*less than or equal to 51"),
        ("out.mp4?crff=9", {}, "Did you mean 'crf'"),
        ("out.mp4?crf=9&crf=8", {}, "crf is given twice"),
        ("out.mp4?crf=9", {"crf": 8}, "crf is given in the URI and as a key"),
        ("out.mp4", {"preset": "fastish"}, "preset='fastish'"),
    ],
)
def test_wrong_option_names_the_sink_the_value_and_the_rule(uri, options, message):
    with pytest.raises(SinkError, match=message) as refused:
        build_sink(uri, **options)
    assert uri in str(refused.value)


def test_settings_are_frozen():
    settings = SINKS.settings("out.mp4")
    with pytest.raises(ValidationError, match="frozen"):
        settings.crf = 1


def test_sink_with_an_option_of_its_own_is_one_file_and_one_line(tmp_path, monkeypatch, overlaid):
    (tmp_path / "text_sink.py").write_text(TEXT_SINK)
    monkeypatch.syspath_prepend(str(tmp_path))
    from text_sink import TextSettings

    line = Kind("text file", (".txt",), TextSettings, "text_sink:TextSink")
    registry = replace(SINKS, kinds=(*SINKS.kinds, line))
    settings = registry.settings(f"{tmp_path}/out.txt?word=hello")
    with registry.build(settings, SinkContext()) as sink:
        sink.put(overlaid(label="scratch"))
    assert (tmp_path / "out.txt").read_text() == "hello scratch\n"
    with pytest.raises(SinkError, match=r"word: is not an option of a JSON log .*; \.txt have it"):
        registry.settings("out.jsonl", word="x")
    sys.modules.pop("text_sink")


TEXT_SINK = """
from pathlib import Path

from pipeline.settings import SinkSettings
from recipro_stream import Sink


class TextSettings(SinkSettings):
    word: str = "seen"


class TextSink(Sink):
    lossless = True

    def __init__(self, settings, context):
        self.uri, self._word = settings.uri, settings.word

    def put(self, overlay):
        Path(self.uri).write_text(f"{self._word} {overlay.explanation.first.label}\\n")
"""


EXTRAS = ("mcap", "google.protobuf", "foxglove", "pymodbus", "asyncua", "rosbags", "paho", "pyarrow", "cryptography")
VENDORS = (*EXTRAS, "zmq", "cv2", "av", "torch", "uvicorn", "starlette", "pygame")


def test_importing_the_registries_imports_no_vendor():
    code = (
        "import sys, overlays.sinks.registry as r, stream.sources as s; import overlays.render.colormaps; "
        "r.SINKS.settings('out.jsonl'); s.SOURCES.settings('line:'); "
        f"print([m for m in {VENDORS} if m in sys.modules]); "
        "r.build_sink('out.jsonl'); s.build_source('line:'); "
        f"print([m for m in {EXTRAS} if m in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=PROGRAM_SECONDS
    )
    assert completed.stdout.split() == ["[]", "[]"]

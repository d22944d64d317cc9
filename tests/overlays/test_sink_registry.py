from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from overlays.sinks.options import ClipOptions, MqttOptions
from overlays.sinks.registry import SINKS, SinkOptions, build_sink
from overlays.wire.curve.keys import create_keyring
from pipeline.errors import SinkError
from pipeline.ports import Sink
from tests.support.limits import PROGRAM_SECONDS

ROOT = Path(__file__).resolve().parents[2]
WIRES = {"tcp://127.0.0.1:5555", "ipc:///tmp/o"}


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
        ("clips/", "ClipSink", True),
        ("some/where.mp4/", "ClipSink", True),
    ],
)
def test_every_uri_becomes_its_door_without_opening_it(uri, kind, lossless):
    sink = build_sink(uri, cameras=["a"])
    assert type(sink).__name__ == kind
    assert isinstance(sink, Sink)
    assert sink.uri == uri
    assert sink.lossless is lossless


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("out.mp5", "Did you mean '.mp4'"),
        ("out.json", "Did you mean '.jsonl'"),
        ("windows", "Did you mean 'window'"),
        ("tpc://127.0.0.1:5555", "Did you mean 'tcp://'"),
        ("https://127.0.0.1:8000", "TLS is a proxy's business"),
        ("out", "window, tcp://"),
        ("", "window, tcp://"),
    ],
)
def test_an_unknown_door_is_refused_with_the_nearest_name(uri, said):
    with pytest.raises(SinkError) as refused:
        build_sink(uri)
    assert said in str(refused.value)


def test_a_password_in_an_unknown_uri_is_not_repeated():
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
def test_an_address_that_is_written_wrong_is_refused_at_once(uri):
    with pytest.raises(SinkError, match=r"tcp://|ipc://"):
        build_sink(uri)


@pytest.mark.parametrize(
    ("asked", "takers", "said"),
    [
        ({"clips": ClipOptions(when="score>0.5")}, {"clips/"}, "slash at its end"),
        ({"mqtt": MqttOptions(qos=1)}, {"mqtt://127.0.0.1/plant"}, "mqtts://broker"),
        (
            {"curve_secret_key_file": "keys/server.key_secret", "curve_authorized_keys": "keys/allowed"},
            {"tcp://127.0.0.1:5555", "ipc:///tmp/o"},
            "token_file",
        ),
        ({"token": "correct-horse-battery"}, {"http://127.0.0.1:8000"}, "curve"),
        ({"scale": 0.5}, WIRES, "scale is for"),
        ({"max_rate": 5.0}, WIRES | {"mqtt://127.0.0.1/plant"}, "max_rate is for"),
        ({"jpeg_quality": 50}, WIRES | {"http://127.0.0.1:8000"}, "quality is for"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(asked, takers, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create_keyring(tmp_path / "keys")
    doors = {"tcp://127.0.0.1:5555", "ipc:///tmp/o", "http://127.0.0.1:8000", "mqtt://127.0.0.1/plant", "clips/"}
    for uri in doors | {"window", "out.mp4", "out.jsonl", "out.parquet"}:
        if uri in takers:
            build_sink(uri, cameras=["a"], options=SinkOptions(**asked))
        else:
            with pytest.raises(SinkError, match=said):
                build_sink(uri, cameras=["a"], options=SinkOptions(**asked))


def test_importing_the_table_imports_no_vendor():
    code = (
        "import sys, overlays.sinks.registry; import overlays.render.colormaps; "
        "print([m for m in ('zmq', 'cv2', 'av', 'torch') if m in sys.modules])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=PROGRAM_SECONDS
    )
    assert said.stdout.strip() == "[]"


def test_options_are_plain_values_with_defaults():
    assert SinkOptions().jpeg_quality == 80
    schemes = {"tcp://", "ipc://", "http://", "mqtt://", "mqtts://"}
    assert set(SINKS) == {"window", "/", ".mp4", ".mkv", ".jsonl", ".parquet"} | schemes

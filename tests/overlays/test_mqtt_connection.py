"""Connections of the MQTT sink to a real broker that comes late, restarts, stalls, or asks for a password or TLS."""

from __future__ import annotations

import gc
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("paho.mqtt.client")

from overlays.sinks.mqtt.sink import MAX_WAITING, MqttSink
from overlays.sinks.settings import MqttSettings
from pipeline.errors import DataLossError, SinkError
from pipeline.loop import Pipeline
from pipeline.ports import Explainer, Sink
from pipeline.result import RunLimits
from pipeline.settings import Secret
from tests.overlays.conftest import explain
from tests.support.broker import MOSQUITTO, Broker, free_port
from tests.support.certificates import make_certificate
from tests.support.fakes import FakeSource
from tests.support.mqtt import Listener, connected, open_sockets, telling

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="no MQTT broker: apt install mosquitto"),
    pytest.mark.usefixtures("quick_mqtt"),
]


def test_late_broker_receives_findings_kept_with_qos_1_only(tmp_path, overlaid, wait_until, caplog):
    late = Broker(tmp_path, "allow_anonymous true")
    with (
        telling(late.uri, qos=1) as careful,
        telling(late.uri.replace("plant", "other")) as careless,
    ):
        for index in range(MAX_WAITING + 10):
            for sink in (careful, careless):
                sink.put(overlaid(index=index))
        assert "Connection refused" in careful.problem
        assert careless.lost == MAX_WAITING + 10
        assert careful.lost == 10
        message = [r for r in caplog.records if "no connection to the broker" in r.getMessage()]
        assert len(message) == 2, "once each"
        with late, Listener(late.port) as listener:
            for sink in (careful, careless):
                connected(sink, wait_until)
            wait_until(lambda: careful.idle() or careless.idle() or len(listener.told("/finding")) == MAX_WAITING)
            assert listener.indices() == list(range(10, MAX_WAITING + 10))


def test_sink_reconnects_to_a_restarted_broker(tmp_path, overlaid, wait_until):
    path = Broker(tmp_path, "allow_anonymous true")
    with telling(path.uri, qos=1) as sink:
        with path, Listener(path.port) as listener:
            connected(sink, wait_until)
            sink.put(overlaid(index=1))
            wait_until(lambda: sink.idle() or listener.indices() == [1])
        wait_until(lambda: sink.idle() or sink.problem)
        sink.put(overlaid(index=2))
        with path, Listener(path.port) as listener:
            wait_until(lambda: sink.idle() or listener.indices() == [2])
            wait_until(lambda: sink.idle() or listener.told("/state"))
            assert listener.told("/status") == [b"online"]
    assert sink.lost == 0


KILLED = (
    "import sys, os, signal; sys.path.insert(0, 'tests/overlays'); from conftest import explain\n"
    "from overlays.sinks.mqtt.sink import MqttSink; from pipeline.frames import Overlay\n"
    "sink = MqttSink(sys.argv[1]).__enter__(); e = explain()\n"
    "while sink.problem: sink.put(Overlay(e.frame.image, e))\n"
    "print('there', flush=True); sys.stdin.read()"
)


def test_broker_publishes_the_will_of_a_killed_run(broker, wait_until):
    with Listener(broker.port) as listener:
        run = subprocess.Popen(
            [sys.executable, "-c", KILLED, broker.uri], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        with run:
            assert run.stdout.readline() == b"there\n"
            wait_until(lambda: listener.told("/status") == [b"online"])
            run.kill()
        wait_until(lambda: listener.told("/status") == [b"online", b"offline"])


class Counting(Sink):
    uri, lossless = "counting", True

    def __init__(self):
        self.got = 0

    def put(self, overlay):
        self.got += 1


class Explaining(Explainer):
    def explain(self, frames):
        return [explain(f.image, camera=f.camera, index=f.index, taken_at=f.captured_at) for f in frames]


@pytest.mark.parametrize("there", ["listening", "silent", "gone"])
def test_leaving_closes_all_sockets(broker, wait_until, there):
    if there == "silent":
        broker.process.send_signal(signal.SIGSTOP)
    uri = broker.uri if there != "gone" else f"mqtt://127.0.0.1:{free_port()}/plant"
    gc.collect()
    gc.disable()
    try:
        before = open_sockets()
        with telling(uri) as sink:
            sink.idle()
            if there == "listening":
                connected(sink, wait_until)
            assert there == "gone" or open_sockets() != before
        assert open_sockets() == before
    finally:
        gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "while"])
def test_stalled_broker_blocks_no_frame_and_memory_is_bounded(broker, overlaid, wait_until, when):
    other = Counting()
    sink = MqttSink(MqttSettings.model_construct(uri=broker.uri, max_rate=1e9, qos=1))
    with pytest.raises(DataLossError, match=r"not every finding reached the broker.* lost"), sink:  # noqa: PT012
        if when == "while":
            connected(sink, wait_until)
        broker.process.send_signal(signal.SIGSTOP)
        sources = [(FakeSource(3000, "line"), "wait")]
        Pipeline(sources, Explaining(), None, [sink, other], limits=RunLimits(), stop=threading.Event()).run()
        assert other.got == 3000
        assert len(sink._queue) <= MAX_WAITING
        assert len(sink._connection._unconfirmed) <= 20


def test_password_is_sent_and_refusals_are_reported_without_it(tmp_path, overlaid, wait_until, caplog):
    keeper = shutil.which("mosquitto_passwd")
    if keeper is None:
        pytest.skip("needs mosquitto_passwd")
    book = tmp_path / "book"
    subprocess.run([keeper, "-b", "-c", str(book), "eve", "hunter2-hunter2"], check=True, capture_output=True)
    if os.geteuid() == 0:
        book.chmod(0o644)
    caplog.set_level(logging.DEBUG)
    with Broker(tmp_path, "allow_anonymous false", f"password_file {book}") as broker:
        for login in ("eve:wrong-wrong", None):
            with telling(broker.uri, login=login) as sink:
                wait_until(lambda sink=sink: sink.idle() or "refuses the connection" in sink.problem)
                assert "uthori" in sink.problem
        with telling(broker.uri, login="eve:hunter2-hunter2") as sink:
            connected(sink, wait_until)
            shown = f"{Secret('eve:hunter2-hunter2')} {sink.uri} {sink._settings}"
    assert "hunter2" not in caplog.text + shown
    assert "wrong-wrong" not in caplog.text


# paho lets go of a socket whose handshake fails without closing it; it is closed when it is forgotten, at once.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_requires_a_valid_broker_certificate(tmp_path, overlaid, wait_until):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make_certificate(key, certificate, alternative="IP:127.0.0.1")
    key.chmod(0o644)
    tmp_path.chmod(0o755)
    with Broker(tmp_path, "allow_anonymous true", f"certfile {certificate}", f"keyfile {key}") as broker:
        uri = broker.uri.replace("mqtt:", "mqtts:")
        with telling(uri) as sink:
            wait_until(lambda: sink.idle() or "certificate" in sink.problem)
        with telling(uri, ca_file=str(certificate)) as sink:
            connected(sink, wait_until)
    with pytest.raises(SinkError, match=r"ca_file .*cannot be read"):
        MqttSink(MqttSettings(uri="mqtts://host/t", ca_file=str(tmp_path / "none")))
    with pytest.raises(SinkError, match=r"ca_file .*write mqtts://"):
        MqttSink(MqttSettings(uri="mqtt://host/t", ca_file=str(certificate)))


def test_password_in_the_address_is_refused_and_not_repeated():
    with pytest.raises(SinkError, match="--mqtt-credentials") as refused:
        MqttSink("mqtt://me:secret@host/t")
    assert "secret" not in str(refused.value)


def test_problem_is_reported_while_connecting():
    deaf = socket.create_server(("127.0.0.1", 0))
    with deaf, telling(f"mqtt://127.0.0.1:{deaf.getsockname()[1]}/t") as sink:
        sink.idle()
        assert "connecting to the broker" in sink.problem

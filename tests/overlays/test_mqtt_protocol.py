"""MQTT sink against scripted brokers: older versions, slow confirmations, hostile answers and limits."""

from __future__ import annotations

import contextlib
import socket
import threading

import pytest

paho = pytest.importorskip("paho.mqtt.client")

from overlays.sinks.mqtt import sink as mqtt_sink  # noqa: E402
from overlays.sinks.mqtt.sink import MqttSink  # noqa: E402
from overlays.sinks.settings import MqttSettings  # noqa: E402
from pipeline.errors import DataLossError  # noqa: E402
from pipeline.settings import SinkContext  # noqa: E402
from tests.support.broker import MOSQUITTO  # noqa: E402
from tests.support.limits import LIMIT_SECONDS  # noqa: E402
from tests.support.mqtt import connected, telling  # noqa: E402

pytestmark = [
    pytest.mark.skipif(MOSQUITTO is None, reason="no MQTT broker: apt install mosquitto"),
    pytest.mark.usefixtures("quick_mqtt"),
]


ACCEPTED_V5, ACCEPTED_V3 = b"\x20\x03\x00\x00\x00", b"\x20\x02\x00\x00"


class Scripted(threading.Thread):
    """A broker of a few bytes: answers each connection's first packet with what it is given, one after the other."""

    def __init__(self, *answers):
        super().__init__(daemon=True)
        self.door = socket.create_server(("127.0.0.1", 0))
        self.uri = f"mqtt://127.0.0.1:{self.door.getsockname()[1]}/plant"
        self.answers = answers
        self.versions = []

    def run(self):
        for answer in self.answers:
            try:
                link, _ = self.door.accept()
            except OSError:
                return
            with link:
                link.settimeout(LIMIT_SECONDS)
                try:
                    arguments = link.recv(4096)
                    self.versions.append(arguments[arguments.index(b"MQTT") + 4])
                    link.sendall(answer)
                    while link.recv(4096):
                        pass
                except OSError:
                    pass

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.door.shutdown(socket.SHUT_RDWR)  # wakes whoever waits for a connection
        self.door.close()
        self.join(LIMIT_SECONDS)


class Dripping(Scripted):
    """A broker that confirms one message after the other, each only after a while."""

    confirmed = 0

    def run(self):
        link, _ = self.door.accept()
        with link, contextlib.suppress(OSError):
            link.recv(4096)
            link.sendall(ACCEPTED_V5)
            for number in range(1, 1000):
                if self.leave.wait(0.05):
                    return
                link.sendall(b"\x40\x02" + number.to_bytes(2, "big"))
                self.confirmed += 1

    def __init__(self):
        super().__init__()
        self.leave = threading.Event()

    def __exit__(self, *_):
        self.leave.set()
        super().__exit__()


def test_broker_of_the_older_version_is_used_and_logged(overlaid, wait_until, caplog):
    with Scripted(b"\x20\x02\x00\x01", ACCEPTED_V3) as old, telling(old.uri) as sink:
        connected(sink, wait_until)
        assert old.versions == [5, 4]
        assert "MQTT 3.1.1" in sink.account
    assert "cannot report which findings it refuses" in caplog.text


def test_broker_that_closes_on_the_newer_version_is_retried_with_the_older(wait_until):
    with Scripted(b"\x20\x02\x00\x01", ACCEPTED_V3) as old, telling(old.uri) as sink:
        connected(sink, wait_until)
        assert old.versions == [5, 4]


def test_message_awaits_its_confirmation_when_the_connection_ends_while_it_is_published(wait_until, monkeypatch):
    def publish(*_arguments, **_options):
        sent = paho.MQTTMessageInfo(7)
        sent.rc = paho.MQTT_ERR_CONN_LOST
        return sent

    with Scripted(ACCEPTED_V5) as broker, telling(broker.uri, qos=1) as sink:
        connected(sink, wait_until)
        with monkeypatch.context() as patch:
            patch.setattr(sink._connection._client, "publish", publish)
            assert sink._connection._publish("plant/line", b"", qos=1, retain=False) == 7


@pytest.mark.slow
def test_slow_confirmations_do_not_delay_the_end(overlaid, wait_until, monkeypatch):
    monkeypatch.setattr(mqtt_sink, "_STALL_SECONDS", 2.0)
    monkeypatch.setattr(mqtt_sink, "_MIN_RATE", 1000.0)
    with Dripping() as position:
        sink = MqttSink(MqttSettings(uri=position.uri, qos=1), SinkContext(cameras=("parts",)))
        with pytest.raises(DataLossError, match="lost"), sink:  # noqa: PT012
            for index in range(900):  # 45 seconds
                sink.put(overlaid(camera="parts", index=index, source_name=f"{index}.jpg"))
            assert "not confirmed yet" in sink.account
        assert position.confirmed < 900
        assert sink.lost > 0


def test_unconfirmed_findings_of_files_are_lost_and_an_error(overlaid, wait_until, monkeypatch):
    monkeypatch.setattr(mqtt_sink, "_STALL_SECONDS", 0.5)
    sink = None
    with Scripted(ACCEPTED_V5) as mute, pytest.raises(DataLossError, match=r"0 findings accepted .* 3 lost"):  # noqa: PT012
        sink = MqttSink(mute.uri, SinkContext(("parts",)))
        with sink:
            connected(sink, wait_until)
            for index in range(3):
                sink.put(overlaid(camera="parts", index=index, source_name=f"{index}.jpg"))
            assert sink.account.endswith("3 not confirmed yet")
    assert sink.lost == 3


HOSTILE = {
    "a giant packet": (b"\x30\xff\xff\xff\x7f", "a packet of"),
    "a flood": (b"\x30\x05\x00\x01a\x00x" * 1000, "never asks for"),
    "a flood of qos 2": (b"\x34\x07\x00\x01a\x00\x01\x00x" * 1000, "never asks for"),
    "nonsense": (b"\xf0\x00", "never asks for"),
    "an endless length": (b"\x40\xff\xff\xff\xff\xff", ""),
    "a torn confirmation": (b"\x40\x01\x00", ""),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_broker_is_disconnected_before_its_data_is_stored(name, wait_until, overlaid):
    packet, message = HOSTILE[name]
    with Scripted(ACCEPTED_V5 + packet, ACCEPTED_V5) as hostile, telling(hostile.uri) as sink:
        wait_until(lambda: sink.idle() or (sink.problem and message in sink.problem and hostile.versions))
        assert len(sink._connection._client._in_packet["packet"]) < 1 << 17
        sink.put(overlaid())
        connected(sink, wait_until)


def test_findings_that_make_the_broker_disconnect_are_given_up(wait_until, overlaid, caplog):
    with Scripted(*[ACCEPTED_V5 + b"\xe0\x02\x95\x00"] * 12) as hostile:
        with (
            contextlib.suppress(DataLossError),
            telling(hostile.uri, qos=1) as sink,
        ):
            sink.put(overlaid())
            wait_until(lambda: sink.idle() or "unconfirmed messages are given up" in caplog.text, 20)
            assert sink.lost == 1
        assert len(caplog.records) <= 4


def test_finding_larger_than_the_brokers_limit_is_refused_and_not_sent(wait_until, overlaid):
    small = b"\x20\x08\x00\x00\x05\x27\x00\x00\x01\x00"  # MaximumPacketSize 256
    with Scripted(small) as index, pytest.raises(DataLossError, match="1 refused"), telling(index.uri) as sink:  # noqa: PT012
        connected(sink, wait_until)
        sink.put(overlaid())
        assert "it accepts at most 256 bytes" in sink.problem

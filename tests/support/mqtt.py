"""The MQTT sink as its tests start it, and a program that receives what it publishes."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from overlays.sinks.mqtt.sink import MqttSink
from overlays.sinks.settings import MqttSettings
from pipeline.settings import Secret, SinkContext
from tests.support.descriptors import open_things
from tests.support.limits import LIMIT_SECONDS


@contextmanager
def telling(uri: str, login: str | None = None, **options: Any) -> Iterator[MqttSink]:
    """Open a sink of one camera without a limit of its rate."""
    secrets = {} if login is None else {"credentials_file": Secret(login)}
    settings = MqttSettings.model_construct(uri=uri, **{"max_rate": 1e9, **options})
    sink = MqttSink(settings, SinkContext(("line",), secrets))
    with sink:
        yield sink


def open_sockets() -> set[str]:
    """Return the sockets that this process holds open."""
    return {name for name in open_things().values() if name.startswith("socket:")}


def connected(sink: MqttSink, wait_until: Callable[[Callable[[], bool]], None]) -> None:
    """Wait until the sink is connected."""
    wait_until(lambda: sink.idle() or not sink.problem)


class Listener:
    """Another program: receives all messages of a broker."""

    def __init__(self, port: int) -> None:
        from paho.mqtt import client as paho

        self.heard: list[tuple[str, bytes, bool]] = []
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.on_message = lambda _c, _d, result: self.heard.append((result.topic, result.payload, result.retain))
        self.client.on_connect = lambda client, *_: client.subscribe("#", qos=1)
        self.client.on_subscribe = lambda *_: self.ready.set()
        self.ready = threading.Event()
        self.port = port

    def __enter__(self) -> Self:
        self.client.connect("127.0.0.1", self.port)
        self.client.loop_start()
        assert self.ready.wait(LIMIT_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()
        self.client.reinitialise()  # closes its sockets

    def told(self, end: str) -> list[bytes]:
        """Return the payloads received so far under topics with this ending."""
        return [payload for topic, payload, _ in self.heard if topic.endswith(end)]

    def indices(self) -> list[int]:
        """Return the frame indices of the findings received so far."""
        return [json.loads(payload)["index"] for payload in self.told("/finding")]

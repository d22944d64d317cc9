"""The MQTT sink as its tests start it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from overlays.sinks.mqtt.sink import MqttSink
from overlays.sinks.settings import MqttSettings
from pipeline.settings import Secret, SinkContext
from tests.support.descriptors import open_things


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

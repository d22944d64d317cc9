"""Connection of the MQTT sink to its broker: connects, reconnects with back-off, publishes, counts confirmations.

Only ``loop`` waits for the broker, for at most the time that the caller gives.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final

from paho.mqtt.client import Client, error_string
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from overlays.sinks.mqtt.client import (
    CONNECT_SECONDS,
    UNSUPPORTED_VERSION,
    BrokerLimits,
    GuardedClient,
    connect,
    make_client,
)
from overlays.sinks.mqtt.counters import MqttCounts, QueuedFinding
from overlays.sinks.mqtt.messages import ONLINE, BrokerAddress
from overlays.sinks.settings import MqttSettings

log = logging.getLogger(__name__)

_RETRY_SECONDS: Final = (1.0, 30.0)
"""Wait before the next attempt to connect: first and maximum."""
_STEADY_SECONDS: Final = 10.0
"""After a connection of at least this duration, the wait starts again at its minimum."""
_MAX_FAILED_CONNECTIONS: Final = 5
"""Number of consecutive connections without a confirmation after which the unconfirmed messages are dropped."""
_MAX_LOGGED_REFUSALS: Final = 100
_PACKET_OVERHEAD_BYTES: Final = 16
_NO_ANSWER: Final = "it accepts the connection and does not answer"


class BrokerConnection:
    """Connection to one broker over MQTT 5, or over 3.1.1 if the broker does not support 5.

    All methods are for one thread at a time; ``is_connected``, ``is_v5`` and ``reason`` are for any thread.
    """

    def __init__(
        self,
        settings: MqttSettings,
        broker: BrokerAddress,
        login: tuple[str, str] | None,
        counts: MqttCounts,
        *,
        on_connect: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """Create the client; ``serve`` connects it.

        Args:
            settings: the sink's URI, the CA file and the name of the status topic.
            broker: the broker's address.
            login: user and password.
            counts: counts published, refused and lost findings.
            on_connect: called after each successful connection, before anything is published on it.
            clock: returns monotonic seconds.

        Raises:
            SinkError: the CA file cannot be read, or is given without TLS.
        """
        self.is_connected = False
        self.is_v5 = True
        self.reason = "not yet connected"
        """Reason why there is no connection; empty during an attempt to connect."""
        self._uri, self._broker, self._counts = settings.uri, broker, counts
        self._settings, self._login = settings, login
        self._on_connect, self._clock = on_connect, clock
        self._status = broker.status(settings.status_topic)
        self._unconfirmed: dict[int, QueuedFinding] = {}
        """Findings by the packet identifiers of their messages."""
        self._unconfirmed_notices: set[int] = set()
        """Packet identifiers of the other unconfirmed messages."""
        self._accepted: set[str] = set()
        """Topics under which the broker has accepted a finding on this connection."""
        self._logged_refusals: set[str] = set()
        self._logged_reason = ""
        self._limits = BrokerLimits()
        self._switch_version = False
        """True if the next attempt uses the other version of MQTT."""
        self._connected_at = float("-inf")
        self._failed_connections = 0
        """Number of consecutive connections that ended without a confirmation."""
        self._connecting_since: float | None = None
        self._retry_at, self._backoff_seconds = float("-inf"), _RETRY_SECONDS[0]
        self._client = self._make_client()

    @property
    def unconfirmed_findings(self) -> list[QueuedFinding]:
        """Published findings that the broker has not confirmed yet."""
        return list(self._unconfirmed.values())

    @property
    def unconfirmed(self) -> int:
        """Number of messages that the broker has not confirmed yet."""
        return len(self._unconfirmed) + len(self._unconfirmed_notices)

    @property
    def has_unsent_bytes(self) -> bool:
        """True if published messages wait for the socket."""
        return self._client.want_write()

    @property
    def is_ready(self) -> bool:
        """True if a finding can be published now."""
        return self.is_connected and self.unconfirmed < self._limits.in_flight and not self.has_unsent_bytes

    def serve(self) -> None:
        """Read and write without waiting; start an attempt to connect if it is due."""
        now = self._clock()
        if self.is_connected or self._connecting_since is not None:
            code = self.loop(0.0)
            if not self.is_connected and self._connecting_since is None:
                return  # the callback has handled it
            if code is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._handle_disconnect(self._client.violation or error_string(code))
            elif self._connecting_since is not None and now - self._connecting_since > CONNECT_SECONDS:
                self._client.disconnect()
                self._handle_disconnect(_NO_ANSWER)
        elif now >= self._retry_at:
            self._connect(now)

    def loop(self, seconds: float) -> MQTTErrorCode:
        """Read and write for at most ``seconds``. An invalid packet ends only the connection."""
        try:
            return self._client.loop(seconds)
        except Exception as error:  # noqa: BLE001 - paho raises many types for invalid packets
            self._client.violation = f"it sends data that cannot be read ({type(error).__name__})"
            self._client.disconnect()
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def publish(self, topic: str, message: bytes, *, qos: int, retain: bool = False) -> None:
        """Publish a message that is not a finding."""
        number = self._publish(topic, message, qos=qos, retain=retain)
        if number is not None:
            self._unconfirmed_notices.add(number)

    def publish_finding(self, finding: QueuedFinding, *, qos: int) -> None:
        """Publish a finding, or count it as refused if the broker does not accept packets of its size."""
        size = len(finding.message) + len(finding.topic.encode()) + _PACKET_OVERHEAD_BYTES
        self._counts.published += 1
        if size > self._limits.packet_bytes:
            self._counts.refused += 1
            self._record_refusal(f"it accepts at most {self._limits.packet_bytes} bytes, a finding has {size}")
            return
        # Only messages of QoS 1 report whether a topic is refused, so QoS 1 is used until one finding is accepted.
        is_untested = self.is_v5 and finding.topic not in self._accepted
        number = self._publish(finding.topic, finding.message, qos=1 if is_untested else qos, retain=False)
        if number is not None:
            self._unconfirmed[number] = finding

    def disconnect(self) -> None:
        """End the connection regularly: the broker does not publish the last will."""
        self.is_connected = False
        self._client.disconnect()
        self._client.loop(0.0)

    def close(self) -> None:
        """Count unconfirmed findings as lost, and close all sockets, the client's internal pair included."""
        for finding in self._unconfirmed.values():
            self._counts.published -= 1
            self._counts.lose(finding)
        self._unconfirmed.clear()
        self.is_connected = False
        self._client.reinitialise()

    def _publish(self, topic: str, message: bytes, *, qos: int, retain: bool) -> int | None:
        """Publish a message; return its packet identifier if a confirmation follows."""
        qos = min(qos, self._limits.qos)
        sent = self._client.publish(topic, message, qos=qos, retain=retain)
        if not qos:
            return None
        # If the connection ends during the call, paho sends the message again, and ``is_published`` would raise.
        is_sent = sent.rc is MQTTErrorCode.MQTT_ERR_SUCCESS
        return None if is_sent and sent.is_published() else sent.mid

    def _make_client(self) -> GuardedClient:
        client = make_client(self._settings, self._broker, self._login, self._status, is_v5=self.is_v5)
        client.on_connect = self._handle_connack
        client.on_disconnect = self._handle_client_disconnect
        client.on_publish = self._handle_puback
        return client

    def _replace_client(self) -> None:
        """Replace the client by a new one, without its unconfirmed messages."""
        for finding in self._unconfirmed.values():
            self._counts.lose(finding)
        self._unconfirmed.clear()
        self._unconfirmed_notices.clear()
        self._client.on_disconnect = None
        self._client.reinitialise()
        self._client = self._make_client()

    def _connect(self, now: float) -> None:
        """Start an attempt to connect; if needed, with the other version of MQTT or a new client."""
        if self._switch_version:
            self.is_v5, self._switch_version = not self.is_v5, False
            self._replace_client()
        elif self._failed_connections >= _MAX_FAILED_CONNECTIONS and self._unconfirmed:
            self._failed_connections = 0
            given_up = f"{len(self._unconfirmed)} unconfirmed messages are given up"
            log.warning("%s: the broker repeatedly closes the connection (%s); %s", self._uri, self.reason, given_up)
            self._replace_client()
        try:
            self._connecting_since, self.reason = now, ""
            connect(self._client, self._broker, is_v5=self.is_v5)
        except (OSError, ValueError) as error:
            self._connecting_since = None
            self._handle_disconnect(getattr(error, "strerror", None) or str(error) or type(error).__name__)

    def _handle_connack(
        self,
        _client: Client,
        _data: Any,  # noqa: ANN401 - signature of paho's callback
        _flags: Any,  # noqa: ANN401
        code: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if code.is_failure:
            self.reason = f"it refuses the connection: {code}"
            if self.is_v5 and code.value == UNSUPPORTED_VERSION:
                self._switch_version = True
                log.warning(
                    "%s: the broker supports MQTT 3.1.1 only, so it cannot report which findings it refuses", self._uri
                )
            return
        log.info("%s: connected", self._uri)
        self.is_connected, self._connecting_since = True, None
        self._connected_at = self._clock()
        self._limits = BrokerLimits.of(properties)
        self._accepted.clear()
        self._on_connect()
        self.publish(self._status, ONLINE, qos=1, retain=True)

    def _handle_client_disconnect(
        self,
        _client: Client,
        _data: Any,  # noqa: ANN401 - signature of paho's callback
        _flags: Any,  # noqa: ANN401
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if self.is_connected:
            self._handle_disconnect(self._client.violation or str(code))

    def _handle_puback(
        self,
        _client: Client,
        _data: Any,  # noqa: ANN401 - signature of paho's callback
        number: int,
        code: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if number in self._unconfirmed_notices:
            self._unconfirmed_notices.discard(number)
            if code.is_failure:
                self._record_refusal(f"{code}, under {self._broker.topic}/...")
        elif (finding := self._unconfirmed.pop(number, None)) is not None:
            self._failed_connections = 0
            if code.is_failure:
                self._counts.refused += 1
                self._record_refusal(f"{code}, under {finding.topic}")
            else:
                self._accepted.add(finding.topic)
                self._counts.refusal = ""

    def _record_refusal(self, why: str) -> None:
        """Record why the broker refuses a message, and log each reason once."""
        if why not in self._logged_refusals and len(self._logged_refusals) < _MAX_LOGGED_REFUSALS:
            self._logged_refusals.add(why)
            log.warning("%s: the broker refuses messages (%s); check its access control list", self._uri, why)
        self._counts.refusal = why

    def _handle_disconnect(self, why: str) -> None:
        """Record that there is no connection, log each new reason once, and set the time of the next attempt."""
        now = self._clock()
        was_refused = self._connecting_since is not None and self.reason  # the broker's own reason is more precise
        was_unanswered = self._connecting_since is not None and not self.reason and self.is_v5
        if was_unanswered and why != _NO_ANSWER:
            self._switch_version = True  # some brokers close the connection if they do not support the version
        if self.is_connected:
            self._failed_connections += 1
            if now - self._connected_at >= _STEADY_SECONDS:
                self._backoff_seconds, self._logged_reason = _RETRY_SECONDS[0], ""
        self.reason = self.reason if was_refused else why
        self.is_connected, self._connecting_since = False, None
        self._retry_at = now if self._switch_version else now + self._backoff_seconds
        self._backoff_seconds = min(2 * self._backoff_seconds, _RETRY_SECONDS[1])
        if self._logged_reason != self.reason and not self._switch_version:
            self._logged_reason = self.reason
            log.warning("%s: no connection to the broker (%s); further attempts follow", self._uri, self.reason)

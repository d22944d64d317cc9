"""MQTT client of the sink: it only publishes, and limits the data that it accepts from the broker.

With MQTT 5 a broker reports for each message of QoS 1 whether it was refused, and why (reason codes); with MQTT 3.1.1
it cannot.
"""

from __future__ import annotations

import errno
import logging
import ssl
from typing import Final, NamedTuple

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from overlays.sinks.mqtt.messages import OFFLINE, BrokerAddress
from overlays.sinks.settings import MqttSettings
from pipeline.errors import SinkError

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 3.0
IN_FLIGHT: Final = 20
"""Maximum number of messages of QoS 1 that the broker has not confirmed yet."""
_KEEPALIVE_SECONDS: Final = 5
_MAX_RECEIVED_BYTES: Final = 1 << 16
"""Maximum size of a packet from the broker: a publisher receives only confirmations."""
_EXPECTED: Final = frozenset({PacketTypes.CONNACK, PacketTypes.PUBACK, PacketTypes.PINGRESP, PacketTypes.DISCONNECT})
UNSUPPORTED_VERSION: Final = 132
"""Reason code of a broker that does not support the protocol version."""


class BrokerLimits(NamedTuple):
    """Limits that a broker announces."""

    packet_bytes: int = 1 << 28
    in_flight: int = IN_FLIGHT
    qos: int = 1

    @classmethod
    def of(cls, properties: Properties | None) -> BrokerLimits:
        """Read the limits from the properties of the broker's CONNACK."""
        defaults = cls()
        return cls(
            getattr(properties, "MaximumPacketSize", defaults.packet_bytes),
            max(1, min(getattr(properties, "ReceiveMaximum", IN_FLIGHT), IN_FLIGHT)),
            getattr(properties, "MaximumQoS", defaults.qos),
        )


class GuardedClient(Client):
    """A client that disconnects from a broker that sends unexpected data, before the data is stored."""

    violation = ""
    """Description of the unexpected data that the broker sent; empty if there was none."""

    def _packet_handle(self) -> MQTTErrorCode:
        command = self._in_packet["command"] >> 4
        if command not in _EXPECTED:
            self.violation = f"it sends packets that a publisher never asks for (type {command})"
            return MQTTErrorCode.MQTT_ERR_PROTOCOL
        return super()._packet_handle()

    def _sock_recv(self, bufsize: int) -> bytes:
        if bufsize > _MAX_RECEIVED_BYTES:
            self.violation = f"it sends a packet of {bufsize} bytes, but only confirmations are expected"
            raise OSError(errno.EMSGSIZE, self.violation)
        return super()._sock_recv(bufsize)


def make_client(
    settings: MqttSettings, broker: BrokerAddress, login: tuple[str, str] | None, status: str, *, is_v5: bool
) -> GuardedClient:
    """Return a client that is not connected yet.

    Args:
        settings: the CA file, and the sink's URI for messages.
        broker: the broker's address.
        login: user and password.
        status: the status topic of this run.
        is_v5: whether to use MQTT 5; otherwise 3.1.1.

    Raises:
        SinkError: the CA file cannot be read, or is given without TLS.
    """
    protocol = MQTTProtocolVersion.MQTTv5 if is_v5 else MQTTProtocolVersion.MQTTv311
    client = GuardedClient(CallbackAPIVersion.VERSION2, protocol=protocol)
    client.connect_timeout = CONNECT_SECONDS
    client.max_inflight_messages_set(IN_FLIGHT)
    client.will_set(status, OFFLINE, qos=1, retain=True)
    uri, ca_file = settings.uri, settings.ca_file
    if login is not None:
        client.username_pw_set(*login)
    if ca_file is not None and not broker.tls:
        raise SinkError(f"{uri}: ca_file {ca_file}: is for TLS; write mqtts:// before the broker's name")
    if broker.tls:
        try:
            client.tls_set_context(ssl.create_default_context(cafile=ca_file))
        except (OSError, ssl.SSLError) as error:
            raise SinkError(
                f"{uri}: ca_file {ca_file}: cannot be read ({error}); it should hold "
                "the broker's CA certificate, as PEM"
            ) from None
    return client


def connect(client: GuardedClient, broker: BrokerAddress, *, is_v5: bool) -> None:
    """Connect to the broker and send CONNECT; the answer arrives later.

    Raises:
        OSError: the broker cannot be reached.
        ValueError: the host name is invalid.
    """
    client.violation = ""
    if not is_v5:
        client.connect(broker.host, broker.port, keepalive=_KEEPALIVE_SECONDS)
        return
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = _MAX_RECEIVED_BYTES
    properties.ReceiveMaximum = 1
    client.connect(broker.host, broker.port, keepalive=_KEEPALIVE_SECONDS, clean_start=True, properties=properties)

"""Where an MQTT broker is, what is said there under which topic, and in which words. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from overlays.wire.json_fields import replace_undecodable
from overlays.wire.message import explanation_record
from pipeline.errors import WireError
from pipeline.frames import Explanation

DEFAULT_TOPIC: Final = "recipro-stream"
ONLINE: Final = b"online"
OFFLINE: Final = b"offline"
"""The last will: the broker says it for us where we can no longer."""
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_BROKER: Final = re.compile(
    r"(?P<scheme>mqtts?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/@?#\s]+)(?::(?P<port>\d{1,5}))?(?:/(?P<topic>.*))?",
    re.IGNORECASE,
)
_UNFIT: Final = re.compile(r"[+#/\x00-\x1f\x7f]+")
_MAX_TOPIC_BYTES: Final = 60_000
"""MQTT allows 65535 for the whole topic; a camera's name goes behind ours."""


class BrokerAddress(NamedTuple):
    """A checked address."""

    host: str
    """Without brackets."""
    port: int
    tls: bool
    topic: str
    """What all our topics begin with."""

    @property
    def is_local(self) -> bool:
        """Whether what is said to it stays on this machine."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def status(self, level: str) -> str:
        """Where it stands whether we are there."""
        return f"{self.topic}/{level}"

    def finding(self, camera: str) -> str:
        """Where a camera's findings go."""
        return f"{self.topic}/{topic_level(camera)}/finding"

    def state(self, camera: str) -> str:
        """Where it stands how a camera does."""
        return f"{self.topic}/{topic_level(camera)}/state"


def parse_broker(uri: str) -> BrokerAddress:
    """Read ``mqtt://host[:port][/topic]`` or ``mqtts://...``. No message repeats what stands before an ``@``.

    Raises:
        ValueError: it is something else; the message says how it is written.
    """
    if "@" in uri:
        raise ValueError(
            "an address is seen by everybody who lists processes; take user and password out of it and put them into "
            "a file, user:password: --mqtt-credentials FILE, or credentials_file in the configuration"
        )
    match = _BROKER.fullmatch(uri)
    if match is None:
        raise ValueError("it is not written like mqtt://host:port/topic, for instance mqtt://127.0.0.1:1883/factory")
    scheme, topic = match["scheme"].lower(), (match["topic"] or "").strip("/") or DEFAULT_TOPIC
    port = int(match["port"] or _PORTS[scheme])
    if not 0 < port <= 65535:
        raise ValueError(f"port {port} is none from 1 to 65535; brokers listen on 1883, with TLS on 8883")
    if "?" in topic:
        raise ValueError(
            "an address has no settings behind a '?'; they stand beside it in the configuration, docs/mqtt.md"
        )
    if re.search(r"[+#\x00-\x1f]", topic) or "//" in topic or len(topic.encode()) > _MAX_TOPIC_BYTES:
        raise ValueError(f"topic {topic[:80]!r}: one to publish under has no + and no #, and no empty level")
    return BrokerAddress(match["host"].strip("[]"), port, scheme == "mqtts", topic)


def topic_level(camera: str) -> str:
    """Return a camera's name as one level of a topic: what has a meaning there becomes an underscore."""
    return _UNFIT.sub("_", replace_undecodable(camera)).strip() or "camera"


def colliding_cameras(cameras: Sequence[str]) -> tuple[str, str] | None:
    """Return two cameras whose names become the same level of a topic; None where there are none."""
    taken: dict[str, str] = {}
    for camera in cameras:
        if (other := taken.setdefault(topic_level(camera), camera)) != camera:
            return other, camera
    return None


def finding_message(explanation: Explanation, *, sent_at_unix: float, now_monotonic: float) -> bytes:
    """Return what is said of a frame: the log's line, with the hottest spot's place in frame pixels for the heat.

    Raises:
        WireError: a number is NaN or infinite.
    """
    record = explanation_record(explanation, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
    findings = []
    for finding, told in zip(explanation.findings, record["findings"], strict=True):
        peak = finding.peak(explanation.region)
        plain = {key: value for key, value in told.items() if key != "heat_u8"}
        findings.append(plain | {"peak": None if peak is None else [round(edge, 1) for edge in peak]})
    return packed(record | {"findings": findings})


def state_message(told: dict[str, Any], unix: float, status: str) -> bytes:
    """Return what is said of a camera: the page's words for it, and the topic of who says so."""
    keys = ("camera", "state", "reason", "index", "frames", "missed", "corrupt", "reconnects")
    return packed({"since_unix": round(unix, 3)} | {key: told[key] for key in keys} | {"status": status})


def packed(message: dict[str, Any]) -> bytes:
    """Write a message as JSON, utf-8.

    Raises:
        WireError: a number is NaN or infinite, which JSON cannot say.
    """
    try:
        return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise WireError(f"camera {message.get('camera')!r}: a number is NaN or infinite; JSON cannot say it") from error

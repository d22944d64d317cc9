"""MQTT broker addresses, topics and messages. Pure functions."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from overlays.wire.message import explanation_record
from overlays.wire.passages import passage_record
from overlays.wire.text import replace_undecodable
from pipeline.errors import WireError
from pipeline.frames import Box, Explanation, Finding
from pipeline.passages.passage import Passage, PassageKind

DEFAULT_TOPIC: Final = "recipro-stream"
ONLINE: Final = b"online"
OFFLINE: Final = b"offline"
"""The last will: the broker publishes it for a client that has disappeared."""
_PORTS: Final = {"mqtt": 1883, "mqtts": 8883}
_BROKER: Final = re.compile(
    r"(?P<scheme>mqtts?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/@?#\s]+)(?::(?P<port>\d{1,5}))?(?:/(?P<topic>.*))?",
    re.IGNORECASE,
)
_UNFIT: Final = re.compile(r"[+#/\x00-\x1f\x7f]+")
MAX_FINDINGS: Final = 100
"""Maximum number of findings in a message: it then has about 25 kB."""
_HEAT_KEYS: Final = frozenset({"heat_u8", "against_u8", "region", "grid"})
_MAX_TOPIC_BYTES: Final = 60_000
"""MQTT allows 65535 bytes for the whole topic; a camera's name follows this part."""


class BrokerAddress(NamedTuple):
    """A validated broker address."""

    host: str
    """Host name or address, IPv6 without brackets."""
    port: int
    tls: bool
    topic: str
    """First levels of all topics of this run."""

    @property
    def is_local(self) -> bool:
        """True if the messages stay on this machine."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def status(self, level: str) -> str:
        """Return the status topic of this run, with the retained message ``online`` or ``offline``."""
        return f"{self.topic}/{level}"

    def finding(self, camera: str) -> str:
        """Return the topic of a camera's findings."""
        return f"{self.topic}/{topic_level(camera)}/finding"

    def passage(self, camera: str, kind: PassageKind) -> str:
        """Return the topic of a camera's parts, or of its crossings."""
        return f"{self.topic}/{topic_level(camera)}/{kind}"

    def event(self, camera: str) -> str:
        """Return the topic for the start, change and end of a camera's events."""
        return f"{self.topic}/{topic_level(camera)}/event"

    def open_events(self, camera: str) -> str:
        """Return the topic for the list of a camera's open events."""
        return f"{self.topic}/{topic_level(camera)}/open_events"

    def state(self, camera: str) -> str:
        """Return the topic of a camera's state."""
        return f"{self.topic}/{topic_level(camera)}/state"


def parse_broker(uri: str) -> BrokerAddress:
    """Parse ``mqtt://host[:port][/topic]`` or ``mqtts://...``. No error contains the text before an ``@``.

    Raises:
        ValueError: the address is invalid; the message shows a valid one.
    """
    if "@" in uri:
        raise ValueError(
            "contains a user or a password, which all users can see in the process list; write user:password to a file "
            "instead: --mqtt-credentials FILE, or credentials_file in the configuration"
        )
    match = _BROKER.fullmatch(uri)
    if match is None:
        raise ValueError("should be mqtt://host:port/topic, for instance mqtt://127.0.0.1:1883/factory")
    scheme, topic = match["scheme"].lower(), (match["topic"] or "").strip("/") or DEFAULT_TOPIC
    port = int(match["port"] or _PORTS[scheme])
    if not 0 < port <= 65535:
        raise ValueError(f"port {port} is not from 1 to 65535; brokers listen on 1883, with TLS on 8883")
    if "?" in topic:
        raise ValueError("has options after '?'; give them as keys beside uri in the configuration, see docs/mqtt.md")
    if re.search(r"[+#\x00-\x1f]", topic) or "//" in topic or len(topic.encode()) > _MAX_TOPIC_BYTES:
        raise ValueError(
            f"topic {topic[:80]!r}: should have at most {_MAX_TOPIC_BYTES} bytes, and should not contain +, #, a "
            "control character or an empty level; rename it"
        )
    return BrokerAddress(match["host"].strip("[]"), port, scheme == "mqtts", topic)


def topic_level(camera: str) -> str:
    """Return a camera's name as one topic level; characters with a meaning in topics become an underscore."""
    return _UNFIT.sub("_", replace_undecodable(camera)).strip() or "camera"


def colliding_cameras(cameras: Sequence[str]) -> tuple[str, str] | None:
    """Return two cameras whose names become the same topic level; None if all levels differ."""
    by_level: dict[str, str] = {}
    for camera in cameras:
        if (other := by_level.setdefault(topic_level(camera), camera)) != camera:
            return other, camera
    return None


def finding_message(explanation: Explanation, *, sent_at_unix: float, now_monotonic: float) -> bytes:
    """Return the message of a frame's findings: the log record with the hottest point in place of the heat map.

    ``peak`` is in frame pixels. At most ``MAX_FINDINGS`` findings with the highest scores are sent; ``omitted`` is the
    number of the others.

    Raises:
        WireError: a number is NaN or infinite.
    """
    findings, trial = _highest(explanation.findings), explanation.trial
    shortened = replace(
        explanation, findings=findings, passages=(),
        trial=None if trial is None else replace(trial, findings=_highest(trial.findings)),
    )  # fmt: skip
    record = explanation_record(shortened, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
    record["findings"] = [
        _without_heat(fields) | {"peak": _peak(finding, explanation.region_of(finding))}
        for finding, fields in zip(findings, record["findings"], strict=True)
    ]
    if omitted := len(explanation.findings) - len(findings):
        record["omitted"] = omitted
    return to_json(record)


def passage_message(passage: Passage, *, sent_at_unix: float, now_monotonic: float) -> bytes:
    """Return the message of a part or a crossing: an entry of ``passages`` in the log, with the camera's name.

    Raises:
        WireError: a number is NaN or infinite.
    """
    record = passage_record(passage, sent_at_unix=sent_at_unix, now_monotonic=now_monotonic)
    return to_json({"camera": replace_undecodable(passage.camera), **record})


def _highest(findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return the findings, at most ``MAX_FINDINGS`` with the highest scores."""
    if len(findings) <= MAX_FINDINGS:
        return findings
    return tuple(sorted(findings, key=lambda finding: finding.score, reverse=True)[:MAX_FINDINGS])


def _peak(finding: Finding, region: Box) -> list[float] | None:
    peak = finding.peak(region)
    return None if peak is None else [round(edge, 1) for edge in peak]


def _without_heat(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a finding without the heat and its position and grid."""
    plain = {key: value for key, value in fields.items() if key not in _HEAT_KEYS}
    return plain | {"map": _without_heat(plain["map"])} if "map" in plain else plain


def state_message(camera_status: dict[str, Any], unix: float, status: str) -> bytes:
    """Return the message of a camera's state: the same fields as for the page, and the status topic of this run."""
    keys = ("camera", "state", "reason", "index", "frames", "missed", "corrupt", "reconnects")
    return to_json({"since_unix": round(unix, 3)} | {key: camera_status[key] for key in keys} | {"status": status})


def to_json(message: dict[str, Any]) -> bytes:
    """Encode a message as compact JSON in UTF-8.

    Raises:
        WireError: a number is NaN or infinite, which JSON cannot represent.
    """
    try:
        return json.dumps(message, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except ValueError as error:
        raise WireError(
            f"camera {message.get('camera')!r}: a number is NaN or infinite; JSON cannot represent it"
        ) from error

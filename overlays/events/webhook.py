"""Posts starts, changes and ends of events to an HTTP receiver, signed as Standard Webhooks specifies.

Specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md. Headers:
``webhook-id`` (equal in all attempts), ``webhook-timestamp`` (Unix seconds of the attempt) and ``webhook-signature``
(``v1,`` and the HMAC-SHA256 of ``ID.TIMESTAMP.BODY`` in base64). Receivers should refuse old timestamps and repeated
identifiers.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import http.client
import ipaddress
import json
import logging
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import urlsplit

from overlays.events.feed import EventFeed, Notice
from pipeline.errors import ConfigError, SinkError
from pipeline.ports import MetricSample
from pipeline.settings import Secret
from pipeline.workers.thread import ThreadWorker, Wakeup, WorkerOwner

log = logging.getLogger(__name__)

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - of the specification
_SECRET_BYTES: Final = (24, 64)
"""Minimum and maximum size of a secret in bytes, as the specification requires."""
_TIMEOUT_SECONDS: Final = 10.0
"""Time limit for the connection, and for each read of the response."""
_RETRY_SECONDS: Final = (1.0, 60.0)
"""First and maximum pause before the next attempt in seconds; each is reduced by up to 25 % at random."""
_MAX_RETRY_AFTER: Final = 300.0
"""Maximum pause in seconds that a receiver's ``Retry-After`` header can request."""
_DRAIN_SECONDS: Final = 5.0
"""Time limit in seconds for the waiting messages at the end of a run."""
_MAX_REFUSED_ATTEMPTS: Final = 5
"""Maximum number of attempts for a message that the receiver refuses.

Attempts without a response, or with a status that requests another attempt (5xx or ``_WAITING``), are not counted.
"""
_WAITING: Final = frozenset({408, 425, 429})
"""HTTP statuses below 500 that request another attempt."""
_GONE: Final = 410
_REMEDY: Final = "printf 'https://HOST/PATH\\nwhsec_%s\\n' \"$(openssl rand -base64 32)\""


@dataclass(frozen=True, slots=True)
class WebhookAddress:
    """A receiver's validated address, and the key of the signature."""

    tls: bool
    host: str
    port: int | None
    target: str
    """Path and query, which may contain a secret and are never shown."""
    key: bytes | None = field(default=None, repr=False)
    """Key of the signature; None: messages are not signed."""

    @property
    def shown(self) -> str:
        """The address for messages, without path and query."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http{'s' * self.tls}://{host}{'' if self.port is None else f':{self.port}'}/…"

    @property
    def is_local(self) -> bool:
        """True if the receiver is on this machine."""
        try:
            return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_webhook(secret: Secret) -> WebhookAddress:
    """Return the address and the key in a webhook file.

    The first line is the address; the optional second line is the secret.

    Raises:
        ConfigError: the file is invalid. The message does not quote its content.
    """
    lines = [line.strip() for line in secret.text.splitlines() if line.strip()]
    if not 1 <= len(lines) <= 2:
        raise ConfigError(
            f"{secret.path}: should have two lines, the address and the secret; create it: {_REMEDY} > {secret.path}"
        )
    try:
        parts = urlsplit(lines[0])
        host, port = parts.hostname, parts.port
        (host or "").encode("idna")
    except ValueError:  # UnicodeError, too
        host, port, parts = None, None, urlsplit("")
    if parts.scheme not in {"http", "https"} or not host or re.search(r"[\x00-\x20\x7f-\U0010ffff]", lines[0]):
        raise ConfigError(f"{secret.path}: line 1: is not an address such as https://HOST:PORT/PATH")
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"{secret.path}: line 1: user and password are not supported; a secret proves the sender")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    key = _read_key(lines[1], secret.path) if len(lines) > 1 else None
    return WebhookAddress(parts.scheme == "https", host, port, target, key)


def _read_key(text: str, path: str) -> bytes:
    try:
        key = base64.b64decode(text.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    least, most = _SECRET_BYTES
    if not text.startswith(SECRET_PREFIX) or not least <= len(key) <= most:
        raise ConfigError(
            f"{path}: line 2: should be {SECRET_PREFIX} followed by {least} to {most} bytes in base64; create such a "
            f"file: {_REMEDY} > {path}"
        )
    return key


def make_message(notice: Notice) -> tuple[str, bytes]:
    """Return the identifier and the JSON body of a notice; both are equal in all attempts, even after a restart."""
    record, occasion = notice.record, notice.occasion
    number = f"-{record['version']}" if occasion == "changed" else ""
    at = {"started": record["start"], "ended": record["end"]}.get(occasion, record["acted"])
    moment = datetime.fromtimestamp(record["seen"] if at is None else at, UTC).isoformat(timespec="milliseconds")
    body = {"type": f"event.{occasion}", "timestamp": moment, "data": record}
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f"{record['id']}-{occasion}{number}", text.encode()


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of the header ``webhook-signature``; ``timestamp`` is in Unix seconds."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return f"v1,{base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()}"


class Webhook(WorkerOwner):
    """Posts the notices of a feed one after the other, in its own thread.

    The feed is the queue: notices that it has dropped are counted as lost. Any thread may call ``wake``, ``metrics``
    and ``problem``.
    """

    def __init__(
        self, address: WebhookAddress, feed: EventFeed, uri: str, *, ca_file: str | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """Read the CA certificates; entering the context starts the thread.

        Args:
            address: the receiver and the key.
            feed: the feed whose notices are posted.
            uri: address of the sink, for messages.
            ca_file: CA certificates to verify the receiver; None: the system's certificates.
            wall_clock: returns Unix seconds.

        Raises:
            SinkError: the certificates cannot be read, or are given for an address without TLS.
        """
        self._address, self._feed, self._uri, self._wall_clock = address, feed, uri, wall_clock
        self._context = _make_context(address, ca_file, uri)
        self.delivered = 0
        """Number of messages that the receiver accepted."""
        self.refused = 0
        """Number of messages that the receiver refused."""
        self.lost = 0
        """Number of messages that the feed dropped before they were sent, or that were unsent at the end."""
        self.reason = ""
        """Reason why the last attempt failed; empty after a success."""
        self._logged = ""
        self._position = 0
        """Number of the last notice that was delivered, refused or lost."""
        self._is_gone = False
        self._ends_at: float | None = None
        """Monotonic time at which the thread stops; None during the run."""
        self._connection: http.client.HTTPConnection | None = None
        """The connection of the current attempt; None between attempts."""
        self._has_ended = threading.Event()
        self._wakeup = Wakeup()
        self._worker = ThreadWorker(f"webhook of {uri}", self._run, self._stop)
        if not address.tls and not address.is_local:
            log.warning("%s: events are sent to %s unencrypted; use https://", uri, address.shown)
        if address.key is None:
            log.warning("%s: messages to %s are not signed; add a secret to the file", uri, address.shown)

    def wake(self) -> None:
        """Make the thread check for new notices now."""
        self._wakeup.set()

    @property
    def waiting(self) -> int:
        """Number of notices that wait for delivery."""
        return self._feed.noticed - self._position

    @property
    def problem(self) -> str:
        """Reason why messages do not reach the receiver; empty after a success."""
        if not self.reason:
            return ""
        counts = f"{self.waiting} events wait, {self.refused} were refused, {self.lost} are lost"
        return f"delivery to webhook {self._address.shown} failed ({self.reason}); {counts}"

    def metrics(self) -> list[MetricSample]:
        """Return the counts of messages as metrics."""
        labels = (("sink", self._uri),)
        return [
            MetricSample("webhook_delivered", self.delivered, "Messages that a webhook accepted.", "counter", labels),
            MetricSample("webhook_refused", self.refused, "Messages that a webhook did not accept.", "counter", labels),
            MetricSample("webhook_lost", self.lost, "Messages that reached no webhook.", "counter", labels),
            MetricSample("webhook_waiting", self.waiting, "Messages that wait for a webhook.", labels=labels),
        ]

    def _stop(self) -> None:
        self._ends_at = time.monotonic() + _DRAIN_SECONDS
        self._wakeup.set()
        if not self._has_ended.wait(_DRAIN_SECONDS):
            connection = self._connection
            with suppress(OSError):
                if connection is not None and connection.sock is not None:
                    connection.sock.shutdown(socket.SHUT_RDWR)  # ends the wait for a response

    @property
    def _is_over(self) -> bool:
        return self._ends_at is not None and time.monotonic() >= self._ends_at

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            self._has_ended.set()

    def _serve(self) -> None:
        while not self._is_over:
            lost, notices = self._feed.notices(self._position, 1)
            self._position, self.lost = self._position + lost, self.lost + lost
            if notices:
                self._deliver(notices[0])
            elif self._ends_at is not None:
                break
            else:
                self._wakeup.wait()
        if self.waiting:
            self.lost += self.waiting
            self._position = self._feed.noticed
            log.warning("%s: %s", self._uri, self.problem or f"{self.lost} events did not reach the webhook in time")

    def _deliver(self, notice: Notice) -> None:
        """Post a notice repeatedly, until the receiver accepts it, refuses it finally, or the feed drops it."""
        message_id, body = make_message(notice)
        attempts, pause = 0, _RETRY_SECONDS[0]
        while not self._is_over and not self._feed.notices(notice.number - 1, 1)[0]:
            status, retry_after = (_GONE, None) if self._is_gone else self._post(message_id, body)
            if 200 <= status < 300:
                self.delivered, self.reason, self._logged = self.delivered + 1, "", ""
                self._position = notice.number
                return
            attempts += 0 < status < 500 and status not in _WAITING
            self._is_gone = status == _GONE
            if self._is_gone or attempts >= _MAX_REFUSED_ATTEMPTS:
                self.refused += 1
                self._position = notice.number
                return
            self._pause(pause * random.uniform(0.75, 1.0) if retry_after is None else retry_after)
            pause = min(2 * pause, _RETRY_SECONDS[1])

    def _pause(self, seconds: float) -> None:
        """Wait for ``seconds``, even if ``wake`` is called; at the end of the run, wait at most 0.2 s."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0.0:
            if self._ends_at is not None:
                left = min(left, 0.2)
                until = min(until, time.monotonic() + left)
            self._wakeup.wait(left)

    def _post(self, message_id: str, body: bytes) -> tuple[int, float | None]:
        """Make one attempt; return the HTTP status (0 without a response) and the requested pause in seconds."""
        address, timestamp = self._address, int(self._wall_clock())
        headers = {
            "Content-Type": "application/json", "User-Agent": "recipro-stream", "Connection": "close",
            "webhook-id": message_id, "webhook-timestamp": str(timestamp),
        }  # fmt: skip
        if address.key is not None:
            headers["webhook-signature"] = sign(address.key, message_id, timestamp, body)
        try:
            with closing(self._make_connection()) as connection:
                self._connection = connection
                connection.request("POST", address.target, body, headers)
                answer = connection.getresponse()
                status, retry_after = (
                    answer.status,
                    _retry_after(answer.getheader("Retry-After", ""), self._wall_clock()),
                )
        except (OSError, http.client.HTTPException) as error:
            why = getattr(error, "verify_message", "") or getattr(error, "strerror", "") or str(error)
            self._fail(why or type(error).__name__)
            return 0, None
        finally:
            self._connection = None
        if not 200 <= status < 300:
            moved = "; redirections are not followed" if 300 <= status < 400 else ""
            self._fail(f"it answers {status} {http.client.responses.get(status, '')}".rstrip() + moved)
        return status, retry_after

    def _make_connection(self) -> http.client.HTTPConnection:
        address = self._address
        if self._context is None:
            return http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT_SECONDS)
        return http.client.HTTPSConnection(address.host, address.port, timeout=_TIMEOUT_SECONDS, context=self._context)

    def _fail(self, reason: str) -> None:
        """Set the reason of a failed attempt, and log it if it differs from the last one."""
        self.reason = reason
        if self._logged != reason:
            self._logged = reason
            log.warning(
                "%s: delivery to webhook %s failed (%s); further attempts follow",
                self._uri, self._address.shown, reason,
            )  # fmt: skip


def _make_context(address: WebhookAddress, ca_file: str | None, uri: str) -> ssl.SSLContext | None:
    if not address.tls:
        if ca_file is not None:
            raise SinkError(f"{uri}: webhook_ca_file {ca_file}: is for https://, but the address begins with http://")
        return None
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise SinkError(
            f"{uri}: webhook_ca_file {ca_file}: cannot be read ({error}); it should hold the CA certificate, as PEM"
        ) from None


def _retry_after(value: str, now_unix: float) -> float | None:
    """Return the pause in a ``Retry-After`` header (RFC 9110, 10.2.3) in seconds; None for an invalid header."""
    if value.isascii() and value.isdecimal():
        seconds = float(value[:9])
    else:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - now_unix
        except (ValueError, TypeError, IndexError):
            return None
    return min(max(seconds, _RETRY_SECONDS[0]), _MAX_RETRY_AFTER)

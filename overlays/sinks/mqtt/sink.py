"""MQTT: what was found, told to a broker, for whatever listens there: a control room, a PLC's gateway, a home's hub.

No pictures. Of a camera a finding goes out when its label changes and else at the sink's rate, of a file or a folder
every finding; a camera's state when it changes, to stay (retained); and the broker itself says ``offline`` for us where
we cannot (the last will). It is called from the sink's own thread, again and again without end; what cannot be sent
waits in a bounded queue, or is dropped and counted.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self

from paho.mqtt.client import Client, error_string
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from overlays.sinks.mqtt.client import (
    CONNECT_SECONDS,
    UNSUPPORTED_VERSION,
    BrokerLimits,
    GuardedClient,
    call,
    make_client,
    read_login,
)
from overlays.sinks.mqtt.counters import MqttCounts, Told, Waiting
from overlays.sinks.mqtt.messages import (
    OFFLINE,
    ONLINE,
    colliding_cameras,
    finding_message,
    parse_broker,
    state_message,
)
from overlays.sinks.rate_limit import RateLimiter
from overlays.sinks.settings import MqttSettings
from overlays.web.status import StatusBoard
from pipeline.errors import DataLossError, SinkError, WireError
from pipeline.frames import Frame, Overlay
from pipeline.ports import MetricSample
from pipeline.result import RunResult
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

_RATE: Final = 1.0
"""Findings of a live camera a second, where its label stays and nobody has said another rate."""
_RETRY_SECONDS: Final = (1.0, 30.0)
"""How soon a broker is tried again: first, and at the longest."""
_STEADY_SECONDS: Final = 10.0
"""A connection that held so long was a good one: the next is tried soon."""
_FAREWELL_SECONDS: Final = 0.5
_PATIENCE_SECONDS: Final = 10.0
"""How long findings of files wait for a broker that takes none, before they are given up."""
_SLOWEST_RATE: Final = 40.0
"""Findings a second that a broker takes at the least; at the run's end a slower one is not waited for."""
_MAX_DEAD_ENDS: Final = 5
"""So many connections in a row that end without a confirmation are the fault of what is sent on them."""
_MAX_REFUSALS: Final = 100
MAX_WAITING: Final = 1000
"""Findings that wait for the broker; the oldest are dropped."""
_LOOK_SECONDS: Final = 0.2
"""How often cameras are looked at."""
_WAIT_SECONDS: Final = 0.02
_PACKET_OVERHEAD_BYTES: Final = 16


class MqttSink:
    """Publishes under ``mqtt://host[:port][/topic]``, or ``mqtts://`` with TLS.

    ``put``, ``idle`` and leaving belong to one thread at a time; ``problem``, ``account`` and ``figures`` to any.
    """

    lossless = True

    def __init__(
        self,
        settings: MqttSettings | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where the broker is, and whom to tell of before its first frame.

        Raises:
            SinkError: the address is written wrong or holds a password, two cameras would share their topics, or the CA
                file cannot be read.
        """
        self._settings, context = MqttSettings.of(settings), context or SinkContext()
        uri, cameras = self._settings.uri, context.cameras
        try:
            self._broker = parse_broker(uri)
        except ValueError as error:
            raise SinkError(f"{uri.partition('://')[0]}://…: {error}") from None
        if twins := colliding_cameras(cameras):
            names = " and ".join(map(repr, twins))
            raise SinkError(f"cameras {names} would share the topic {self._broker.finding(twins[0])!r}; rename one")
        self._login = read_login(context.secrets.get("credentials_file"))
        self._status, self.uri = self._broker.status(self._settings.status_topic), uri
        self._counts = MqttCounts()
        self._qos = self._settings.qos
        self._wall_clock, self._clock = wall_clock, clock
        self._status_board = StatusBoard(cameras, clock)
        self._max_rate = self._settings.max_rate
        self._rate_limiter = RateLimiter(self._settings.max_rate or _RATE)
        self._labels: dict[str, str] = {}
        self._waiting = Waiting(self._counts)
        self._states: dict[str, str] = {}
        """What was last said of each camera on this connection."""
        self._looked_at = float("-inf")
        self._unconfirmed: dict[int, Told] = {}
        """Findings by their messages' numbers."""
        self._notices: set[int] = set()
        """The numbers of other messages that are not confirmed yet."""
        self._accepted: set[str] = set()
        """Topics under which the broker has taken a finding on this connection."""
        self._refusals: set[str] = set()
        """Reasons of the broker's that were said."""
        self._limits = BrokerLimits()
        self._is_v5 = True
        self._other_version = False
        """Whether the broker is to be called by the other version of MQTT."""
        self._client = self._made()
        self._connected, self._connected_at = False, float("-inf")
        self._dead_ends = 0
        """Connections in a row that ended before anything was confirmed."""
        self._why = "not yet connected"
        self._said = ""
        """Why there is no connection, as it was last said."""
        self._given_up = False
        """Whether findings of files were given up since the last connection."""
        self._calling_since: float | None = None
        self._retry_at, self._pause = float("-inf"), _RETRY_SECONDS[0]
        self._nap = threading.Event()
        if self._login is not None and not self._broker.tls and not self._broker.is_local:
            log.warning("%s: the password goes over the network unencrypted; use mqtts://", self.uri)

    def on_run_start(self, result: RunResult) -> None:
        """Take the run: how its cameras do."""
        self._status_board.outcome = result

    @property
    def problem(self) -> str:
        """Why nothing is told to the broker, in words; empty while all is."""
        if self._connected:
            counts = self._counts
            return counts.refusal and f"the broker refuses findings ({counts.refusal}); {counts.refused} so far"
        why = self._why or "it is being called"
        return f"no connection to the broker ({why}); {self.lost} findings not sent"

    @property
    def account(self) -> str:
        """What became of the findings, in words."""
        told = self._counts.account(self._max_rate or _RATE, is_v5=self._is_v5)
        waiting = len(self._waiting) + len(self._unconfirmed)
        return f"{told}, {waiting} not confirmed yet" if waiting else told

    @property
    def lost(self) -> int:
        """Findings that were not sent, though it was their turn."""
        return self._counts.lost

    def metrics(self) -> list[MetricSample]:
        """Return whether the broker hears us, and how much it heard."""
        return self._counts.metrics(self.uri, is_connected=self._connected)

    def __enter__(self) -> Self:
        return self

    def needs_image(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say no: a finding is told in words."""
        return False

    def put(self, overlay: Overlay) -> None:
        """Take note of a frame, tell of it in its turn, and wait for a broker that is behind with a file's."""
        self._status_board.update(overlay)
        if overlay.signal_loss is None:
            self._note(overlay)
        self.idle()
        if len(self._waiting) >= MAX_WAITING and self._waiting.holds_files:
            self._wait(lambda: len(self._waiting) < MAX_WAITING)

    def _note(self, overlay: Overlay) -> None:
        """Let a finding wait to be sent, where it is its turn."""
        explanation = overlay.explanation
        frame, now = explanation.frame, self._clock()
        camera, is_file = frame.camera, self._is_file(frame)
        verdict = explanation.top_scoring
        label = verdict.label if verdict else ""
        every = is_file and self._max_rate is None
        if not (every or self._labels.get(camera) != label or self._rate_limiter.is_due(camera, now)):
            self._counts.left_out += 1
            return
        self._labels[camera] = label
        self._rate_limiter.record(camera, now)
        try:
            message = finding_message(explanation, sent_at_unix=self._wall_clock(), now_monotonic=now)
            self._waiting.add(Told(self._broker.finding(camera), message, is_file))
        except WireError as error:
            self._counts.lost += 1
            log.debug("%s: %s", self.uri, error)

    def _is_file(self, frame: Frame) -> bool:
        """Say whether a frame is of a file or a folder: its findings do not come again."""
        workers = () if self._status_board.outcome is None else self._status_board.outcome.source_workers
        return bool(frame.source_name) or any(p.camera == frame.camera and not p.source.live for p in workers)

    def idle(self) -> None:
        """Hear the broker, connect where there is no connection, and send what waits."""
        self._serve()
        if self._connected:
            self._publish_states()
            self._send()
        self._waiting.trim(MAX_WAITING, all_wait=bool(self._qos))

    def _wait(self, enough: Callable[[], bool], max_seconds: float = math.inf) -> None:
        """Serve the broker until it has taken enough, has taken nothing for too long, or ``max_seconds`` are over."""
        end = time.monotonic() + max_seconds
        left, until = self._under_way, time.monotonic() + _PATIENCE_SECONDS
        while not enough() and not self._given_up:
            self._nap.wait(_WAIT_SECONDS)
            self.idle()
            if self._under_way != left:
                left, until = self._under_way, time.monotonic() + _PATIENCE_SECONDS
            self._given_up = time.monotonic() >= min(until, end)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        owes_files = self._waiting.holds_files or any(told.is_file for told in self._unconfirmed.values())
        if kind is None and owes_files:
            self._wait(lambda: not self._under_way, _PATIENCE_SECONDS + self._under_way / _SLOWEST_RATE)
        if self._connected:
            self._say_farewell()
        self._waiting.trim(0, all_wait=True)
        for told in self._unconfirmed.values():
            self._counts.published -= 1
            self._counts.lose(told)
        self._unconfirmed.clear()
        self._connected = False
        self._client.reinitialise()  # closes its sockets, the pair it wakes itself with too
        if kind is None and (self._counts.refused or self._counts.lost_of_files):
            raise DataLossError(f"{self.uri}: not every finding reached the broker: {self.account}")

    def _say_farewell(self) -> None:
        until = self._clock() + _FAREWELL_SECONDS
        self._looked_at = float("-inf")
        self._publish_states()
        self._publish(self._status, OFFLINE, qos=1, retain=True)
        while self._connected and (self._client.want_write() or self._under_way):
            self._loop(_WAIT_SECONDS)
            self._send()
            if self._clock() >= until:
                break
        self._connected = False
        self._client.disconnect()
        self._client.loop(0.0)

    def _made(self) -> GuardedClient:
        client = make_client(self._settings, self._broker, self._login, self._status, is_v5=self._is_v5)
        client.on_connect = self._answered
        client.on_disconnect = self._disconnected
        client.on_publish = self._confirmed
        return client

    def _renew(self) -> None:
        """Forget the client with all that it has under way, and make another."""
        for told in self._unconfirmed.values():
            self._counts.lose(told)
        self._unconfirmed.clear()
        self._notices.clear()
        self._client.on_disconnect = None
        self._client.reinitialise()
        self._client = self._made()

    def _serve(self) -> None:
        """Read and write what is there, without waiting; call the broker where it is time to."""
        now = self._clock()
        if self._connected or self._calling_since is not None:
            code = self._loop(0.0)
            if not self._connected and self._calling_since is None:
                return  # the callback has told already
            if code is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._lose(self._client.violation or error_string(code))
            elif self._calling_since is not None and now - self._calling_since > CONNECT_SECONDS:
                self._client.disconnect()
                self._lose("it takes connections, and says nothing")
        elif now >= self._retry_at:
            self._call(now)

    def _call(self, now: float) -> None:
        """Call the broker; by another version of MQTT, or by another client, where the last one led nowhere."""
        if self._other_version:
            self._is_v5, self._other_version = not self._is_v5, False
            self._renew()
        elif self._dead_ends >= _MAX_DEAD_ENDS and self._unconfirmed:
            self._dead_ends = 0
            given_up = f"{len(self._unconfirmed)} messages under way are given up"
            log.warning("%s: the broker hangs up on what it is sent (%s); %s", self.uri, self._why, given_up)
            self._renew()
        try:
            self._calling_since, self._why = now, ""
            call(self._client, self._broker, is_v5=self._is_v5)
        except (OSError, ValueError) as error:
            self._calling_since = None
            self._lose(getattr(error, "strerror", None) or str(error) or type(error).__name__)

    def _loop(self, seconds: float) -> MQTTErrorCode:
        """Let the client read and write. Whatever strange packets lead to ends the connection alone."""
        try:
            return self._client.loop(seconds)
        except Exception as error:  # noqa: BLE001 - of reading strange packets
            self._client.violation = f"what it sends cannot be read ({type(error).__name__})"
            self._client.disconnect()
            return MQTTErrorCode.MQTT_ERR_PROTOCOL

    def _answered(self, _client: Client, _data: Any, _flags: Any, code: ReasonCode, told: Properties | None) -> None:  # noqa: ANN401 - paho's shape
        if code.is_failure:
            self._why = f"it refuses us: {code}"
            if self._is_v5 and code.value == UNSUPPORTED_VERSION:
                self._other_version = True
                log.warning("%s: the broker speaks MQTT 3.1.1 only: it cannot say which findings it refuses", self.uri)
            return
        log.info("%s: connected", self.uri)
        self._connected, self._calling_since, self._given_up = True, None, False
        self._connected_at = self._clock()
        self._limits = BrokerLimits.of(told)
        self._states.clear()
        self._accepted.clear()
        self._publish(self._status, ONLINE, qos=1, retain=True)

    def _disconnected(self, _client: Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:  # noqa: ANN401 - paho's shape
        if self._connected:
            self._lose(self._client.violation or str(code))

    def _confirmed(self, _client: Client, _data: Any, number: int, code: ReasonCode, _properties: Any) -> None:  # noqa: ANN401 - paho's shape
        if number in self._notices:
            self._notices.discard(number)
            if code.is_failure:
                self._refuse(f"{code}, under {self._broker.topic}/...")
        elif (told := self._unconfirmed.pop(number, None)) is not None:
            self._dead_ends = 0
            if code.is_failure:
                self._counts.refused += 1
                self._refuse(f"{code}, under {told.topic}")
            else:
                self._accepted.add(told.topic)
                self._counts.refusal = ""

    def _refuse(self, why: str) -> None:
        """Note why the broker refuses what it is told, and say so once a reason."""
        if why not in self._refusals and len(self._refusals) < _MAX_REFUSALS:
            self._refusals.add(why)
            log.warning("%s: the broker refuses what it is told (%s); see its access list", self.uri, why)
        self._counts.refusal = why

    def _lose(self, why: str) -> None:
        """Note that there is no connection, say so once, and try again later."""
        now = self._clock()
        refused = self._calling_since is not None and self._why  # the broker's own words are better
        unheard = self._calling_since is not None and not self._why and self._is_v5
        if unheard and "says nothing" not in why:
            self._other_version = True  # it may be one that hangs up on a version it does not know
        if self._connected:
            self._dead_ends += 1
            if now - self._connected_at >= _STEADY_SECONDS:
                self._pause, self._said = _RETRY_SECONDS[0], ""
        self._why = self._why if refused else why
        self._connected, self._calling_since = False, None
        self._retry_at = now if self._other_version else now + self._pause
        self._pause = min(2 * self._pause, _RETRY_SECONDS[1])
        if self._said != self._why and not self._other_version:
            self._said = self._why
            log.warning("%s: no connection to the broker (%s); it is tried again and again", self.uri, self._why)

    def _publish_states(self) -> None:
        """Tell of every camera whose state has changed since it was last told of."""
        now = self._clock()
        if now - self._looked_at < _LOOK_SECONDS and self._states:
            return
        self._looked_at = now
        for told in self._status_board.snapshot():
            camera, state = told["camera"], f"{told['state']} {told['reason']}"
            if self._states.get(camera) != state and not self._client.want_write():
                self._states[camera] = state
                message = state_message(told, self._wall_clock(), self._status)
                self._publish(self._broker.state(camera), message, qos=self._qos, retain=True)

    def _send(self) -> None:
        while self._waiting and self._connected and not self._unsettled() and not self._client.want_write():
            told = self._waiting.take()
            size = len(told.message) + len(told.topic.encode()) + _PACKET_OVERHEAD_BYTES
            self._counts.published += 1
            if size > self._limits.packet_bytes:
                self._counts.refused += 1
                self._refuse(f"it takes {self._limits.packet_bytes} bytes at the most, a finding has {size}")
                continue
            # Whether a topic is refused is only told of QoS 1: it is asked until one finding was taken.
            unknown = self._is_v5 and told.topic not in self._accepted
            self._publish(told.topic, told.message, qos=1 if unknown else self._qos, told=told)

    def _publish(self, topic: str, message: bytes, *, qos: int, retain: bool = False, told: Told | None = None) -> None:
        sent = self._client.publish(topic, message, qos=min(qos, self._limits.qos), retain=retain)
        if not min(qos, self._limits.qos) or sent.is_published():
            return
        if told is None:
            self._notices.add(sent.mid)
        else:
            self._unconfirmed[sent.mid] = told

    @property
    def _under_way(self) -> int:
        return len(self._waiting) + len(self._unconfirmed) + len(self._notices)

    def _unsettled(self) -> bool:
        """Say whether as many messages wait for the broker's word as may."""
        return len(self._unconfirmed) + len(self._notices) >= self._limits.in_flight

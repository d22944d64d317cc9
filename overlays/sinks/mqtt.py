"""MQTT: what was found, told to a broker, for whatever listens there: a control room, a PLC's gateway, a home's hub.

No pictures. A finding goes out when its label changes and else at the sink's rate; a camera's state when it changes,
to stay (retained); and the broker itself says ``offline`` for us where we cannot (the last will). It is called from the
sink's own thread, again and again without end; what cannot be sent waits in a bounded queue, or is dropped and
counted.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self

from paho.mqtt.client import Client, error_string
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from overlays.broker import OFFLINE, ONLINE, finding_message, parse_broker, same_level, state_message
from overlays.page.board import Board
from overlays.sinks.options import SinkOptions
from overlays.sinks.pace import Pace
from pipeline.errors import SinkError, WireError
from pipeline.frames import Overlay
from pipeline.loop import Outcome
from pipeline.ports import Figure

log = logging.getLogger(__name__)

_RATE: Final = 1.0
"""Findings of a camera a second, where its label stays and nobody has said another rate."""
_CONNECT_SECONDS: Final = 3.0
_KEEPALIVE_SECONDS: Final = 5
_RETRY_SECONDS: Final = (1.0, 30.0)
"""How soon a broker is tried again: first, and at the longest."""
_FAREWELL_SECONDS: Final = 0.5
_IN_FLIGHT: Final = 20
"""Messages of QoS 1 that the broker has not confirmed yet."""
MOST_WAITING: Final = 1000
"""Findings of QoS 1 that wait for the broker; the oldest are dropped."""
_LOOK_SECONDS: Final = 0.2
"""How often cameras are looked at."""


class MqttSink:
    """Publishes under ``mqtt://host[:port][/topic]``, or ``mqtts://`` with TLS.

    ``put``, ``idle`` and leaving belong to one thread at a time; ``trouble`` and ``figures`` to any.
    """

    lossless = False

    def __init__(
        self,
        uri: str,
        *,
        cameras: Sequence[str] = (),
        options: SinkOptions | None = None,
        wall: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take where the broker is, and whom to tell of before its first frame.

        Raises:
            SinkError: the address is written wrong or holds a password, two cameras would share their topics, or the CA
                file cannot be read.
        """
        try:
            self._broker = parse_broker(uri)
        except ValueError as error:
            raise SinkError(f"{uri.partition('://')[0]}://…: {error}") from None
        if twins := same_level(cameras):
            names = " and ".join(map(repr, twins))
            raise SinkError(f"cameras {names} would share the topic {self._broker.finding(twins[0])!r}; rename one")
        options = options or SinkOptions()
        self._status = self._broker.status(options.mqtt.status)
        self.uri = uri
        self.lost = 0
        """Findings that were not sent, though it was their turn."""
        self.published = 0
        self._qos = options.mqtt.qos
        self._wall, self._clock = wall, clock
        self._board = Board(cameras, clock)
        self._pace = Pace(options.max_rate or _RATE)
        self._labels: dict[str, str] = {}
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._states: dict[str, str] = {}
        """What was last said of each camera on this connection."""
        self._looked_at = float("-inf")
        self._unconfirmed: set[int] = set()
        self._client = self._made(options)
        self._connected = False
        self._why = "not yet connected"
        self._said = False
        """Whether it has been said that there is no connection."""
        self._calling_since: float | None = None
        self._retry_at, self._pause = float("-inf"), _RETRY_SECONDS[0]

    def about(self, outcome: Outcome) -> None:
        """Take the run: how its cameras do."""
        self._board.outcome = outcome

    @property
    def trouble(self) -> str:
        """Why nothing is told to the broker, in words; empty while all is."""
        why = self._why or "it is being called"
        return "" if self._connected else f"no connection to the broker ({why}); {self.lost} findings not sent"

    def figures(self) -> list[Figure]:
        """Return whether the broker hears us, and how much it heard."""
        here = (("sink", self.uri),)
        return [
            Figure("mqtt_connected", float(self._connected), "1 while an MQTT broker hears us.", labels=here),
            Figure("mqtt_published", self.published, "Findings handed to an MQTT broker.", "counter", here),
            Figure("mqtt_lost", self.lost, "Findings that no MQTT broker took.", "counter", here),
        ]

    def __enter__(self) -> Self:
        return self

    def needs_picture(self, camera: str) -> bool:  # noqa: ARG002 - the same for every camera
        """Say no: a finding is told in words."""
        return False

    def put(self, overlay: Overlay) -> None:
        """Take note of a frame, and tell of it where it is its turn; waits for the broker only to connect."""
        self._board.note(overlay)
        explanation = overlay.explanation
        camera, now = explanation.frame.camera, self._clock()
        label = explanation.findings[0].label if explanation.findings else ""
        if overlay.silence is None and (self._labels.get(camera) != label or self._pace.is_due(camera, now)):
            self._labels[camera] = label
            self._pace.note(camera, now)
            try:
                message = finding_message(explanation, sent_at_unix=self._wall(), now_monotonic=now)
                self._waiting.append((self._broker.finding(camera), message))
            except WireError as error:
                self.lost += 1
                log.debug("%s: %s", self.uri, error)
        self.idle()

    def idle(self) -> None:
        """Hear the broker, connect where there is no connection, and send what waits."""
        self._serve()
        if self._connected:
            self._tell_states()
            self._send()
        # What QoS 0 cannot send now is nobody's business later.
        most = MOST_WAITING if self._qos else 0
        while len(self._waiting) > most:
            self._waiting.popleft()
            self.lost += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if self._connected:
            until = self._clock() + _FAREWELL_SECONDS
            self._looked_at = float("-inf")
            self._tell_states()
            self._client.publish(self._status, OFFLINE, qos=1, retain=True)
            while self._connected and (self._client.want_write() or self._waiting or self._unconfirmed):
                self._client.loop(0.02)
                self._send()
                if self._clock() >= until:
                    break
            self._connected = False
            self._client.disconnect()
            self._client.loop(0.0)
        self.lost += len(self._waiting)
        self._waiting.clear()
        self._connected = False
        self._client.reinitialise()  # closes its sockets, the pair it wakes itself with too

    def _made(self, options: SinkOptions) -> Client:
        client = Client(CallbackAPIVersion.VERSION2, clean_session=True)
        client.connect_timeout = _CONNECT_SECONDS
        client.max_inflight_messages_set(_IN_FLIGHT)
        client.will_set(self._status, OFFLINE, qos=1, retain=True)
        client.on_connect = self._answered
        client.on_disconnect = self._disconnected
        client.on_publish = self._confirmed
        known = options.mqtt
        if known.user is not None:
            client.username_pw_set(known.user, known.password)
            if not self._broker.tls and not self._broker.is_local:
                log.warning("%s: the password goes over the network unencrypted; use mqtts://", self.uri)
        if known.ca_file is not None and not self._broker.tls:
            raise SinkError(f"{self.uri}: ca_file {known.ca_file}: is for TLS; write mqtts:// before the broker's name")
        if self._broker.tls:
            try:
                client.tls_set_context(ssl.create_default_context(cafile=known.ca_file))
            except (OSError, ssl.SSLError) as error:
                raise SinkError(
                    f"{self.uri}: ca_file {known.ca_file}: cannot be read ({error}); it should hold "
                    "the broker's CA certificate, as PEM"
                ) from None
        return client

    def _serve(self) -> None:
        """Read and write what is there, without waiting; call the broker where it is time to."""
        now = self._clock()
        if self._connected or self._calling_since is not None:
            code = self._client.loop(0.0)
            if not self._connected and self._calling_since is None:
                return  # the callback has told already
            if code is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._lose(error_string(code))
            elif self._calling_since is not None and now - self._calling_since > _CONNECT_SECONDS:
                self._client.disconnect()
                self._lose("it takes connections, and says nothing")
        elif now >= self._retry_at:
            try:
                self._calling_since, self._why = now, ""
                self._client.connect(self._broker.host, self._broker.port, keepalive=_KEEPALIVE_SECONDS)
            except (OSError, ValueError) as error:
                self._lose(getattr(error, "strerror", None) or str(error) or type(error).__name__)

    def _answered(self, _client: Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:  # noqa: ANN401 - paho's shape
        if code.is_failure:
            self._why = f"it refuses us: {code}"
            return
        log.info("%s: connected", self.uri)
        self._connected, self._calling_since, self._said = True, None, False
        self._pause = _RETRY_SECONDS[0]
        self._states.clear()
        self._client.publish(self._status, ONLINE, qos=1, retain=True)

    def _disconnected(self, _client: Client, _data: Any, _flags: Any, code: ReasonCode, _properties: Any) -> None:  # noqa: ANN401 - paho's shape
        if self._connected:
            self._lose(str(code))

    def _confirmed(self, _client: Client, _data: Any, number: int, _code: ReasonCode, _properties: Any) -> None:  # noqa: ANN401 - paho's shape
        self._unconfirmed.discard(number)

    def _lose(self, why: str) -> None:
        """Note that there is no connection, say so once, and try again later."""
        refused = self._calling_since is not None and self._why  # the broker's own words are better
        self._why = self._why if refused else why
        self._connected, self._calling_since = False, None
        self._retry_at = self._clock() + self._pause
        self._pause = min(2 * self._pause, _RETRY_SECONDS[1])
        if not self._said:
            self._said = True
            log.warning("%s: no connection to the broker (%s); it is tried again and again", self.uri, self._why)

    def _tell_states(self) -> None:
        """Tell of every camera whose state has changed since it was last told of."""
        now = self._clock()
        if now - self._looked_at < _LOOK_SECONDS and self._states:
            return
        self._looked_at = now
        for told in self._board.told():
            camera, state = told["camera"], f"{told['state']} {told['reason']}"
            if self._states.get(camera) != state and not self._client.want_write():
                self._states[camera] = state
                message = state_message(told, self._wall(), self._status)
                self._client.publish(self._broker.state(camera), message, qos=self._qos, retain=True)

    def _send(self) -> None:
        while self._waiting and self._connected and not self._unsettled() and not self._client.want_write():
            topic, message = self._waiting.popleft()
            told = self._client.publish(topic, message, qos=self._qos)
            self.published += 1
            if self._qos and not told.is_published():
                self._unconfirmed.add(told.mid)

    def _unsettled(self) -> bool:
        """Say whether as many messages wait for the broker's word as may."""
        return len(self._unconfirmed) >= _IN_FLIGHT

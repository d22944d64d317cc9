"""MQTT sink: publishes findings to a broker, for a control room, the gateway of a PLC or home automation.

It sends no images. The finding of a live camera is published when its label changes, and otherwise at the sink's rate;
for a file or a folder, every finding is published. The state of a camera is published as a retained message when it
changes. If a run disappears, the broker publishes ``offline`` (the last will). Messages that cannot be sent wait in a
bounded queue, or are dropped and counted.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final

from overlays.sinks.events import EventsSink
from overlays.sinks.login import read_login
from overlays.sinks.mqtt.connection import BrokerConnection
from overlays.sinks.mqtt.counters import FindingQueue, MqttCounts, QueuedFinding
from overlays.sinks.mqtt.events import EventTopics
from overlays.sinks.mqtt.messages import (
    OFFLINE,
    colliding_cameras,
    finding_message,
    parse_broker,
    passage_message,
    state_message,
)
from overlays.sinks.rate_limit import RateLimiter
from overlays.sinks.settings import MqttSettings
from overlays.web.status import StatusBoard
from overlays.wire.text import replace_undecodable
from pipeline.errors import DataLossError, SinkError, WireError
from pipeline.frames import Frame, Overlay
from pipeline.passages.passage import PassageCursor
from pipeline.ports import MetricSample, Sink
from pipeline.result import RunResult
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

_DEFAULT_RATE: Final = 1.0
"""Default of ``max_rate``: findings per second of a live camera whose label does not change."""
_OFFLINE_SECONDS: Final = 0.5
"""Maximum time to publish the last messages at the end."""
_ANSWER_SECONDS: Final = 2.0
"""Time that the last findings of live cameras wait for the broker's answers."""
_STALL_SECONDS: Final = 10.0
"""Time after which findings of files are dropped, if the broker confirms none."""
_MIN_RATE: Final = 40.0
"""Findings per second that a broker must confirm at the end of a run; the sink does not wait for a slower broker."""
MAX_WAITING: Final = 1000
"""Maximum number of findings that wait for the broker; the oldest are dropped."""
_STATE_SECONDS: Final = 0.2
"""Interval between two checks of the cameras' states."""
_WAIT_SECONDS: Final = 0.02


class MqttSink(Sink):
    """Publishes under ``mqtt://host[:port][/topic]``, or ``mqtts://`` with TLS.

    ``put``, ``idle`` and ``__exit__`` are for one thread at a time; ``problem``, ``account`` and ``metrics`` for any.
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
        """Read the address and the options; the connection is made later.

        Args:
            settings: address of the broker, first levels of the topics, and the sink's options.
            context: the expected cameras, whose states are published before their first frames, and the credentials.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds.

        Raises:
            ConfigError: the credentials file is not one line, user:password.
            SinkError: the address is invalid or contains a password, two cameras would have the same topics, or the CA
                file cannot be read.
        """
        self._settings, context = MqttSettings.of(settings), context or SinkContext()
        uri, cameras = self._settings.uri, context.cameras
        try:
            self._broker = parse_broker(uri)
        except ValueError as error:
            raise SinkError(f"{uri.partition('://')[0]}://…: {error}") from None
        if collision := colliding_cameras(cameras):
            names = " and ".join(map(repr, collision))
            raise SinkError(
                f"cameras {names} would share the topic {self._broker.finding(collision[0])!r}; rename one of them"
            )
        login = read_login(context.secrets.get("credentials_file"))
        self.uri = uri
        self._status = self._broker.status(self._settings.status_topic)
        self._qos = self._settings.qos
        self._wall_clock, self._clock = wall_clock, clock
        self._status_board = StatusBoard(cameras, clock)
        self._max_rate = self._settings.max_rate
        self._rate_limiter = RateLimiter(self._settings.max_rate or _DEFAULT_RATE)
        self._labels: dict[str, str] = {}
        self._passages = PassageCursor()
        self._events: EventTopics | None = None
        self._counts = MqttCounts()
        self._queue = FindingQueue(self._counts)
        self._ended: dict[str, dict[str, Any]] = {}
        """The last states of cameras that left the run, by name."""
        self._published_states: dict[str, str] = {}
        """The last published state of each camera on this connection."""
        self._states_checked_at = float("-inf")
        self._has_given_up = False
        """True if findings of files were dropped since the last connection."""
        self._pause = threading.Event()
        self._connection = BrokerConnection(
            self._settings, self._broker, login, self._counts, on_connect=self._handle_connect, clock=clock
        )
        if login is not None and not self._broker.tls and not self._broker.is_local:
            log.warning("%s: the password is sent over the network unencrypted; use mqtts://", self.uri)

    def on_run_start(self, result: RunResult) -> None:
        """Store the state of the run, from which camera states and events are read."""
        self._status_board.outcome = result
        events = next((part for part in result.parts if isinstance(part, EventsSink)), None)
        self._events = None if events is None else EventTopics(events, self._broker, self._status, self.uri)

    @property
    def problem(self) -> str:
        """Reason why findings do not reach the broker; empty while they do."""
        if self._connection.is_connected:
            refusal, refused = self._counts.refusal, self._counts.refused
            return refusal and f"the broker refuses findings ({refusal}); {refused} so far"
        why = self._connection.reason or "connecting to the broker"
        return f"no connection to the broker ({why}); {self.lost} findings not sent"

    @property
    def account(self) -> str:
        """One-line summary of published, omitted, refused and lost findings."""
        summary = self._counts.account(self._max_rate or _DEFAULT_RATE, is_v5=self._connection.is_v5)
        waiting = len(self._queue) + len(self._connection.unconfirmed_findings)
        return f"{summary}, {waiting} not confirmed yet" if waiting else summary

    @property
    def lost(self) -> int:
        """Number of findings that were due but not sent."""
        return self._counts.lost

    def metrics(self) -> list[MetricSample]:
        """Return the state of the connection and the counts of findings."""
        return self._counts.metrics(self.uri, is_connected=self._connection.is_connected)

    def put(self, overlay: Overlay) -> None:
        """Queue the finding of a frame if it is due; wait for a slow broker if findings of files fill the queue."""
        self._status_board.update(overlay)
        self._queue_passages(overlay)
        self._ended.pop(replace_undecodable(overlay.explanation.frame.camera), None)
        if overlay.signal_loss is None:
            self._queue_finding(overlay)
        self.idle()
        if len(self._queue) >= MAX_WAITING and self._queue.holds_files:
            self._wait_until(lambda: len(self._queue) < MAX_WAITING)

    def idle(self) -> None:
        """Serve the connection and publish the queued findings."""
        self._queue_events()
        self._connection.serve()
        if self._connection.is_connected:
            self._publish_states()
            self._publish_open_events()
            self._send()
        self._queue.trim(MAX_WAITING, keep_live=bool(self._qos))

    def forget_camera(self, camera: str) -> None:
        """Publish the state ``ended`` of a camera, so that its retained state does not stay ``live``."""
        self._labels.pop(camera, None)
        self._passages.forget(camera)
        name = replace_undecodable(camera)
        ended = {"state": "ended", "reason": "removed from the run"}
        self._ended |= {s["camera"]: s | ended for s in self._status_board.snapshot() if s["camera"] == name}
        self._status_board.forget(camera)
        self._states_checked_at = float("-inf")

    def on_run_end(self) -> None:
        """Wait for the broker's answers: longer for findings of files, which are not repeated."""
        self._queue_events()
        owes_files = self._queue.holds_files or any(f.is_file for f in self._connection.unconfirmed_findings)
        if owes_files:
            self._wait_until(lambda: not self._pending, _STALL_SECONDS + self._pending / _MIN_RATE)
        elif self._connection.is_connected:
            self._wait_until(lambda: not self._pending or not self._connection.is_connected, _ANSWER_SECONDS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        if kind is None:
            self.on_run_end()
        if self._connection.is_connected:
            self._go_offline()
        self._queue.trim(0, keep_live=True)
        self._connection.close()
        if kind is None and (self._counts.refused or self._counts.lost_of_files):
            raise DataLossError(f"{self.uri}: not every finding reached the broker: {self.account}")

    @property
    def _pending(self) -> int:
        """Number of messages that are queued or not confirmed."""
        return len(self._queue) + self._connection.unconfirmed

    def _queue_finding(self, overlay: Overlay) -> None:
        explanation = overlay.explanation
        frame, now = explanation.frame, self._clock()
        camera, is_file = frame.camera, self._is_file(frame)
        top = explanation.top_scoring
        label = top.label if top else ""
        is_unlimited = is_file and self._max_rate is None
        if not (is_unlimited or self._labels.get(camera) != label or self._rate_limiter.is_due(camera, now)):
            self._counts.left_out += 1
            return
        self._labels[camera] = label
        self._rate_limiter.record(camera, now)
        try:
            message = finding_message(explanation, sent_at_unix=self._wall_clock(), now_monotonic=now)
            self._queue.add(QueuedFinding(self._broker.finding(camera), message, is_file))
        except WireError as error:
            self._counts.lost += 1
            log.debug("%s: %s", self.uri, error)

    def _queue_passages(self, overlay: Overlay) -> None:
        """Queue the finished parts and crossings, including passages from frames that did not reach this sink."""
        explanation = overlay.explanation
        camera, is_file = explanation.frame.camera, self._is_file(explanation.frame)
        for passage in self._passages.take(explanation):
            message = passage_message(passage, sent_at_unix=self._wall_clock(), now_monotonic=self._clock())
            topic = self._broker.passage(camera, passage.kind)
            self._queue.add(QueuedFinding(topic, message, is_file, is_passage=True))

    def _is_file(self, frame: Frame) -> bool:
        """Return whether a frame comes from a file or a folder, whose frames come only once."""
        workers = () if self._status_board.outcome is None else self._status_board.outcome.source_workers
        return bool(frame.source_name) or any(p.camera == frame.camera and not p.source.live for p in workers)

    def _wait_until(self, is_done: Callable[[], bool], max_seconds: float = math.inf) -> None:
        """Serve the connection until ``is_done``, without progress for too long, or for ``max_seconds``."""
        end = time.monotonic() + max_seconds
        pending, deadline = self._pending, time.monotonic() + _STALL_SECONDS
        while not is_done() and not self._has_given_up:
            self._pause.wait(_WAIT_SECONDS)
            self.idle()
            if self._pending != pending:
                pending, deadline = self._pending, time.monotonic() + _STALL_SECONDS
            self._has_given_up = time.monotonic() >= min(deadline, end)

    def _go_offline(self) -> None:
        """Publish the last states and ``offline``, then disconnect."""
        deadline = self._clock() + _OFFLINE_SECONDS
        self._states_checked_at = float("-inf")
        self._queue_events()
        self._publish_states()
        self._publish_open_events()
        self._connection.publish(self._status, OFFLINE, qos=1, retain=True)
        while self._connection.is_connected and (self._connection.has_unsent_bytes or self._pending):
            self._connection.loop(_WAIT_SECONDS)
            self._send()
            if self._clock() >= deadline:
                break
        self._connection.disconnect()

    def _handle_connect(self) -> None:
        self._has_given_up = False
        self._published_states.clear()
        if self._events is not None:
            self._events.publish_again()

    def _publish_states(self) -> None:
        """Publish the state of every camera whose state has changed since it was last published."""
        now = self._clock()
        if now - self._states_checked_at < _STATE_SECONDS and self._published_states:
            return
        self._states_checked_at = now
        for status in [*self._status_board.snapshot(), *self._ended.values()]:
            camera, state = status["camera"], f"{status['state']} {status['reason']}"
            if self._published_states.get(camera) != state and not self._connection.has_unsent_bytes:
                self._published_states[camera] = state
                message = state_message(status, self._wall_clock(), self._status)
                self._connection.publish(self._broker.state(camera), message, qos=self._qos, retain=True)

    def _queue_events(self) -> None:
        """Queue the starts, changes and ends of events."""
        if self._events is not None:
            lost, messages = self._events.take()
            self._counts.lost += lost
            for message in messages:
                self._queue.add(message)

    def _publish_open_events(self) -> None:
        """Publish the list of open events of each camera whose list has changed."""
        if self._events is not None and not self._connection.has_unsent_bytes:
            for topic, message in self._events.changed_lists(self._status_board.cameras):
                self._connection.publish(topic, message, qos=self._qos, retain=True)

    def _send(self) -> None:
        while self._queue and self._connection.is_ready:
            self._connection.publish_finding(self._queue.take(), qos=self._qos)

"""Events sink: writes the events of each camera, with images and the actions of viewers, to ``FILE.sqlite``.

Alarms of guards, frames that meet a condition, and lost signals become events. The page of the same run shows them
(``overlays.web.events``). If the disk refuses a write, the run continues, and events wait in memory.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from overlays.events.drift import DriftObserver
from overlays.events.event import Change, Event, Evidence
from overlays.events.evidence import make_evidence
from overlays.events.feed import EventFeed, Occasion
from overlays.events.passages import make_passage_observer
from overlays.events.query import EventReader
from overlays.events.store import Action, ActionConflict, EventStore
from overlays.events.tracker import (
    EventTracker,
    Observer,
    make_condition_observer,
    observe_disagreement,
    observe_guards,
)
from overlays.events.webhook import Webhook, read_webhook
from overlays.sinks.disk import DiskSink
from overlays.sinks.paths import check_writable, path_errors
from overlays.sinks.settings import EventSettings
from pipeline.errors import WireError
from pipeline.frames import Overlay
from pipeline.guards.parser import parse_condition
from pipeline.ports import MetricSample
from pipeline.result import RunResult
from pipeline.settings import SinkContext

log = logging.getLogger(__name__)

MAX_WAITING: Final = 500
"""Maximum number of events that wait in memory for the disk; above it, the oldest are lost."""
MAX_ACTIONS: Final = 100
_PRUNE_SECONDS: Final = 60.0
_WRITES_BEFORE_PRUNE: Final = 20
_HEALTH_SECONDS: Final = 1.0
_DRIFT_SECONDS: Final = 5.0
_SILENT_SECONDS: Final = 5.0
"""Time without a first frame after which a camera gets an event."""


class EventsSink(DiskSink):
    """Writes events to ``FILE.sqlite``. ``reader``, ``feed`` and ``submit`` are for any thread."""

    reports_signal_loss = True

    def __init__(
        self,
        settings: EventSettings | str,
        context: SinkContext | None = None,
        *,
        wall_clock: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Check the options; ``__enter__`` opens the database.

        Args:
            settings: the file, its limits, and the conditions of events.
            context: the colours of the images.
            wall_clock: returns Unix seconds.
            clock: returns monotonic seconds; with ``wall_clock`` it converts ``captured_at`` to Unix time.

        Raises:
            ConfigError: the condition cannot be parsed.
        """
        self._settings = settings = EventSettings.of(settings)
        self._path = Path(settings.uri)
        super().__init__(settings.uri, self._path.parent, wall_clock, clock, unit="events")
        context = context or SinkContext()
        self._style, self._painted = (context.colormap, context.opacity), context.painted
        passages = make_passage_observer(settings.passages, self._passages)
        observers: list[Observer] = [observe_guards, observe_disagreement, passages]
        if settings.when is not None:
            condition = parse_condition(settings.when, option="when")
            observers.append(make_condition_observer(settings.when, condition))
        self._tracker = EventTracker(observers, gap_seconds=settings.gap_seconds)
        self._store = EventStore(
            self._path, budget_bytes=settings.budget_bytes, keep_seconds=settings.keep_days * 86400.0
        )
        self.reader = EventReader(self._path)
        """Reads events from the database; for any thread."""
        self.feed = EventFeed()
        """The last changes of events; for any thread."""
        self._waiting: dict[str, tuple[Event, Evidence | None]] = {}
        """Events that are not written yet, the oldest first."""
        self._unwritten: set[str] = set()
        """Events of ``_waiting`` that the disk has refused, and that ``lost`` counts."""
        self._started: set[str] = set()
        """Open events whose start was published."""
        secret = context.secrets.get("webhook_file")
        self._webhook = None if secret is None else Webhook(
            read_webhook(secret), self.feed, self.uri, ca_file=settings.webhook_ca_file, wall_clock=wall_clock
        )  # fmt: skip
        # Guards the list of actions, to which the page's thread appends.
        self._lock = threading.Lock()
        self._actions: deque[tuple[Action, Future[dict[str, Any] | None]]] = deque()
        self._writes = 0
        self._drift = DriftObserver()
        self._gone: set[str] = set()
        """Cameras that left the run: their drift is still reported, but their drift events have ended."""
        self._pruned_at = self._checked_at = self._began_at = self._drift_at = float("-inf")
        self._result: RunResult | None = None
        self._is_open = False

    def __enter__(self) -> Self:
        check_writable(self._path)
        with path_errors(self._path):
            interrupted = self._store.open(self._wall_clock(), self._clock())
        self._publish(interrupted, [("ended", record) for record in interrupted])
        self._reserve.fill()
        self._pruned_at = self._began_at = self._clock()
        self._is_open = True
        if self._webhook is not None:
            self._webhook.__enter__()
        return self

    def on_run_start(self, result: RunResult) -> None:
        """Store the state of the run, from which cameras without any frame are known."""
        self._result = result

    def submit(self, action: Action) -> Future[dict[str, Any] | None]:
        """Queue an action for the sink's thread; return the future of the changed event. For any thread.

        The future raises ``ActionConflict`` if another viewer changed the event before, and ``OSError`` if the disk
        refuses the write or too many actions wait.
        """
        future: Future[dict[str, Any] | None] = Future()
        with self._lock:
            if self._is_open and len(self._actions) < MAX_ACTIONS:
                self._actions.append((action, future))
                return future
            why = f"{MAX_ACTIONS} other changes wait; try again" if self._is_open else "the run has ended"
        future.set_exception(OSError(why))
        return future

    def metrics(self) -> list[MetricSample]:
        """Return the state of the disk, and the numbers of events and bytes."""
        label = (("sink", self.uri),)
        counts = [
            MetricSample("events", self._tracker.begun_count, "Events that began in this run.", "counter", label),
            MetricSample("events_open", self._tracker.open_count, "Open events.", labels=label),
            MetricSample("recorder_bytes", self._store.file_bytes(), "Disk space of a recorder's clips, in bytes.",
                         labels=label),
        ]  # fmt: skip
        webhook = [] if self._webhook is None else self._webhook.metrics()
        return [*counts, *super().metrics(), *webhook]

    @property
    def problem(self) -> str:
        """Reason why no event is written, or why the webhook gets no messages; empty if all works."""
        return super().problem or ("" if self._webhook is None else self._webhook.problem)

    def put(self, overlay: Overlay) -> None:
        """Update the events by a frame. Raises ``SinkError`` if another program replaced the database."""
        now, now_unix = self._clock(), self._wall_clock()
        is_loss = overlay.signal_loss is not None
        if self._gone:
            self._gone.discard(overlay.explanation.frame.camera)
        taken_unix = now_unix if is_loss else now_unix - (now - overlay.explanation.frame.captured_at)
        self._add(self._tracker.update(overlay, taken_unix))
        self._work(now, now_unix)

    def idle(self) -> None:
        """Apply actions, and write waiting events."""
        self._work(self._clock(), self._wall_clock())

    def forget_camera(self, camera: str) -> None:
        """End the events of a camera that left."""
        self._add(self._tracker.end_camera(camera, self._wall_clock()))
        self._gone.add(camera)
        super().forget_camera(camera)
        self._work(self._clock(), self._wall_clock())

    def on_run_end(self) -> None:
        """End all events, so that other sinks can publish the ends before they close."""
        self._add(self._tracker.end_all(self._wall_clock()))
        self._write()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        with self._lock:
            self._is_open = False
        self.on_run_end()
        self._apply_actions(self._wall_clock())
        self._store.close()
        if self._webhook is not None:
            self._webhook.__exit__(None, None, None)
        self._reserve.close()
        self._report_losses(self.uri, "events", kind)

    def _work(self, now: float, now_unix: float) -> None:
        """Do all work that is due; return at once if there is none."""
        if self._actions:
            self._apply_actions(now_unix)
        if now - self._checked_at >= _HEALTH_SECONDS:
            self._checked_at = now
            self._check_cameras(now, now_unix)
            self._check_drift(now, now_unix)
            self._wake(now_unix)
        if self._waiting and not self._disk.in_backoff:
            self._write()
        if now - self._pruned_at >= _PRUNE_SECONDS or self._writes >= _WRITES_BEFORE_PRUNE:
            self._prune(now, now_unix)

    def _check_cameras(self, now: float, now_unix: float) -> None:
        """Begin an event for each camera without a frame since the start of the run."""
        if self._result is None or now - self._began_at < _SILENT_SECONDS:
            return
        for worker in list(self._result.source_workers):
            health = worker.health
            if worker.frame_rate.last_at is None and health.reason and health.state != "live":
                since = now_unix - (now - self._began_at)
                self._add(self._tracker.lost(worker.camera, since, now_unix, health.reason))

    def _check_drift(self, now: float, now_unix: float) -> None:
        """Begin and end the events of drift from the baseline."""
        if self._result is None or now - self._drift_at < _DRIFT_SECONDS:
            return
        self._drift_at = now
        observed = self._drift.observe(self._result.metrics())
        present = {camera: items for camera, items in observed.items() if camera not in self._gone}
        self._add(self._tracker.drift(present, now_unix))

    def _add(self, changes: list[Change]) -> None:
        for change in changes:
            before = self._waiting.pop(change.event.id, None)
            evidence = self._evidence(change.overlay) if change.overlay is not None else None
            self._waiting[change.event.id] = (change.event, evidence or (before[1] if before else None))
        while len(self._waiting) > MAX_WAITING:
            oldest = next(iter(self._waiting))
            del self._waiting[oldest]
            self._disk.count_lost(oldest not in self._unwritten)
            self._unwritten.discard(oldest)

    def _evidence(self, overlay: Overlay) -> Evidence | None:
        try:
            return make_evidence(
                overlay, self._settings.image_pixels, self._style, painted=self._painted,
                sent_at_unix=self._wall_clock(), now_monotonic=self._clock(),
            )  # fmt: skip
        except WireError as error:
            log.warning("%s: an event has no image: %s", self.uri, error)
            return None

    def _write(self) -> None:
        """Write all waiting events; after a failure they wait longer, and count as lost until they are written."""
        if not self._waiting:
            return
        self._disk.refresh()
        try:
            records = self._store.write(self._waiting)
        except OSError as error:
            self._disk.record_failure(error)
            new = self._waiting.keys() - self._unwritten
            self._disk.count_lost(len(new))
            self._unwritten |= new
            return
        self._disk.count_lost(-len(self._unwritten & self._waiting.keys()))
        self._disk.record_success()
        self._waiting.clear()
        self._unwritten.clear()
        self._writes += 1
        self._publish(records, [notice for record in records for notice in self._occasions(record)])

    def _occasions(self, record: dict[str, Any]) -> Iterator[tuple[Occasion, dict[str, Any]]]:
        """Yield the start and the end of a written event that were not published yet."""
        if record["id"] not in self._started:
            self._started.add(record["id"])
            yield "started", record
        if record["end"] is not None:
            self._started.discard(record["id"])
            yield "ended", record

    def _publish(self, records: list[dict[str, Any]], notices: list[tuple[Occasion, dict[str, Any]]]) -> None:
        self.feed.publish(records, notices)
        if notices and self._webhook is not None:
            self._webhook.wake()

    def _apply_actions(self, now_unix: float) -> None:
        if self._waiting and not self._disk.in_backoff:
            self._write()  # an action may concern an event that is not written yet
        while self._actions:
            with self._lock:
                action, future = self._actions.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                record = self._store.act(action, now_unix)
            except ActionConflict as error:
                future.set_exception(error)
                continue
            except OSError as error:
                self._disk.record_failure(error)
                future.set_exception(error)
                continue
            if record is not None:
                self._publish([record], [("changed", record)])
            future.set_result(record)

    def _wake(self, now_unix: float) -> None:
        """End the snoozes that are over."""
        if self._disk.in_backoff:
            return
        try:
            records = self._store.wake(now_unix)
        except OSError as error:
            self._disk.record_failure(error)
            return
        if records:
            self._publish(records, [("changed", record) for record in records])

    def _prune(self, now: float, now_unix: float) -> None:
        self._pruned_at, self._writes = now, 0
        if self._disk.in_backoff:
            return
        try:
            self._store.prune(now_unix, now)
        except OSError as error:
            self._disk.record_failure(error)
        else:
            self._disk.record_success()

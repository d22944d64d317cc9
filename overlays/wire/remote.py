"""The cameras of another run as sources of a pipeline; their frames arrive with explanation and drawn heat map.

Viewer --ReceivedFrame--> RemoteStream --> RemoteCamera --ExplainedFrame--> RemoteExplainer --> RemoteRenderer
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Final, Protocol, Self, cast, get_args

from overlays.render.stale import format_duration, stale_overlay
from overlays.wire.endpoint import without_user
from overlays.wire.viewer import ReceivedFrame, Viewer
from pipeline.errors import WireError
from pipeline.frame_rate import SILENT_INTERVALS
from pipeline.frames import Explanation, Frame, Overlay, SignalLoss
from pipeline.guards.metrics import guard_metrics, heatmap_metrics
from pipeline.ports import Discovery, Explainer, Health, MetricSample, Renderer, Source, State
from pipeline.result import RunResult
from pipeline.workers.thread import POLL_SECONDS, ThreadWorker, WorkerOwner

log = logging.getLogger(__name__)

SIGNAL_LOSS_SECONDS: Final = 2.0
"""Time without any message after which the signal counts as lost. The publisher itself reports single lost cameras."""
MAX_CAMERAS: Final = 64
"""Maximum number of cameras received without ``--camera``, because each camera needs resources in every sink."""
_REPORT_SECONDS: Final = 5.0
_TOO_MANY: Final = f"at most {MAX_CAMERAS} are received; name the cameras to receive: --camera NAME"


@dataclass(frozen=True, slots=True, eq=False)
class ExplainedFrame(Frame):
    """A frame that was received with its explanation."""

    explanation: Explanation = field(kw_only=True)

    @classmethod
    def of(cls, explanation: Explanation) -> Self:
        """Return the frame of ``explanation`` as an ``ExplainedFrame``."""
        frame = explanation.frame
        values = {each.name: getattr(frame, each.name) for each in fields(frame)}
        return cls(**values, explanation=explanation)


class Origin(Protocol):
    """The interface of a stream that its cameras use."""

    uri: str

    @property
    def problem(self) -> str:
        """Reason why no message arrives; empty if no reason is known."""


class RemoteCamera(Source):
    """One camera of another run. Only the newest waiting message is read; older ones are skipped."""

    live = True
    min_silence_seconds = SIGNAL_LOSS_SECONDS

    def __init__(self, camera: str, origin: Origin) -> None:
        """Set the camera's name in this run, and the stream that receives the camera."""
        self.camera, self.uri = camera, origin.uri
        self.health = Health()
        self._origin = origin
        # Guards the newest message and the newest signal-loss image.
        self._condition = threading.Condition()
        self._newest: ReceivedFrame | None = None
        self._stale: Overlay | None = None
        self._signal_loss: SignalLoss | None = None
        """Signal loss reported by the publisher; None while frames arrive."""
        self._last: tuple[int, int | None] | None = None
        """Index and epoch of the last yielded frame."""
        self._missed = self._damaged = 0

    def offer(self, received: ReceivedFrame) -> None:
        """Store a message as the newest one, in place of a waiting message. For any thread."""
        with self._condition:
            self._newest = received
            self._condition.notify()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield live frames as they arrive, until ``stop`` is set."""
        while not stop.is_set():
            with self._condition:
                self._condition.wait_for(lambda: self._newest, POLL_SECONDS)
                received, self._newest = self._newest, None
            frame = None if received is None else self._read(received)
            self.health = self._current_health()
            if frame is not None:
                yield frame

    def take_stale(self) -> Overlay | None:
        """Return the publisher's newest signal-loss image once; None if no new one has arrived."""
        with self._condition:
            stale, self._stale = self._stale, None
        return stale

    def _read(self, received: ReceivedFrame) -> Frame | None:
        """Return the frame of a message; None if the image is damaged or shows a signal loss."""
        try:
            overlay = received.overlay()
        except WireError as error:
            self._damaged += 1
            if self._damaged == 1:
                log.warning("%s: an image of camera %r is left out: %s", self.uri, self.camera[:80], error)
            return None
        overlay = _renamed(overlay, self.camera)
        self._signal_loss = overlay.signal_loss
        with self._condition:
            self._stale = None if overlay.signal_loss is None else overlay
        if overlay.signal_loss is not None:
            return None
        frame = ExplainedFrame.of(overlay.explanation)
        # Indices restart at 0 with the publisher, and are unrelated between workers of a fleet.
        if self._last is not None and frame.epoch == self._last[1]:
            self._missed += max(frame.index - self._last[0] - 1, 0)
        self._last = frame.index, frame.epoch
        return frame

    def _current_health(self) -> Health:
        state: State = "live"
        problem, loss = self._origin.problem, self._signal_loss
        if problem:
            state = "waiting"
        elif loss is not None:
            state, problem = cast("State", loss.state) if loss.state in get_args(State) else "stalled", loss.reason
        return Health(state, problem, corrupt=self._damaged, missed=self._missed)


def _renamed(overlay: Overlay, camera: str) -> Overlay:
    """Return the overlay with its camera renamed to ``camera``."""
    explanation = overlay.explanation
    if explanation.frame.camera == camera:
        return overlay
    explanation = replace(
        explanation,
        frame=replace(explanation.frame, camera=camera),
        passages=tuple(replace(passage, camera=camera) for passage in explanation.passages),
        recent_passages=tuple(replace(passage, camera=camera) for passage in explanation.recent_passages),
    )
    return replace(overlay, explanation=explanation)


class RemoteStream(WorkerOwner, Discovery):
    """Finds the cameras of a stream, and passes each camera its messages.

    Args:
        viewer: an entered viewer, which no other code reads.
        cameras: exact names of the cameras to receive, because topics select by prefix. Empty: the first
            ``MAX_CAMERAS`` cameras that send.
        suffix: text appended to the camera names in this run.
    """

    def __init__(self, viewer: Viewer, cameras: Sequence[str] = (), *, suffix: str = "") -> None:
        self.left_out = 0
        """Number of messages of cameras beyond the first ``MAX_CAMERAS``."""
        self._viewer, self._names, self._suffix = viewer, frozenset(cameras), suffix
        self.uri = without_user(viewer.uri)
        self._cameras: dict[str, RemoteCamera] = {}
        self._appeared: deque[RemoteCamera] = deque()
        self._stop = threading.Event()
        self._worker = ThreadWorker(f"cameras of {viewer.uri}", self._receive, self._stop.set)

    def take(self) -> list[RemoteCamera]:
        """Return the cameras that appeared since the previous call.

        Raises:
            WireVersionError: the publisher is newer than this viewer.
        """
        if self._worker.error is not None:
            raise self._worker.error
        return [self._appeared.popleft() for _ in range(len(self._appeared))]

    @property
    def notes(self) -> list[str]:
        """Lines on damaged and ignored messages, for the summary of a run."""
        notes = []
        if self._viewer.damaged:
            notes.append(f"{self._viewer.damaged} messages could not be decoded; the last: {self._viewer.last_error}")
        if self.left_out:
            notes.append(f"{self.left_out} messages of further cameras left out: {_TOO_MANY}")
        return notes

    @property
    def problem(self) -> str:
        """Reason why no message arrives from this stream; empty while messages arrive."""
        viewer = self._viewer
        if viewer.problem:
            return viewer.problem
        has_waited = not self._cameras and viewer.silent_seconds > SIGNAL_LOSS_SECONDS
        return "no camera has sent anything yet" if has_waited else ""

    def _receive(self) -> None:
        for received in self._viewer.messages(self._stop):
            camera = self._cameras.get(received.camera) or self._add(received.camera)
            if camera is not None:
                camera.offer(received)

    def _add(self, name: str) -> RemoteCamera | None:
        """Add and return a camera; None if it is not named, or if there are already too many."""
        if self._names and name not in self._names:
            return None
        if not self._names and len(self._cameras) >= MAX_CAMERAS:
            if not self.left_out:
                log.warning("%s: camera %r and others are left out: %s", self._viewer.uri, name[:80], _TOO_MANY)
            self.left_out += 1
            return None
        camera = self._cameras[name] = RemoteCamera(name + self._suffix, self._viewer)
        self._appeared.append(camera)
        self.notify()
        return camera


class RemoteExplainer(Explainer):
    """Returns the explanations that were received with the frames."""

    def __init__(self, problem: Callable[[], str] = str) -> None:
        self.uri, self._problem = "stream", problem
        self._last: dict[str, Explanation] = {}
        """The last explanation by camera."""

    @property
    def problem(self) -> str:
        """Reason why no message arrives from a stream; empty if all streams send."""
        return self._problem()

    def explain(self, frames: Sequence[Frame]) -> list[Explanation]:
        """Return the explanation of each ``ExplainedFrame``."""
        explanations = [frame.explanation for frame in cast("Sequence[ExplainedFrame]", frames)]
        self._last |= {explanation.frame.camera: explanation for explanation in explanations}
        return explanations

    def metrics(self) -> list[MetricSample]:
        """Return the metrics of each camera's guards and last heat map."""
        samples: list[MetricSample] = []
        for camera, explanation in list(self._last.items()):
            samples.extend(guard_metrics(camera, explanation.guards))
            samples.extend(heatmap_metrics(explanation))
        return samples


class RemoteRenderer(Renderer):
    """Returns the received images unchanged, because the publisher has drawn the heat maps."""

    def render(self, explanation: Explanation) -> Overlay:
        """Return an overlay with the received image."""
        return Overlay(explanation.frame.pixels, explanation)

    def render_stale(self, explanation: Explanation, signal_loss: SignalLoss) -> Overlay:
        """Return a camera's last image in grey, with the duration and the reason of the signal loss."""
        return stale_overlay(explanation, signal_loss)


class SignalReporter:
    """Reports as lines of text that the signal is lost, with the reason, and that it has returned."""

    def __init__(
        self, viewer: Viewer, report: Callable[[str], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Set the viewer, the function that receives each line, and the clock (monotonic seconds)."""
        self._viewer, self._report, self._clock = viewer, report, clock
        self._lost_since: float | None = None
        self._reported_at = 0.0

    def check(self, result: RunResult) -> None:
        """Report a signal loss, repeat it every 5 s, and report the return. Call this several times per second."""
        now, seconds, problem = self._clock(), self._viewer.silent_seconds, self._viewer.problem
        if seconds <= _timeout_seconds(result, problem):
            if self._lost_since is not None:
                self._report(f"signal from {self._viewer.uri} again after {format_duration(now - self._lost_since)}")
            self._lost_since = None
        elif self._lost_since is None or now - self._reported_at > _REPORT_SECONDS:
            why = f": {problem}" if problem else ""
            self._report(f"no signal from {self._viewer.uri} for {format_duration(seconds)}{why}; waiting for it")
            self._lost_since, self._reported_at = now - seconds, now


def _timeout_seconds(result: RunResult, problem: str) -> float:
    """Return the time in seconds without messages that counts as signal loss.

    It is longer if all cameras have a low frame rate, unless a problem of the connection is known.
    """
    intervals = [worker.frame_rate.interval_seconds for worker in result.source_workers]
    return SIGNAL_LOSS_SECONDS if problem else max(SIGNAL_LOSS_SECONDS, SILENT_INTERVALS * min(intervals, default=0.0))

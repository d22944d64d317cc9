"""The interfaces between the packages. Read this first.

    Source --Frame--> SourceWorker --[Frame, ...]--> Explainer --Explanation--> Renderer --Overlay--> Sink

Each interface is a small protocol with a registry in its package and one file per member. All are called from the
threads of ``pipeline.workers`` and the thread of ``Pipeline.run``, each object from one thread at a time where its
methods do not say otherwise.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self, runtime_checkable

from pipeline.frames import Explanation, Finding, Frame, Overlay, SignalLoss

Overflow = Literal["drop-oldest", "wait"]
"""What a full queue does: ``drop-oldest`` keeps the newest frames (live), ``wait`` keeps all frames (files)."""

State = Literal["connecting", "live", "stalled", "waiting", "failed", "ended"]
"""State of a source. ``waiting``: for the next attempt to connect; ``failed``: there are no more attempts."""

Cause = Literal[
    "",
    "refused",
    "unauthorised",
    "not found",
    "timeout",
    "codec",
    "stalled",
    "ended",
    "corrupt",
    "unreachable",
    "server",
]
"""Why a source is not live, as a category for counters and alerts; empty while it is live."""


@dataclass(frozen=True, slots=True)
class Health:
    """State of a source, as one value that its reader thread replaces and any thread may read."""

    state: State = "connecting"
    reason: str = ""
    """Why it is not live, as text without credentials."""
    reconnects: int = 0
    """How often it was opened again after its connection was lost."""
    corrupt: int = 0
    """How many damaged frames were left out."""
    cause: Cause = ""
    """Category of ``reason``."""


@runtime_checkable
class Source(Protocol):
    """Gives frames: a camera, a stream, a file.

    Entering checks what can be checked at once (the file exists and decodes, the folder holds images) and raises
    ``SourceError``; it does not wait for a network. ``frames`` reads, in the source worker's thread, and is the only
    method called there; the source is left after that thread has ended.
    """

    camera: str
    """The camera's name; unique in a run."""
    uri: str
    """Where it reads from, credentials redacted."""

    @property
    def live(self) -> bool:
        """Whether frames are lost while they are not read (cameras, streams), or wait (files).

        May change until the first frame: the kind of a web address is known once the server has replied.
        """
        ...

    @property
    def frames_total(self) -> int | None:
        """Number of frames of a file where it is known, for progress; None for a live source."""
        ...

    @property
    def rate(self) -> float | None:
        """Declared frames per second, None where it is not declared. For pacing only: declared rates may be wrong."""
        ...

    @property
    def health(self) -> Health:
        """The current state."""
        ...

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until the end, or until ``stop`` is set: then it ends within the read timeout.

        A live source reconnects here and ends only when no attempt can succeed. Raises ``SourceError``: for a file that
        is damaged after some frames, once all good frames were given.
        """
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


@runtime_checkable
class Explainer(Protocol):
    """Gives each frame its classes, their scores and their heat maps."""

    def explain(self, frames: Sequence[Frame]) -> Sequence[Explanation]:
        """Explain a batch: one explanation per frame, in order; frames may differ in size and camera."""
        ...


@dataclass(frozen=True, slots=True)
class MaskingOptions:
    """What a deletion check masks in a frame to see whether the score depends on it."""

    area: float = 0.05
    """Fraction of the grid's cells that are masked, the hottest first; cells without heat are not masked."""
    fill: Literal["mean", "blur"] = "mean"
    """What replaces them: the mean colour of the input, or the blurred input."""


@runtime_checkable
class MaskedScorer(Protocol):
    """An explainer that can score a frame without its hottest area, for deletion checks."""

    def score_when_masked(self, explanation: Explanation, finding: Finding, masking: MaskingOptions) -> float:
        """Return the score of the finding's class in the plain network with the frame's hottest area masked."""
        ...


@runtime_checkable
class PostBatchHook(Protocol):
    """An explainer with work to do after each batch (deletion checks)."""

    def after_batch(self) -> None:
        """Do the work; called after each batch in the thread that explains. The next frames wait for it."""
        ...


@runtime_checkable
class AsyncExplainer(Protocol):
    """An explainer that can start a batch before it has finished the previous one: a device works in parallel."""

    def submit(self, frames: Sequence[Frame]) -> Callable[[], Sequence[Explanation]]:
        """Start a batch and return a function that waits for its explanations; it is called once, in order."""
        ...


@runtime_checkable
class Renderer(Protocol):
    """Draws explanations over their frames."""

    def render(self, explanation: Explanation) -> Overlay:
        """Return an overlay with a new image of the frame's size; the frame is not changed."""
        ...

    def render_stale(self, explanation: Explanation, signal_loss: SignalLoss) -> Overlay:
        """Return a camera's last frame, drawn so that it does not look live."""
        ...


@runtime_checkable
class Sink(Protocol):
    """Publishes overlays: a recorder, a log, a window, a web page, a socket.

    Entering opens it (binds, creates, shows) and raises ``SinkError`` with the remedy. ``put`` may block: each sink has
    a thread and a bounded queue of its own, so that a slow sink delays no other. Leaving completes what it wrote.
    Optional members are in ``HasMetrics``, ``HasProblems``, ``Accounting``, ``AcceptsJpeg``, ``Preparer`` and
    ``pipeline.result.RunObserver``.
    """

    uri: str
    """Where it writes to, as configured, credentials redacted."""
    lossless: bool
    """Whether every frame counts (recorder, log) or the newest frame is enough (window, network)."""

    def needs_image(self, camera: str) -> bool:
        """Say whether a drawn image of this camera is needed now; without any such sink no image is drawn."""
        ...

    def put(self, overlay: Overlay) -> None:
        """Deliver an overlay. Raises ``FrameError`` for this frame alone, ``SinkError`` where the sink has failed."""
        ...

    def idle(self) -> None:
        """Handle keys and new viewers; called every tenth of a second while no overlay comes."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One value of a metric."""

    name: str
    """Snake case, with its unit: ``viewers``, ``recorder_bytes``; it is published as ``recipro_<name>``."""
    value: float
    help: str
    """What it measures, in one sentence; the same for all samples of that name."""
    kind: Literal["gauge", "counter"] = "gauge"
    labels: tuple[tuple[str, str], ...] = ()
    """(name, value) pairs that distinguish samples of one name; never a credential."""


@runtime_checkable
class HasMetrics(Protocol):
    """A part of the run with metrics of its own: a sink, an explainer."""

    def metrics(self) -> Sequence[MetricSample]:
        """Return the current values. Called from any thread; must not wait."""
        ...


@runtime_checkable
class HasProblems(Protocol):
    """A sink that continues with a problem: a full disk, a broker that cannot be reached."""

    uri: str
    """The URI of the sink."""

    @property
    def problem(self) -> str:
        """The problem as text without credentials; empty while there is none. For any thread."""
        ...


@runtime_checkable
class Accounting(Protocol):
    """A sink that does not deliver every overlay, and reports how many."""

    uri: str
    """The URI of the sink."""

    @property
    def account(self) -> str:
        """Text with the numbers of delivered, skipped and lost overlays. For any thread."""
        ...


@runtime_checkable
class AcceptsJpeg(Protocol):
    """A sink that sends images as JPEG, and accepts JPEG that the engine has encoded."""

    @property
    def accepted_jpeg_quality(self) -> int | None:
        """JPEG quality, 1 to 100; None: it needs arrays now."""
        ...


@runtime_checkable
class Preparer(Protocol):
    """A sink with a costly step (compression) that runs before ``put`` in the thread of the frame's camera."""

    def prepare(self, overlay: Overlay) -> None:
        """Do the costly step for an overlay. Called in several threads; for one camera in one thread at a time."""
        ...


class StopRequested(Exception):  # noqa: N818 - not an error: the window was closed
    """Raised by a sink's ``put`` or ``idle`` when the user asks for the end: q or Esc in the window."""

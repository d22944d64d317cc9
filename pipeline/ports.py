"""The interfaces between the packages. Read this first.

    Source --Frame--> SourceWorker --[Frame, ...]--> Explainer --Explanation--> Renderer --Overlay--> Sink

Each interface is a base class; each implementation has its own file and a line in the registry of its package. A
subclass must implement the abstract methods, and may override the others. Methods are called by the threads of
``pipeline.workers`` and the thread of ``Pipeline.run``; an object is called by one thread at a time, except where a
docstring states otherwise.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self

from pipeline.frames import Explanation, Finding, Frame, Overlay, SignalLoss

if TYPE_CHECKING:
    from pipeline.input_area import InputAreaOptions
    from pipeline.queries import PlaceQueries
    from pipeline.result import RunResult

Overflow = Literal["drop-oldest", "wait"]
"""Action when a queue is full: ``drop-oldest`` removes the oldest frame (live), ``wait`` blocks the source (files)."""

State = Literal["connecting", "live", "stalled", "waiting", "failed", "ended"]
"""State of a source. ``waiting``: it waits before the next attempt to connect; ``failed``: it does not try again."""

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
"""Category of the reason why a source is not live, for counters and alerts; empty while it is live."""


@dataclass(frozen=True, slots=True)
class Health:
    """State of a source. The thread that reads the source replaces it as a whole; any thread may read it."""

    state: State = "connecting"
    reason: str = ""
    """Reason why the source is not live, as text without credentials."""
    reconnects: int = 0
    """Number of times that the source was opened again after it lost its connection."""
    corrupt: int = 0
    """Number of damaged frames that were skipped."""
    missed: int = 0
    """Number of frames of a remote run that did not arrive, or were replaced by newer frames before they were read."""
    cause: Cause = ""
    """Category of ``reason``."""


class Source(ABC):
    """A source of frames: a camera, a stream, a file.

    ``__enter__`` checks what needs no network (the file exists and can be decoded, the folder contains images) and
    raises ``SourceError``. ``frames`` reads the frames; it is the only method that the thread of the ``SourceWorker``
    calls. ``__exit__`` is called after that thread has ended.
    """

    camera: str
    """The camera's name; unique in a run."""
    uri: str
    """Address of the source, without credentials."""
    live: bool = False
    """True if frames that are not read in time are lost (cameras, streams); False if they wait (files).

    May change until the first frame: the server's reply decides for a web address.
    """
    frames_total: int | None = None
    """Number of frames of a file, for progress; None if it is not known, and for a live source."""
    rate: float | None = None
    """Declared frames per second; None if not declared. Use it for pacing only: declared rates may be wrong."""
    overflow: Overflow | None = None
    """Action when the queue is full, if the configuration has none; None: depends on ``live``."""
    health: Health = Health()
    """The current state; the thread of ``frames`` replaces it."""
    input_area: InputAreaOptions | None = None
    """The part of the frames that the network gets, from which the worker sets ``Frame.area``; None: whole frames."""
    min_silence_seconds: float = 0.0
    """Minimum time without a frame after which a live source has lost its signal (``pipeline.signal_loss``)."""

    @abstractmethod
    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until the source ends or ``stop`` is set; ``stop`` takes effect within the read timeout.

        A live source reconnects by itself, and ends only when no further attempt can succeed.

        Raises:
            SourceError: reading failed. For a file that is damaged after some frames, the frames before the damage are
                yielded first.
        """

    def take_stale(self) -> Overlay | None:
        """Return a new image of the signal loss if the source draws its own, each once, else None. For any thread."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Release all resources that ``__enter__`` and ``frames`` opened."""


def overflow_of(source: Source, configured: Overflow | None) -> Overflow:
    """Return what the full queue of a source does: as configured, or else as its kind does."""
    return configured or ("drop-oldest" if source.live else "wait")


class SourceWrapper(Source):
    """Base class of a source that wraps another source and reports the state of ``inner``."""

    inner: Source

    @property
    def live(self) -> bool:  # type: ignore[override]
        """True if the inner source is live."""
        return self.inner.live

    @property
    def frames_total(self) -> int | None:  # type: ignore[override]
        """Number of frames of the inner source."""
        return self.inner.frames_total

    @property
    def rate(self) -> float | None:  # type: ignore[override]
        """Declared frames per second of the inner source."""
        return self.inner.rate

    @property
    def health(self) -> Health:  # type: ignore[override]
        """The current state of the inner source."""
        return self.inner.health


class Discovery(ABC):
    """Adds sources to a run, and removes sources, during the run.

    The methods are called several times a second in the thread of ``Pipeline.run``, and must not block.
    """

    notify: Callable[[], None] = staticmethod(lambda: None)
    """Set by the pipeline. Call it, from any thread, when a source was found or is to be removed."""

    @abstractmethod
    def take(self) -> Sequence[Source]:
        """Return the sources found since the last call, already entered. An exception ends the run."""

    def take_removed(self) -> Sequence[str]:
        """Return the names of the cameras to remove, each once. Their frames in progress are still delivered."""
        return ()

    def on_removed(self, source: Source) -> None:
        """Called with a removed source when no thread uses it any more; its name may be reused from now on."""


@dataclass(frozen=True, slots=True)
class MetricSample:
    """One value of a metric."""

    name: str
    """Snake case, with its unit: ``viewers``, ``recorder_bytes``; it is published as ``recipro_<name>``."""
    value: float
    help: str
    """Description of the metric in one sentence; the same for all samples of a name."""
    kind: Literal["gauge", "counter"] = "gauge"
    labels: tuple[tuple[str, str], ...] = ()
    """Labels as (name, value) pairs; never a credential."""


class Part:
    """Base class of explainers and sinks: metrics and problems. For any thread; the methods must not block."""

    uri: str = ""
    """Address of a sink; empty for other parts."""

    def metrics(self) -> Sequence[MetricSample]:
        """Return the current values of the part's own metrics."""
        return ()

    @property
    def problem(self) -> str:
        """Reason why the part does not fully work, such as a full disk; empty if it works.

        The text has no credentials.
        """
        return ""

    @property
    def account(self) -> str:
        """Numbers of delivered, skipped and lost overlays as text; empty if all are delivered."""
        return ""


@dataclass(frozen=True, slots=True)
class MaskingOptions:
    """Options of a deletion check: the hottest part of a frame is masked, and the score is computed again."""

    area: float = 0.05
    """Fraction of the grid's cells that are masked, 0 to 1, the hottest first; cells without heat are not masked."""
    fill: Literal["mean", "blur"] = "mean"
    """Content of the masked cells: the mean colour of the input, or the blurred input."""


class Explainer(Part, ABC):
    """Explains frames: returns the classes of each frame with their scores and heat maps."""

    asynchronous: bool = False
    """True if ``submit`` may be called before the previous batch is finished: a device works in parallel."""
    can_mask: bool = False
    """True if ``score_when_masked`` is implemented: deletion checks need it."""
    box_mode: Literal["keep", "drop"] | None = None
    """Mode of the heat maps of a detector's boxes; None for a classifier."""

    @abstractmethod
    def explain(self, frames: Sequence[Frame]) -> Sequence[Explanation]:
        """Explain a batch: one explanation per frame, in order; frames may differ in size and camera."""

    def submit(self, frames: Sequence[Frame]) -> Callable[[], Sequence[Explanation]]:
        """Start a batch; return a function that waits for its explanations.

        The returned functions are called once each, in the order of their batches.
        """
        return partial(self.explain, frames)

    def after_batch(self) -> None:
        """Do work that is due after a batch. Called in the thread that explains; the next batch waits for it."""

    def idle(self) -> None:
        """Do waiting work while no frame arrives. Called several times a second, unless ``asynchronous``."""

    def forget_camera(self, camera: str) -> None:
        """Remove the state of a camera that left the run. Called in the thread that calls ``submit``."""

    def accept(self, queries: PlaceQueries) -> None:
        """Open ``queries`` and answer them from now on, in the thread that explains.

        The default implementation answers none, and ``queries`` continues to refuse them.
        """

    def score_when_masked(self, explanation: Explanation, finding: Finding, masking: MaskingOptions) -> float:
        """Return the score, 0 to 1, of the finding's class in the plain network with the hottest area masked."""
        raise NotImplementedError


class ExplainerWrapper(Explainer):
    """Base class of an explainer that wraps another explainer; a subclass changes its explanations in ``submit``."""

    def __init__(self, explainer: Explainer) -> None:
        """Wrap an explainer."""
        self._explainer, self.asynchronous = explainer, explainer.asynchronous

    def explain(self, frames: Sequence[Frame]) -> Sequence[Explanation]:
        """Explain a batch by ``submit``."""
        return self.submit(frames)()

    @abstractmethod
    def submit(self, frames: Sequence[Frame]) -> Callable[[], Sequence[Explanation]]:
        """Start a batch; return a function that waits for its explanations."""

    def after_batch(self) -> None:
        """Do the work of the wrapped explainer that is due after a batch."""
        self._explainer.after_batch()

    def idle(self) -> None:
        """Do the waiting work of the wrapped explainer."""
        self._explainer.idle()

    def accept(self, queries: PlaceQueries) -> None:
        """Let the wrapped explainer answer queries."""
        self._explainer.accept(queries)

    def forget_camera(self, camera: str) -> None:
        """Remove the state of a camera in the wrapped explainer."""
        self._explainer.forget_camera(camera)

    def metrics(self) -> Sequence[MetricSample]:
        """Return the metrics of the wrapped explainer."""
        return self._explainer.metrics()


class Renderer(ABC):
    """Draws explanations over their frames."""

    @abstractmethod
    def render(self, explanation: Explanation) -> Overlay:
        """Return an overlay with a new image of the frame's size; the frame is not changed."""

    @abstractmethod
    def render_stale(self, explanation: Explanation, signal_loss: SignalLoss) -> Overlay:
        """Return an overlay of a camera's last frame that is marked as old, with the state of the camera."""

    def forget_camera(self, camera: str) -> None:
        """Remove the state of a camera that left the run. Called when none of its frames is being drawn."""


class Sink(Part, ABC):
    """Publishes overlays: a recorder, a log, a window, a web page, a socket.

    ``__enter__`` opens the sink (binds a socket, creates a file, shows a window) and raises ``SinkError`` with the
    remedy. ``put`` may block: each sink has its own thread and bounded queue, so that a slow sink does not delay the
    others. ``__exit__`` completes and closes the output.
    """

    uri: str
    """Address of the sink as configured, without credentials."""
    lossless: bool = False
    """True if the sink must get every frame (recorder, log); False if the newest frame is enough (window, network)."""
    reports_signal_loss: bool = False
    """True if ``put`` gets overlays of signal losses even if the sink needs no image."""

    @abstractmethod
    def put(self, overlay: Overlay) -> None:
        """Deliver an overlay.

        Raises:
            FrameError: this frame cannot be delivered; the sink continues.
            SinkError: the sink has failed.
        """

    def needs_image(self, camera: str) -> bool:  # noqa: ARG002 - for subclasses
        """Return whether the sink needs a drawn image of this camera now; if no sink does, none is drawn."""
        return False

    def idle(self) -> None:
        """Handle keys and new viewers. Called every tenth of a second while no overlay arrives."""

    def prepare(self, overlay: Overlay) -> None:
        """Do a costly step (compression) before ``put``, in the thread of the frame's camera.

        Called in several threads; for one camera in one thread at a time.
        """

    def forget_camera(self, camera: str) -> None:
        """Complete the output of a camera that left the run, and remove its state.

        Called in the thread of ``put``, after the camera's last overlay. A camera of this name may return later.
        """

    def on_run_start(self, result: RunResult) -> None:
        """Called once before the first frame, with the state of the run, which changes; any thread may read it."""

    def on_run_end(self) -> None:
        """Wait, for a few seconds at most, until ``account`` is final. Called once, after the last frame."""

    @property
    def accepted_jpeg_quality(self) -> int | None:
        """JPEG quality, 1 to 100, of images that the engine may encode for this sink.

        None: the sink needs arrays.
        """
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """Complete and close the output."""


class StopRequested(Exception):  # noqa: N818 - not an error: the window was closed
    """Raised by ``put`` or ``idle`` of a sink when the user requests the end of the run: q or Esc in the window."""
